"""Measures what few bits cost each layer: the model is run with that layer alone quantized, and compared with itself.

The text is calibration text, never the text that quality is judged on. Small models are quantized as the run will do
it, by GPTQ where that is its method, on text that the losses are not measured on; others are rounded to nearest. Models
that would take too long this way are judged by gradients instead, which ranks layers nearly alike
(tests/benchmarks/mixed_precision.py prints how nearly). 8-bit losses are below what can be measured beside the noise of
bf16; they are the 4-bit losses times the ratio of squared rounding errors. Activations stay as they are: rounding them
costs the same whatever the weights' bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from quantstudio.core.model_info import ModelInfo
from quantstudio.core.recipe import Recipe
from quantstudio.core.sensitivity import LayerSensitivity, Option, Sensitivity, UniformLoss
from quantstudio.engine.calibrate import gptq_options
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.sensitivity.gradients import losses_by_gradients
from quantstudio.engine.sensitivity.restart import Restart
from quantstudio.engine.sensitivity.rounding import Rounded, RoundedByGptq, rounded_to_nearest
from quantstudio.engine.sensitivity.wholes import (
    OTHER_GROUPS,
    Judge,
    Layer,
    Whole,
    replaced,
    settable_layers,
    with_other_groups,
)

LENGTH = 256
"""Tokens in a sequence here."""
MOST_TOKENS = 2048
FEWEST_TOKENS = 1024
LOGITS_BYTES = 1 << 30
"""Budget for the original's log-probabilities, which are kept in fp32."""
EXACT_BITS = (2, 3, 4)
CHEAP_WORK = {"cpu": 6e13, "cuda": 3e16}
"""Floating-point operations that measuring layer by layer may take: about five minutes on a 2-core CPU."""
SMALL_MODEL = 200_000_000
"""Weights up to which layers are quantized as the run will do it, and other group sizes are measured too, to offer what
is better at the same size."""
JUDGED_SHARE = 4
"""With GPTQ, losses are measured on the last of so many parts of the text, and layers quantized on the others."""
FEW_GROUPS = (32, 128)
"""Those tried, instead of all, where each whole model takes GPTQ."""


