"""AWQ and SmoothQuant on one block: scale where that is free, then round.

One pass of the text through the unquantized block collects what both need: Σ x xᵀ, the mean and largest |x| of every
channel, and some inputs as they are. Scales are settled from the block's end to its beginning, because a layer whose
rows take up the scales of a later one must be scaled before its own columns are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from quantstudio.core.recipe_method import Awq, SmoothQuant
from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.calibration.blocks import BlockModel
from quantstudio.engine.calibration.folding import Fold, find_folds
from quantstudio.engine.calibration.streams import Batches, stages
from quantstudio.engine.methods.awq import awq_scales, quantize_clipped
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.methods.smoothquant import smooth_scales
from quantstudio.engine.quantized_weight import QuantizedWeight

SAMPLE_TOKENS = 512


@dataclass(slots=True)
class _Seen:
    """What went into the layers of one stage."""

    hessian: torch.Tensor
    total: torch.Tensor
    largest: torch.Tensor
    sample: torch.Tensor
    tokens: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        self.hessian.addmm_(inputs.t(), inputs)
        self.total += inputs.abs().sum(0)
        self.largest = torch.maximum(self.largest, inputs.abs().amax(0))
        self.tokens += len(inputs)


def scaled_block(
    model: BlockModel,
    number: int,
    batches: Batches,
    specs: Mapping[str, WeightSpec],
    method: Awq | SmoothQuant,
    check: Callable[[], None],
) -> tuple[dict[str, QuantizedWeight], dict[str, torch.Tensor]]:
    """Quantize the modules `specs` of block `number`, loaded in `model`.

    Returns their weights, and by their keys in the model the tensors that took up scales without being quantized.
    """
    order = stages(model, number, batches[0], list(specs))
    seen = _watch(model, number, batches, [stage[0] for stage in order], check)
    folds = find_folds(model, number, batches[0], _head_size(model))
    state = {f"{name}.weight": model.model.get_submodule(name).weight.float() for name in specs}
    kept = set(state)
    for fold in reversed(folds):
        check()
        first = next((name for name in fold.stage if name in seen), "")
        if first:
            _scale(model, fold, specs, seen[first], state, method)
    weights = {}
    for stage in order:
        for name in stage:
            check()
            weights[name] = _rounded(state[f"{name}.weight"], seen[stage[0]].hessian, specs[name], method)
    return weights, {key: value.to(torch.bfloat16) for key, value in state.items() if key not in kept}


def _scale(
    model: BlockModel,
    fold: Fold,
    specs: Mapping[str, WeightSpec],
    seen: _Seen,
    state: dict[str, torch.Tensor],
    method: Awq | SmoothQuant,
) -> None:
    """Settle a fold's scales and put them into `state`, which holds fp32 values by key; adds what was not there."""

    def value(key: str) -> torch.Tensor:
        module, _, leaf = key.rpartition(".")
        return state.get(key, getattr(model.model.get_submodule(module), leaf).float())

    layers = [(value(f"{name}.weight"), specs[name]) for name in fold.stage if name in specs]
    shared = [fold.spread(fold.shared(values)) for values in (seen.total / seen.tokens, seen.largest)]
    if isinstance(method, Awq):
        scales = awq_scales(layers, seen.hessian, shared[0], method.grid_points)
    else:
        scales = smooth_scales(layers, shared[1], seen.sample, method.strength)
    rows = fold.shared(scales)
    if bool((rows == 1).all()):
        return
    key = f"{fold.source}.weight"
    old = value(key)
    if old.dim() == 1:
        # What bf16 makes of the norm's new weight decides the scale, so that rounding the norm costs nothing.
        state[key] = ((old + fold.offset) / rows - fold.offset).to(torch.bfloat16).float()
        exact = (old + fold.offset) / (state[key] + fold.offset)
        rows = torch.where(exact.isfinite() & (exact > 0), exact, rows)
    else:
        state[key] = old / rows.unsqueeze(1)
    if getattr(model.model.get_submodule(fold.source), "bias", None) is not None:
        state[f"{fold.source}.bias"] = value(f"{fold.source}.bias") / rows
    scales = fold.spread(rows)
    for name in fold.stage:
        state[f"{name}.weight"] = value(f"{name}.weight") * scales
    seen.hessian /= scales * scales.unsqueeze(1)


def _rounded(
    weight: torch.Tensor, hessian: torch.Tensor, spec: WeightSpec, method: Awq | SmoothQuant
) -> QuantizedWeight:
    if isinstance(method, Awq) and method.clip:
        return quantize_clipped(weight, hessian, spec)
    return quantize_rtn(weight, spec)


def _watch(
    model: BlockModel, number: int, batches: Batches, modules: list[str], check: Callable[[], None]
) -> dict[str, _Seen]:
    """Pass the text through the block once and note what goes into these modules."""
    seen: dict[str, _Seen] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            inputs = args[0].flatten(0, -2).float()
            if name not in seen:
                zeros = torch.zeros(inputs.shape[1], device=inputs.device)
                hessian = torch.zeros(len(zeros), len(zeros), device=inputs.device)
                seen[name] = _Seen(hessian, zeros, zeros.clone(), inputs[:SAMPLE_TOKENS].clone())
            seen[name].add(inputs)

        return hook

    with ExitStack() as stack:
        for name in modules:
            handle = model.model.get_submodule(name).register_forward_pre_hook(note(name))
            stack.callback(handle.remove)
        for hidden in batches:
            check()
            model.run(number, hidden)
    return seen


def _head_size(model: BlockModel) -> int:
    config = model.model.config.get_text_config(decoder=True)
    return int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads)
