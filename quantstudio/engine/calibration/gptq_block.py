"""GPTQ on one block: stage by stage, each on what the stages before it, already quantized, hand on.

A layer is not asked to repeat what its own weights make of the quantized model's inputs, but what the original makes
of the original's: drift of the earlier blocks is made up for instead of passed on. The least-squares weight for that is
W + W C (H + λ)⁻¹ with C = Σ (x - x̂) x̂ᵀ, and GPTQ then rounds it, as in Li et al., "GPTAQ" (2025,
https://arxiv.org/abs/2504.02692), who fold the same term into the column updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import torch

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.calibration.blocks import BlockModel
from quantstudio.engine.calibration.streams import Batches, inputs_of, rounded_activations, stages
from quantstudio.engine.methods.gptq import GptqOptions, damp, quantize_gptq
from quantstudio.engine.quantized_weight import QuantizedWeight

DRIFT_DAMPING = 0.01
"""λ, as a share of the mean diagonal of H."""
STRIP = 256
"""Rows of H that are summed in one product."""


def gptq_block(
    reference: BlockModel,
    current: BlockModel,
    number: int,
    originals: Batches,
    batches: Batches,
    specs: Mapping[str, WeightSpec],
    options: GptqOptions,
    check: Callable[[], None],
) -> dict[str, QuantizedWeight]:
    """Quantize the modules `specs` (by their names in the model) of block `number`, which both models have loaded.

    `originals`, `batches`: the block's inputs in the original model and in the quantized one. The block of `current`
    holds the quantized weights afterwards.
    """
    chosen: dict[str, QuantizedWeight] = {}
    with rounded_activations(current, specs):
        order = stages(current, number, batches[0], list(specs))
        for part in _finished(current.names[number], order[-1:], specs):
            reference.settle(part)
        for place, stage in enumerate(order):
            moments = _moments(reference, current, number, originals, batches, stage[0], check)
            for name in stage:
                weight = reference.model.get_submodule(name).weight
                quantized = quantize_drifted(weight, moments, specs[name], options, check)
                current.model.get_submodule(name).weight.data = quantized.dequantize()
                chosen[name] = quantized
            for part in _finished(current.names[number], order[place + 1 :], specs):
                current.settle(part)
    return chosen


def _finished(block: str, to_come: Sequence[Sequence[str]], specs: Iterable[str]) -> set[str]:
    """The block's parts (attention, MLP) that hold layers, but none of the stages to come; none when none come."""
    depth = block.count(".") + 2
    parts = {".".join(name.split(".")[:depth]) for name in specs if name.count(".") >= depth}
    left = {".".join(name.split(".")[:depth]) for stage in to_come for name in stage}
    return parts - left if to_come else set()


class Moments:
    """H = Σ x̂ x̂ᵀ and C = Σ (x - x̂) x̂ᵀ over inputs of the original (x) and of the quantized model (x̂).

    Add everything before reading anything.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self._upper = torch.zeros(features, features, device=device)
        self._cross = torch.zeros_like(self._upper)

    def add(self, wanted: torch.Tensor, given: torch.Tensor) -> None:
        """Both fp32 `[tokens, features]`; `wanted` is overwritten."""
        for start in range(0, given.shape[1], STRIP):  # H is symmetric: what lies below the strips is not computed
            self._upper[start : start + STRIP, start:].addmm_(given[:, start : start + STRIP].t(), given[:, start:])
        self._cross.addmm_(wanted.sub_(given).t(), given)

    @cached_property
    def hessian(self) -> torch.Tensor:
        """H, fp32 `[features, features]`."""
        return self._upper.triu_().add_(self._upper.triu(1).t())

    @cached_property
    def drift(self) -> torch.Tensor:
        """C (H + λ)⁻¹; W times this is what W must gain to make up for the drift."""
        factor = torch.linalg.cholesky(damp(self.hessian, DRIFT_DAMPING))
        solved = torch.cholesky_solve(self._cross.t(), factor).t()
        del self._cross  # as large as H, and of no more use
        return solved


def quantize_drifted(
    weight: torch.Tensor, moments: Moments, spec: WeightSpec, options: GptqOptions, check: Callable[[], None]
) -> QuantizedWeight:
    """GPTQ of the weight that gives, on the quantized model's inputs, what `weight` gives on the original's."""
    weight = weight.to(moments.hessian.device, torch.float32)
    return quantize_gptq(weight + weight @ moments.drift, moments.hessian, spec, options, check)


def _moments(
    reference: BlockModel,
    current: BlockModel,
    number: int,
    originals: Batches,
    batches: Batches,
    module: str,
    check: Callable[[], None],
) -> Moments:
    before = inputs_of(reference, number, originals, module, check)
    now = inputs_of(current, number, batches, module, check)
    moments = None
    for wanted, given in zip(before, now, strict=True):
        moments = moments or Moments(given.shape[1], given.device)
        moments.add(wanted, given)
    assert moments is not None  # noqa: S101 - there is always a batch
    return moments