def measure_sensitivity(
    info: ModelInfo, recipe: Recipe, model: PreTrainedModel, ids: torch.Tensor, reporter: Reporter
) -> Sensitivity:
    """The sensitivity of every layer that the recipe quantizes, at 2, 3, 4 and 8 bits with the scheme's groups.

    `model`: the original, loaded from `info.path`; it is put back as it was. `ids`: int64 `[sequences, length]`,
    calibration text. Raises ModelUnsupported (nothing to choose for), Cancelled between runs of the model.
    """
    started = time.monotonic()
    layers, other_bytes = settable_layers(info, recipe, model)
    work = 2 * sum(layer.module.weight.numel() for layer in layers) * MOST_TOKENS * len(layers) * len(EXACT_BITS) / 2
    each = work <= CHEAP_WORK[model.device.type if model.device.type in CHEAP_WORK else "cpu"]
    options = gptq_options(recipe) if each and _is_small(layers) else None
    judged = ids[len(ids) - len(ids) // JUDGED_SHARE :] if options and len(ids) >= JUDGED_SHARE else ids
    text = _cut(judged, model).to(model.device)
    with torch.no_grad():
        rounded: Rounded = rounded_to_nearest
        if options:
            fitted = ids[: len(ids) - len(judged)] if len(judged) < len(ids) else ids
            modules = [layer.module for layer in layers]
            rounded = RoundedByGptq(model, modules, fitted.to(model.device), options, reporter)
        restart = Restart(model, text)
        judge = Judge(restart.logits)
        whole = Whole(info, recipe, layers, other_bytes, rounded)
        steps = _Steps(len(layers), len(_recipes(whole)) * len(EXACT_BITS), reporter, each=each)
        wholes = _measure_wholes(whole, lambda: judge(restart.run(0)), steps)
        if each:
            losses = _measure_each(layers, rounded, restart, judge, steps)
    if not each:
        del restart, judge
        by_name = {layer.name: (layer.module, layer.specs) for layer in layers}
        losses = losses_by_gradients(model, ids.to(model.device), by_name, recipe.machine.seed, reporter)
    return Sensitivity(
        model_name=info.name,
        scheme=recipe.scheme.weight_spec().label,
        method="gptq" if options else "rtn",
        measured_as="each" if each else "gradients",
        tokens=text.numel(),
        layers=tuple(_sensitivity(layer, losses[layer.name]) for layer in layers),
        other_bytes=other_bytes,
        uniform=tuple(wholes),
        seconds=time.monotonic() - started,
    )


def _cut(ids: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """`[sequences, LENGTH]` of the calibration text, spread over all of it."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = max(FEWEST_TOKENS, min(MOST_TOKENS, LOGITS_BYTES // (4 * vocabulary)))
    length = min(LENGTH, ids.shape[1])
    pieces = ids[:, : ids.shape[1] // length * length].reshape(-1, length)
    count = min(len(pieces), max(1, tokens // length))
    return pieces[torch.linspace(0, len(pieces) - 1, count).round().long()]


class _Steps:
    """One progress for all that is measured, in layers rounded, so that the time left is right from the beginning."""

    def __init__(self, layers: int, wholes: int, reporter: Reporter, *, each: bool) -> None:
        self._layers, self._reporter = layers, reporter
        self._by_itself = wholes * layers
        self._total = self._by_itself + (layers * len(EXACT_BITS) if each else 0)

    def whole(self, number: int, bits: int, group_size: int | None) -> None:
        """Begin with this whole model. Raises Cancelled."""
        groups = f"groups of {group_size}" if group_size else "one scale a row"
        self._reporter.progress(number * self._layers, self._total, "roundings", f"all layers, {bits} bits, {groups}")

    def layer(self, number: int, name: str, bits: int) -> None:
        """Begin with the so manieth layer by itself. Raises Cancelled."""
        self._reporter.progress(self._by_itself + number, self._total, "roundings", f"{name}, {bits} bits")


def _measure_each(
    layers: Sequence[Layer], rounded: Rounded, restart: Restart, judge: Judge, steps: _Steps
) -> dict[str, dict[int, float]]:
    losses: dict[str, dict[int, float]] = {}
    for number, layer in enumerate(layers):
        losses[layer.name] = {}
        for bits in EXACT_BITS:
            steps.layer(number * len(EXACT_BITS) + bits - 2, layer.name, bits)
            if spec := layer.specs.get(bits):
                with replaced([layer.module], [rounded(layer.name, layer.module, spec)]):
                    losses[layer.name][bits] = judge(restart.run(layer.block))
    return losses


def _measure_wholes(whole: Whole, run: Callable[[], float], steps: _Steps) -> list[UniformLoss]:
    """Whole models at each number of bits. `run` judges the model."""
    planned = [(recipe, bits) for recipe in _recipes(whole) for bits in EXACT_BITS]
    found = []
    for number, (recipe, bits) in enumerate(planned):
        steps.whole(number, bits, recipe.scheme.weight_spec().group_size)
        found.append(whole.measured(recipe, bits, run))
    return [loss for loss in found if loss]


def _sensitivity(layer: Layer, losses: Mapping[int, float]) -> LayerSensitivity:
    known = dict(losses)
    if 8 in layer.specs and 8 not in known and 4 in known:
        known[8] = known[4] * _error(layer, 8) / max(_error(layer, 4), 1e-30)
    options = (Option(bits=bits, nbytes=layer.nbytes[bits], kl=max(0.0, known[bits])) for bits in sorted(known))
    return LayerSensitivity(name=layer.name, weights=layer.module.weight.numel(), options=tuple(options))


def _error(layer: Layer, bits: int) -> float:
    weight = layer.module.weight.data
    return float(
        (rounded_to_nearest(layer.name, layer.module, layer.specs[bits]).float() - weight.float()).square().sum()
    )


def _recipes(whole: Whole) -> list[Recipe]:
    """The recipe, and for small models the same with other groups."""
    if not _is_small(whole.layers):
        return [whole.recipe]
    return with_other_groups(whole.recipe, OTHER_GROUPS if whole.rounded is rounded_to_nearest else FEW_GROUPS)


def _is_small(layers: Sequence[Layer]) -> bool:
    return sum(layer.module.weight.numel() for layer in layers) <= SMALL_MODEL
