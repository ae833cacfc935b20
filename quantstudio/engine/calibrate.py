"""Calibrated methods: integers chosen by what text does to a model, one block at a time.

The model is never in memory as a whole. Each block is loaded, quantized on the text's activations, and put into
`Chosen`; the activations then pass the quantized block and become the next one's input. After a kill the finished
blocks are run again (which is quick) instead of kept activations being read: they give the same bits, and nothing of
that size has to be written.
"""

from __future__ import annotations

from pathlib import Path

import torch

from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import LayerPlan, QuantizationPlan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import Awq, FineTune, Gptq, SmoothQuant
from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.calibration.blocks import BlockModel, Read
from quantstudio.engine.calibration.gptq_block import Moments, gptq_block, quantize_drifted
from quantstudio.engine.calibration.scaled_block import scaled_block
from quantstudio.engine.calibration.streams import Batches, advance, in_batches, rounded_activations
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.kernels.activations import fake_quantize_per_token
from quantstudio.engine.load import resolve_device
from quantstudio.engine.memory import keep_freed_memory, trim_freed_memory
from quantstudio.engine.methods.gptq import GptqOptions
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.safetensors_io import CheckpointReader

CHOSEN = "calibrated"
HEAD = "head"
_ROUNDED_AT_ONCE = 1 << 22
"""Weights of an embedding."""


def choose(
    info: ModelInfo,
    plan: QuantizationPlan,
    recipe: Recipe,
    work: Path,
    ids: torch.Tensor,
    reporter: Reporter,
    trained: Chosen | None = None,
) -> Chosen:
    """Choose the integers of every layer in the blocks, and of the head where it gets the layers' grid.

    `ids`: int64 `[sequences, length]`, the calibration text. `trained`: tensors that take the place of the source's.
    What is chosen lies in `work`, block by block; a second call goes on after the last finished block and ends with the
    same bytes. Peak memory: two copies of a block, its matrices in fp32 one at a time, and the activations, four times.
    Raises ModelUnsupported, ModelDamaged, BadWeights, `Cancelled` (between batches and groups of columns), OSError.
    """
    keep_freed_memory()
    chosen = Chosen(work / CHOSEN)
    with CheckpointReader(info.path) as reader, torch.inference_mode():
        _Run(info, plan, recipe, chosen, reading(reader, trained), reporter).carry_out(ids)
        if trained:
            _take_over(info, chosen, trained)
    return chosen


def _take_over(info: ModelInfo, chosen: Chosen, trained: Chosen) -> None:
    """Put trained tensors that were not quantized beside what was: they are written, or rounded to nearest, as well."""
    module_of = {slot.tensor: slot.module for slot in info.slots}
    for number, tensor in enumerate(info.tensors):
        part, module = f"trained.{number}", module_of.get(tensor.name, "")
        if chosen.has(part) or chosen.spec(module):
            continue
        value = trained.tensor(tensor.name)
        if value is not None:
            chosen.put(part, {}, {tensor.name: value})


def reading(reader: CheckpointReader, trained: Chosen | None) -> Read:
    """How tensors of the source are read: what was trained goes before what the files hold."""

    def read(name: str) -> torch.Tensor:
        changed = trained.tensor(name) if trained else None
        return reader.read(name) if changed is None else changed

    return read


