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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import LayerPlan, QuantizationPlan, make_plan, quantized_bytes
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_precision import ALLOTTED_BITS, PerLayer
from quantstudio.core.schemes import PER_CHANNEL, WeightSpec
from quantstudio.core.sensitivity import LayerSensitivity, Option, Sensitivity, UniformLoss
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.calibrate import gptq_options
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.sensitivity.gradients import losses_by_gradients
from quantstudio.engine.sensitivity.restart import Restart, decoder_blocks
from quantstudio.engine.sensitivity.rounding import Rounded, RoundedByGptq, rounded_to_nearest

LENGTH = 256
"""Tokens in a sequence here."""
MOST_TOKENS = 2048
FEWEST_TOKENS = 1024
LOGITS_BYTES = 1 << 30
"""Budget for the original's log-probabilities, which are kept in fp32."""
SCORED_ROWS = 1024
EXACT_BITS = (2, 3, 4)
CHEAP_WORK = {"cpu": 6e13, "cuda": 3e16}
"""Floating-point operations that measuring layer by layer may take: about five minutes on a 2-core CPU."""
SMALL_MODEL = 200_000_000
"""Weights up to which layers are quantized as the run will do it, and other group sizes are measured too, to offer what
is better at the same size."""
JUDGED_SHARE = 4
"""With GPTQ, losses are measured on the last of so many parts of the text, and layers quantized on the others."""
OTHER_GROUPS = (32, 64, 128, PER_CHANNEL)
FEW_GROUPS = (32, 128)
"""Those tried where each whole model takes GPTQ."""


@dataclass(frozen=True, slots=True)
class _Layer:
    name: str
    """In the model's files."""
    module: nn.Linear
    block: int
    specs: Mapping[int, WeightSpec]
    nbytes: Mapping[int, int]


def measure_sensitivity(
    info: ModelInfo, recipe: Recipe, model: PreTrainedModel, ids: torch.Tensor, reporter: Reporter
) -> Sensitivity:
    """The sensitivity of every layer that the recipe quantizes, at 2, 3, 4 and 8 bits with the scheme's groups.

    `model`: the original, loaded from `info.path`; it is put back as it was. `ids`: int64 `[sequences, length]`,
    calibration text. Raises ModelUnsupported (nothing to choose for), Cancelled between runs of the model.
    """
    started = time.monotonic()
    layers, other_bytes = _layers(info, recipe, model)
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
        judge = _Judge(restart.logits)
        whole = _Whole(info, recipe, layers, other_bytes, rounded)
        wholes = _measure_wholes(whole, lambda: judge(restart.run(0)), reporter)
        if each:
            losses = _measure_each(layers, rounded, restart, judge, reporter)
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


def _layers(info: ModelInfo, recipe: Recipe, model: PreTrainedModel) -> tuple[list[_Layer], int]:
    """The layers whose bits can be chosen, and the bytes of everything else."""
    plans = {bits: _plan(info, recipe, bits) for bits in ALLOTTED_BITS}
    architecture = inspect_architecture(info)
    modules = dict(model.named_modules())
    options: dict[str, dict[int, LayerPlan]] = {}
    for bits, plan in plans.items():
        for layer in plan.quantized:
            if layer.slot.part is Part.LAYER and not architecture.why_not(layer.slot):
                options.setdefault(layer.slot.module, {})[bits] = layer
    blocks = _block_places(model)
    layers = []
    for name, by_bits in options.items():
        module = architecture.modules[name]
        specs = {bits: layer.spec for bits, layer in by_bits.items() if layer.spec}
        nbytes = {bits: quantized_bytes(by_bits[bits].slot, spec) for bits, spec in specs.items()}
        layers.append(_Layer(name, modules[module], blocks(module), specs, nbytes))
    if not layers:
        plans[4].require()
        raise ModelUnsupported("This model has no layers whose bits could be chosen.", field="precision.kind")
    of_layers = sum(layer.nbytes[4] for layer in layers if 4 in layer.nbytes)
    return layers, plans[4].sizes.total - of_layers


def _plan(info: ModelInfo, recipe: Recipe, bits: int) -> QuantizationPlan:
    return make_plan(info, recipe.model_copy(update={"precision": PerLayer(bits=(f"*={bits}",))}))


def _block_places(model: PreTrainedModel) -> Callable[[str], int]:
    names = {id(module): name for name, module in model.named_modules()}
    prefixes = [f"{names[id(block)]}." for block in decoder_blocks(model)]
    return lambda module: next((place for place, prefix in enumerate(prefixes) if module.startswith(prefix)), 0)


