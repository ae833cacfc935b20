"""How layers are rounded while their sensitivity is measured: to nearest, or as the run's own GPTQ will do it.

It matters which. GPTQ takes away four fifths of what rounding costs in some layers and a third in others (starter
model, W4 g128: what is left is 0.13 to 0.73 of it, layer by layer), so bits allotted by rounding to nearest protect
layers that GPTQ needs no bits for. Layers are quantized one by one, on the original model's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.methods.gptq import GptqOptions, quantize_gptq
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter

SEQUENCES = 32
"""Pieces of text that layers are quantized on here; a run takes more."""
TOKENS_AT_ONCE = 2048

Rounded = Callable[[str, nn.Linear, WeightSpec], torch.Tensor]
"""The weight that a layer (its name, its module) would have, shaped like its own."""


def rounded_to_nearest(name: str, module: nn.Linear, spec: WeightSpec) -> torch.Tensor:
    """Its weight on the grid of `spec`, each value at the nearest point. Raises BadWeights."""
    weight = module.weight.data
    return quantize_rtn(weight.cpu(), spec, name).dequantize().to(weight)


class RoundedByGptq:
    """GPTQ of single layers, each layer and grid worked out once. Holds Σ x xᵀ of every layer, fp32."""

    def __init__(
        self,
        model: PreTrainedModel,
        modules: Iterable[nn.Linear],
        ids: torch.Tensor,
        options: GptqOptions,
        reporter: Reporter,
    ) -> None:
        """`ids`: int64 `[sequences, length]` on the model's device. Raises Cancelled between batches."""
        self._options, self._check = options, reporter.check_cancel
        self._known: dict[tuple[nn.Linear, WeightSpec], QuantizedWeight] = {}
        self._hessians = _products_of_inputs(model, modules, _spread(ids), reporter)

    def __call__(self, _name: str, module: nn.Linear, spec: WeightSpec) -> torch.Tensor:
        """Raises BadWeights, and Cancelled between groups of columns."""
        weight, key = module.weight.data, (module, spec)
        if key not in self._known:
            self._known[key] = quantize_gptq(weight, self._hessians[module], spec, self._options, self._check)
        return self._known[key].dequantize().to(weight)


def _spread(ids: torch.Tensor) -> torch.Tensor:
    return ids[torch.linspace(0, len(ids) - 1, min(len(ids), SEQUENCES)).round().long()]


def _products_of_inputs(
    model: PreTrainedModel, modules: Iterable[nn.Linear], ids: torch.Tensor, reporter: Reporter
) -> dict[nn.Module, torch.Tensor]:
    sums: dict[nn.Module, torch.Tensor] = {}

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen = inputs[0].flatten(0, -2).float()
        if module not in sums:
            sums[module] = torch.zeros(seen.shape[1], seen.shape[1], device=seen.device)
        sums[module].addmm_(seen.t(), seen)

    hooks = [module.register_forward_pre_hook(add) for module in modules]
    try:
        batches = ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1]))
        for number, batch in enumerate(batches):
            reporter.progress(number, len(batches), "batches")
            model(input_ids=batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sums
