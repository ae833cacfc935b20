"""The model that learns and the model it learns from, built from one copy of the weights on disk.

The teacher is the unquantized original in bf16, frozen. The student is the same network with every planned matrix on
its grid. Under LoRA both share one copy of the weights in memory; the student adds only its small matrices. Head and
embedding of a tied model stay one parameter, whatever grids they are seen on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from quantstudio.core.model_parts import Part
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.architecture import Architecture
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.train.layers import TrainedEmbedding, TrainedLinear, embedding_factor, see_as_bf16
from quantstudio.engine.train.shorten import shorten


@dataclass(frozen=True)
class Training:
    """What the student's weights are and what of them learns."""

    lora_rank: int = 0
    """0: all weights learn."""
    rounds: bool = True
    """False: a plain fine-tune, nothing is on a grid."""
    learned_below: int = 8
    """Grids with fewer bits have scales that learn; the others round to nearest at every step."""
    seed: int = 0
    first_layers: int = 0
    """How many of the teacher's decoder layers the student has; 0: all of them."""


@dataclass
class Student:
    """`model` with trained layers in place, and how the files name what is in it."""

    model: PreTrainedModel
    modules: dict[str, TrainedLinear | TrainedEmbedding] = field(default_factory=dict)
    """Module name in the files → layer, for every matrix that is on a grid."""
    tensors: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    """Full name in the files → (module, attribute) of everything else that trains."""

    def begin_at(self, found: Chosen) -> None:
        """Start every matrix whose scales learn on what another method has found for it."""
        for name, layer in self.modules.items():
            if isinstance(layer, TrainedLinear) and layer.gain is not None and (weight := found.weight(name)):
                layer.begin_at(weight)

    def results(self) -> Iterator[tuple[str, QuantizedWeight]]:
        """Every matrix on its grid, one at a time, by its module's name in the files."""
        for name, layer in self.modules.items():
            yield name, layer.result()

    @torch.no_grad()
    def changed(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every other tensor that has been trained, as it is seen: bf16."""
        for name, (module, attribute) in self.tensors.items():
            value = module.merged() if isinstance(module, TrainedLinear) and attribute == "weight" else None
            yield name, (getattr(module, attribute) if value is None else value).to(torch.bfloat16)

    def trained(self) -> list[nn.Parameter]:
        return [value for value in self.model.parameters() if value.requires_grad]


def make_student(
    teacher: PreTrainedModel, plan: QuantizationPlan, architecture: Architecture, training: Training
) -> Student:
    """A student of `teacher` for this plan. The teacher is frozen; under LoRA its weights are shared, else copied."""
    teacher.requires_grad_(requires_grad=False)
    shared = {id(value): value for value in teacher.parameters()}
    model = copy.deepcopy(teacher, shared)
    model.config.use_cache = False
    if training.first_layers:
        shorten(model, training.first_layers)
    student = Student(model)
    builder = _Builder(student, architecture, training)
    for layer in plan.layers:
        spec = layer.spec if training.rounds and not architecture.why_not(layer.slot) else None
        target = architecture.modules.get(layer.slot.module)
        if target is not None:
            builder.place(target, layer.slot.module, layer.slot.tensor, layer.slot.part, spec)
    builder.train_the_rest()
    return student


class _Builder:
    """Puts trained layers into a copied model, one parameter for each tensor of the files."""

    def __init__(self, student: Student, architecture: Architecture, training: Training) -> None:
        self._student, self._training = student, training
        self._names = architecture.keys
        self._masters: dict[int, nn.Parameter] = {}
        self._generator = torch.Generator().manual_seed(training.seed)
        self._done: set[str] = set()

    def place(self, target: str, module: str, tensor: str, part: Part, spec: WeightSpec | None) -> None:
        """Replace the module `target` (its name in the model) by a layer on `spec`."""
        old = self._student.model.get_submodule(target)
        new = self._layer(old, part, spec)
        if new is None:
            return
        self._student.model.set_submodule(target, new)
        if spec is not None:
            self._student.modules[module] = new
        elif new.weight.requires_grad or self._has_lora(new):
            self._student.tensors[tensor] = (new, "weight")
        self._done.add(tensor)

    def train_the_rest(self) -> None:
        """Norms, biases and kept tensors of other kinds: seen as bf16, and trained unless LoRA is."""
        if self._training.lora_rank:
            return
        named = dict(self._student.model.named_modules())
        for source, name in self._names.items():
            owner, _, attribute = name.rpartition(".")
            module = named.get(owner)
            if module is None or source in self._done:
                continue
            value = getattr(module, attribute, None)
            if not isinstance(value, nn.Parameter) or not value.is_floating_point():
                continue
            if isinstance(module, TrainedLinear):
                setattr(module, attribute, self._master(value))
            else:
                see_as_bf16(module, attribute, self._master(value))
            self._student.tensors[source] = (module, attribute)

    def _layer(self, old: nn.Module, part: Part, spec: WeightSpec | None) -> TrainedLinear | TrainedEmbedding | None:
        if isinstance(old, nn.Linear):
            layer = TrainedLinear(self._master(old.weight), old.bias, spec)
            if spec is not None and spec.bits < self._training.learned_below:
                layer.learn_scales()
            if self._training.lora_rank and part is Part.LAYER:
                layer.add_lora(self._training.lora_rank, self._generator)
            return layer
        if isinstance(old, nn.Embedding) and (factor := embedding_factor(old)) is not None:
            return TrainedEmbedding(self._master(old.weight), spec, factor)
        return None

    def _master(self, value: Any) -> nn.Parameter:
        """The parameter that trains for this one: one for all places that share it."""
        if self._training.lora_rank or not value.is_floating_point():
            return value
        if id(value) not in self._masters:
            self._masters[id(value)] = nn.Parameter(value.detach().to(torch.float32, copy=True))
        return self._masters[id(value)]

    @staticmethod
    def _has_lora(layer: nn.Module) -> bool:
        return isinstance(layer, TrainedLinear) and layer.lora_a is not None
