"""A whole model with its layers rounded alike, and what that costs: the layers, the rounding, the judge.

`replaced` puts other weights into layers for a while; nothing here changes a model for good.
"""

from __future__ import annotations

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
from quantstudio.core.sensitivity import UniformLoss
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.sensitivity.restart import decoder_blocks
from quantstudio.engine.sensitivity.rounding import Rounded

SCORED_ROWS = 1024
OTHER_GROUPS = (32, 64, 128, PER_CHANNEL)


@dataclass(frozen=True, slots=True)
class Layer:
    name: str
    """In the model's files."""
    module: nn.Linear
    block: int
    specs: Mapping[int, WeightSpec]
    nbytes: Mapping[int, int]


def settable_layers(info: ModelInfo, recipe: Recipe, model: PreTrainedModel) -> tuple[list[Layer], int]:
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
        layers.append(Layer(name, modules[module], blocks(module), specs, nbytes))
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


@dataclass(frozen=True, slots=True)
class Whole:
    """All layers of a model quantized alike."""

    info: ModelInfo
    recipe: Recipe
    layers: Sequence[Layer]
    other_bytes: int
    rounded: Rounded

    def measured(self, recipe: Recipe, bits: int, run: Callable[[], float]) -> UniformLoss | None:
        """What `run` says of it; None when the group size does not divide every layer."""
        planned = {layer.slot.module: layer for layer in _plan(self.info, recipe, bits).quantized}
        if not all(layer.name in planned for layer in self.layers):
            return None
        grids = [(planned[layer.name].slot, planned[layer.name].spec or layer.specs[bits]) for layer in self.layers]
        weights = [
            self.rounded(layer.name, layer.module, spec) for layer, (_, spec) in zip(self.layers, grids, strict=True)
        ]
        with replaced([layer.module for layer in self.layers], weights):
            loss = run()
        nbytes = self.other_bytes + sum(quantized_bytes(slot, spec) for slot, spec in grids)
        return UniformLoss(bits=bits, group_size=recipe.scheme.weight_spec().group_size, nbytes=nbytes, kl=loss)


def with_other_groups(recipe: Recipe, sizes: Sequence[int | str]) -> list[Recipe]:
    """The recipe, and with other groups where its scheme has groups."""
    scheme = recipe.scheme
    mine = getattr(scheme, "group_size", None)
    if mine is None:
        return [recipe]
    others = [scheme.model_copy(update={"group_size": size}) for size in sizes if size != mine]
    return [recipe, *(recipe.model_copy(update={"scheme": other}) for other in others)]


class Judge:
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
def replaced(modules: Sequence[nn.Linear], weights: Sequence[torch.Tensor]) -> Iterator[None]:
    originals = [module.weight.data for module in modules]
    for module, weight in zip(modules, weights, strict=True):
        module.weight.data = weight
    try:
        yield
    finally:
        for module, weight in zip(modules, originals, strict=True):
            module.weight.data = weight