class _Run:
    """One model on its way through its blocks."""

    def __init__(
        self, info: ModelInfo, plan: QuantizationPlan, recipe: Recipe, chosen: Chosen, read: Read, reporter: Reporter
    ) -> None:
        architecture = inspect_architecture(info)
        device = torch.device(resolve_device(recipe.machine.device))
        layers = {
            architecture.modules[layer.slot.module]: layer
            for layer in plan.quantized
            if not architecture.why_not(layer.slot)
        }
        self._read, self._layers, self._files = read, layers, architecture.file_names
        self._specs = {name: layer.spec for name, layer in layers.items() if layer.spec}
        self._embedding = _named(layers, Part.EMBEDDING)
        head = _named(layers, Part.HEAD)
        self._gptq = gptq_options(recipe)
        self._head = head if head and self._gptq and self._specs[head].bits < 8 else ""
        self._method, self._chosen, self._reporter = recipe.method, chosen, reporter
        inner = [name for name, layer in layers.items() if layer.slot.part is Part.LAYER]
        self._current = BlockModel(info, architecture, inner, read, device)
        self._reference = BlockModel(info, architecture, inner, read, device) if self._gptq else None

    def carry_out(self, ids: torch.Tensor) -> None:
        """Finish every part that is not finished."""
        names = self._current.names
        total = len(names) + bool(self._head)
        if all(self._chosen.has(part) for part in [*map(_part, range(len(names))), *([HEAD] if self._head else [])]):
            return
        id_batches = in_batches(ids, self._current.device)
        originals, batches = self._first_inputs(id_batches)
        for number, name in enumerate(names):
            self._reporter.progress(number, total, "blocks", name)
            self._block(number, originals, batches)
        if self._head:
            self._reporter.progress(len(names), total, "blocks", self._head)
            self._quantize_head(id_batches, originals, batches)
        self._reporter.progress(total, total, "blocks")

    def _first_inputs(self, id_batches: list[torch.Tensor]) -> tuple[Batches, Batches]:
        """What the first block is given in the original model (for GPTQ only) and with the embedding as it is saved."""
        originals: Batches = []
        if self._reference:
            self._reference.load_shell()
            originals = [self._reference.first_inputs(batch) for batch in id_batches]
            self._reference.drop()
        self._current.load_shell()
        if self._embedding:
            self._round_embedding(self._specs[self._embedding])
        batches = [self._current.first_inputs(batch) for batch in id_batches]
        self._current.drop()
        return originals, batches

    def _round_embedding(self, spec: WeightSpec) -> None:
        """In place and some rows at a time: of a small model with many words it is the largest matrix by far."""
        table = self._current.model.get_submodule(self._embedding).weight.data
        for rows in table.split(max(1, _ROUNDED_AT_ONCE // table.shape[1])):
            rows.copy_(quantize_rtn(rows.cpu(), spec, self._embedding).dequantize())

    def _block(self, number: int, originals: Batches, batches: Batches) -> None:
        """Quantize a block, unless that has been done, and let the text pass it."""
        name = self._current.names[number]
        models = [model for model in (self._reference, self._current) if model]
        for model in models:
            model.load(name)
        specs = {module: spec for module, spec in self._specs.items() if module.startswith(f"{name}.")}
        if not self._chosen.has(_part(number)):
            weights, tensors = self._quantize_block(number, originals, batches, specs)
            self._put(_part(number), weights, tensors)
        self._install(name, specs)
        if number + 1 < len(self._current.names) or self._head:
            with rounded_activations(self._current, specs):
                advance(self._current, number, batches, self._reporter.check_cancel)
            if self._reference:
                advance(self._reference, number, originals, self._reporter.check_cancel)
        for model in models:
            model.drop(name)
        trim_freed_memory()  # what one block leaves between what stays would add up over the blocks

    def _quantize_block(
        self, number: int, originals: Batches, batches: Batches, specs: dict[str, WeightSpec]
    ) -> tuple[dict[str, QuantizedWeight], dict[str, torch.Tensor]]:
        check = self._reporter.check_cancel
        if self._reference and self._gptq:
            weights = gptq_block(self._reference, self._current, number, originals, batches, specs, self._gptq, check)
            return weights, {}
        if not isinstance(self._method, Awq | SmoothQuant):
            raise TypeError(f"{self._method.kind} is not calibrated")
        return scaled_block(self._current, number, batches, specs, self._method, check)

    def _put(self, part: str, weights: dict[str, QuantizedWeight], tensors: dict[str, torch.Tensor]) -> None:
        by_slot = {self._layers[name].slot.module: weight for name, weight in weights.items()}
        self._chosen.put(part, by_slot, {self._files[key]: value for key, value in tensors.items()})

    def _install(self, block: str, specs: dict[str, WeightSpec]) -> None:
        """Give the block what was chosen for it, read back from the disk: after a kill it is the very same."""
        model = self._current.model
        for name in specs:
            if weight := self._chosen.weight(self._layers[name].slot.module):
                self._current.put(f"{name}.weight", weight.dequantize())
        for key, _ in model.get_submodule(block).named_parameters(prefix=block):
            changed = self._chosen.tensor(self._files[key]) if key in self._files else None
            if changed is not None:
                self._current.put(key, changed)

    def _quantize_head(self, id_batches: list[torch.Tensor], originals: Batches, batches: Batches) -> None:
        """The head, on what the last norm hands it."""
        if not self._reference or not self._gptq or self._chosen.has(HEAD):
            return
        spec, slot = self._specs[self._head], self._layers[self._head].slot
        moments = Moments(slot.columns, self._current.device)
        for model in (self._reference, self._current):
            model.load_shell()
        for ids, before, now in zip(id_batches, originals, batches, strict=True):
            self._reporter.check_cancel()
            wanted, given = self._reference.head_inputs(ids, before), self._current.head_inputs(ids, now)
            given = fake_quantize_per_token(given) if spec.activations is ActivationKind.INT8_TOKEN else given
            moments.add(wanted.flatten(0, -2).float(), given.flatten(0, -2).float())
        for model in (self._reference, self._current):
            model.drop()
        weight = quantize_drifted(self._read(slot.tensor), moments, spec, self._gptq, self._reporter.check_cancel)
        self._put(HEAD, {self._head: weight}, {})


def _part(number: int) -> str:
    return f"block.{number}"


def _named(layers: dict[str, LayerPlan], part: Part) -> str:
    return next((name for name, layer in layers.items() if layer.slot.part is part), "")


def gptq_options(recipe: Recipe) -> GptqOptions | None:
    """How the recipe's method carries out GPTQ; None when it does not."""
    method = recipe.method
    if isinstance(method, Gptq):
        return GptqOptions(method.damping, method.act_order, method.block_size)
    return GptqOptions() if isinstance(method, FineTune) else None