def _cut(ids: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """`[sequences, LENGTH]` of the calibration text, spread over all of it."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = max(FEWEST_TOKENS, min(MOST_TOKENS, LOGITS_BYTES // (4 * vocabulary)))
    length = min(LENGTH, ids.shape[1])
    pieces = ids[:, : ids.shape[1] // length * length].reshape(-1, length)
    count = min(len(pieces), max(1, tokens // length))
    return pieces[torch.linspace(0, len(pieces) - 1, count).round().long()]


def _measure_each(
    layers: Sequence[_Layer], rounded: Rounded, restart: Restart, judge: _Judge, reporter: Reporter
) -> dict[str, dict[int, float]]:
    losses: dict[str, dict[int, float]] = {}
    for number, layer in enumerate(layers):
        losses[layer.name] = {}
        for bits in EXACT_BITS:
            reporter.progress(number * len(EXACT_BITS) + bits - 2, len(layers) * len(EXACT_BITS), "runs", layer.name)
            if spec := layer.specs.get(bits):
                with _replaced([layer.module], [rounded(layer.name, layer.module, spec)]):
                    losses[layer.name][bits] = judge(restart.run(layer.block))
    return losses


@dataclass(frozen=True, slots=True)
class _Whole:
    """All layers of a model quantized alike."""

    info: ModelInfo
    recipe: Recipe
    layers: Sequence[_Layer]
    other_bytes: int
    rounded: Rounded

    def recipes(self) -> list[Recipe]:
        """The recipe, and for small models the same with other groups."""
        if not _is_small(self.layers):
            return [self.recipe]
        return _with_other_groups(self.recipe, OTHER_GROUPS if self.rounded is rounded_to_nearest else FEW_GROUPS)

    def measured(self, recipe: Recipe, bits: int, run: Callable[[], float]) -> UniformLoss | None:
        """What `run` says of it; None when the group size does not divide every layer."""
        planned = {layer.slot.module: layer for layer in _plan(self.info, recipe, bits).quantized}
        if not all(layer.name in planned for layer in self.layers):
            return None
        grids = [(planned[layer.name].slot, planned[layer.name].spec or layer.specs[bits]) for layer in self.layers]
        weights = [
            self.rounded(layer.name, layer.module, spec) for layer, (_, spec) in zip(self.layers, grids, strict=True)
        ]
        with _replaced([layer.module for layer in self.layers], weights):
            loss = run()
        nbytes = self.other_bytes + sum(quantized_bytes(slot, spec) for slot, spec in grids)
        return UniformLoss(bits=bits, group_size=recipe.scheme.weight_spec().group_size, nbytes=nbytes, kl=loss)


def _measure_wholes(whole: _Whole, run: Callable[[], float], reporter: Reporter) -> list[UniformLoss]:
    """Whole models at each number of bits. `run` judges the model."""
    planned = [(recipe, bits) for recipe in whole.recipes() for bits in EXACT_BITS]
    found = []
    for number, (recipe, bits) in enumerate(planned):
        reporter.progress(number, len(planned), "models", f"{recipe.scheme.weight_spec().label}, {bits} bits")
        reporter.check_cancel()
        found.append(whole.measured(recipe, bits, run))
    return [loss for loss in found if loss]


def _is_small(layers: Sequence[_Layer]) -> bool:
    return sum(layer.module.weight.numel() for layer in layers) <= SMALL_MODEL


def _with_other_groups(recipe: Recipe, sizes: Sequence[int | str]) -> list[Recipe]:
    """The recipe, and with other groups where its scheme has groups."""
    scheme = recipe.scheme
    mine = getattr(scheme, "group_size", None)
    if mine is None:
        return [recipe]
    others = [scheme.model_copy(update={"group_size": size}) for size in sizes if size != mine]
    return [recipe, *(recipe.model_copy(update={"scheme": other}) for other in others)]


def _sensitivity(layer: _Layer, losses: Mapping[int, float]) -> LayerSensitivity:
    known = dict(losses)
    if 8 in layer.specs and 8 not in known and 4 in known:
        known[8] = known[4] * _error(layer, 8) / max(_error(layer, 4), 1e-30)
    options = (Option(bits=bits, nbytes=layer.nbytes[bits], kl=max(0.0, known[bits])) for bits in sorted(known))
    return LayerSensitivity(name=layer.name, weights=layer.module.weight.numel(), options=tuple(options))


def _error(layer: _Layer, bits: int) -> float:
    weight = layer.module.weight.data
    return float(
        (rounded_to_nearest(layer.name, layer.module, layer.specs[bits]).float() - weight.float()).square().sum()
    )


class _Judge:
    """Mean KL divergence in nats of other logits `[sequences, length, vocabulary]` from the original's."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._original = torch.log_softmax(logits.float().reshape(-1, logits.shape[-1]), -1)

    def __call__(self, logits: torch.Tensor) -> float:
        other = logits.reshape(-1, logits.shape[-1])
        total = 0.0
        for start in range(0, len(other), SCORED_ROWS):
            first = self._original[start : start + SCORED_ROWS]
            second = torch.log_softmax(other[start : start + SCORED_ROWS].float(), -1)
            total += float(torch.linalg.vecdot(first.exp(), first - second).sum(dtype=torch.float64))
        return total / len(other)


@contextmanager
def _replaced(modules: Sequence[nn.Linear], weights: Sequence[torch.Tensor]) -> Iterator[None]:
    originals = [module.weight.data for module in modules]
    for module, weight in zip(modules, weights, strict=True):
        module.weight.data = weight
    try:
        yield
    finally:
        for module, weight in zip(modules, originals, strict=True):
            module.weight.data = weight
