"""From a model folder and a plan to a quantized model folder, in pieces of a few megabytes.

Rounding to nearest looks at one row at a time, and the output's layout is known before the first weight is read. So a
block of rows is read, rounded and written to its place, and the next one is read meanwhile: peak memory is that of the
libraries plus a few blocks, whatever the model's size. A method that needs whole matrices will hold one matrix; it fits
the same loop with larger blocks.

The folder holds weights, config.json, tokenizer, chat template, generation config and licence, each by name: code and
unknown files of a stranger's folder do not travel. Nothing in it depends on the day or the machine.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from quantstudio.core.disk import disk_problem
from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.first_layers import shortened_config
from quantstudio.core.model_files import CONFIG, MAX_CONFIG_BYTES, read_header, read_json_object
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import FLOAT_DTYPES, Part
from quantstudio.core.plan import LayerPlan, QuantizationPlan
from quantstudio.core.recipe import Recipe
from quantstudio.core.result import KeptLayer, Quantization, Sizes
from quantstudio.core.safety import require_safe
from quantstudio.engine.architecture import Architecture, Fusion, inspect_architecture
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.formats.compressed_tensors import (
    StoredModule,
    encode_rows,
    encode_whole,
    encoding_for,
    layout,
    quantization_config,
)
from quantstudio.engine.measure.memory import peak_rss
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.model_card import write_model_card
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.safetensors_io import CheckpointReader, CheckpointWriter, NewTensor

BLOCK_WEIGHTS = 1 << 23
"""Weights in a block: 16 MB of bf16, large enough that starting a read costs nothing."""

READ_AHEAD = 2
MB = 1_000_000

COMPANIONS = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    | {"vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}
    | {"tekken.json", "chat_template.jinja", "chat_template.json", "generation_config.json"}
    | {"preprocessor_config.json", "processor_config.json"}
)
"""Files that are copied beside config.json and the weights, when they are there."""

LICENSE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
LICENSE_SUFFIXES = frozenset({"", ".txt", ".md"})
MAX_COMPANION_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class _Task:
    """What becomes of one tensor of the source."""

    source: str
    shape: tuple[int, ...]
    modules: tuple[StoredModule, ...] = ()
    """Modules that it is quantized for: usually one; embedding and head where a tied model becomes two."""
    kept_as: tuple[NewTensor, ...] = ()
    """Tensors that it is written to unquantized."""
    names: dict[str, str] = field(default_factory=dict)
    """Each module's name in transformers → its name in the source's files, by which methods know it."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows `start` to `stop` of a task's tensor; a row is the last dimension."""

    task: _Task
    start: int
    stop: int
    last: bool


def quantize_model(
    info: ModelInfo,
    plan: QuantizationPlan,
    recipe: Recipe,
    out: Path,
    reporter: Reporter,
    chosen: Chosen | None = None,
) -> Quantization:
    """Write the quantized model into `out`, an existing empty folder, and say what was done.

    `info` may describe the first layers of the folder's model alone; only they are then read and written.

    What `chosen` holds is written as it is; everything else is rounded to nearest from the source.

    Modules that transformers does not build as linear layers stay in bf16 and are named in the result.
    Raises LayerMisfit, ModelUnsupported, ModelUnsafe, ModelDamaged, BadWeights, DiskProblem, and Cancelled between
    blocks. After an exception `out` holds pieces, which the caller removes.
    """
    started = time.monotonic()
    plan.require()
    require_safe(info.path)
    architecture = inspect_architecture(info)
    layers = _verified(plan, architecture)
    with CheckpointReader(info.path) as reader, _disk_errors():
        tasks = _tasks(reader, info, layers, architecture, plan)
        tensors = [tensor for task in tasks for tensor in _outputs(task)]
        tensors += [tensor for fusion in architecture.fusions for tensor in _fused(fusion, reader)]
        with CheckpointWriter(out, tensors, recipe.output.shard_mb * MB) as writer:
            _carry_out(tasks, reader, writer, reporter, chosen)
            _write_fused(architecture, reader, writer, reporter)
            writer.finish()
        _copy_companions(info.path, out)
        modules = [module for task in tasks for module in task.modules]
        _write_config(info, out, modules, architecture, plan)
        parts = _parts(info, layers, architecture)
        quantization = Quantization(
            label=recipe.label,
            quantized_layers=len(modules),
            kept=tuple(KeptLayer(name=layer.slot.module, reason=layer.reason) for layer in layers if not layer.spec),
            original_sizes=plan.original_sizes,
            sizes=_sizes(writer.files, parts),
            parameters=info.parameters,
            original_parameters=info.parameters + info.removed_parameters,
            layers=info.layers,
            removed_layers=info.removed_layers,
            layer_bits_per_weight=_bits_per_weight(writer.files, modules, parts),
            seconds=time.monotonic() - started,
            peak_rss=peak_rss(),
        )
        write_model_card(out, recipe, quantization, None, license=info.license)
    return quantization


def _verified(plan: QuantizationPlan, architecture: Architecture) -> list[LayerPlan]:
    """The plan, with every matrix that is no linear layer after all kept, and the reason said."""
    problems = {layer.slot.module: architecture.why_not(layer.slot) for layer in plan.layers if layer.spec}
    vocabulary = {layer.slot.module for layer in plan.layers if layer.slot.part in (Part.EMBEDDING, Part.HEAD)}
    if plan.shared_table and (problem := next((problems[name] for name in vocabulary if problems[name]), "")):
        problems |= dict.fromkeys(vocabulary, problem)
    layers = [
        replace(layer, spec=None, reason=problems[layer.slot.module]) if problems.get(layer.slot.module) else layer
        for layer in plan.layers
    ]
    if not any(layer.spec for layer in layers):
        reasons = sorted({layer.reason for layer in layers})
        raise ModelUnsupported(
            "Nothing in this model can be quantized.",
            why=f"Its weights are no linear layers: {'; '.join(reasons)}.",
            hint="Choose a model whose layers are linear layers, such as Llama, Qwen, Gemma or Mistral.",
            field="model.id",
        )
    return layers


def _tasks(
    reader: CheckpointReader,
    info: ModelInfo,
    layers: list[LayerPlan],
    architecture: Architecture,
    plan: QuantizationPlan,
) -> list[_Task]:
    """One task for each tensor of the source, in the order of its files, which is the fastest to read."""
    by_tensor: dict[str, list[LayerPlan]] = {}
    for layer in layers:
        by_tensor.setdefault(layer.slot.tensor, []).append(layer)
    left_out = {name for fusion in architecture.fusions for name, _ in fusion.sources}
    left_out |= reader.tensors.keys() - {tensor.name for tensor in info.tensors}
    tasks = []
    for name, stored in reader.tensors.items():
        if name in left_out:
            continue
        modules, kept, names = [], [], {}
        for layer in by_tensor.get(name, []):
            slot, spec = layer.slot, layer.spec
            if spec:
                shares = plan.shared_table and slot.part is Part.HEAD
                encoding = encoding_for(spec, slot.part)
                target = architecture.modules[slot.module]
                names[target] = slot.module
                modules.append(StoredModule(target, slot.rows, slot.columns, spec, encoding, shares))
            elif not (plan.tied_output and slot.part is Part.HEAD):
                own_head = info.tied and slot.part is Part.HEAD
                kept.append(f"{architecture.modules.get(slot.module, slot.module)}.weight" if own_head else name)
        if name not in by_tensor:
            kept.append(name)
        new = tuple(NewTensor(kept_name, _kept_dtype(stored.dtype), stored.shape) for kept_name in kept)
        tasks.append(_Task(name, stored.shape, tuple(modules), new, names))
    return tasks


def _kept_dtype(dtype: str) -> str:
    return "BF16" if dtype in FLOAT_DTYPES else dtype


def _fused(fusion: Fusion, reader: CheckpointReader) -> list[NewTensor]:
    """What a fusion will give, found by fusing shapes."""
    dtype = _kept_dtype(reader.tensors[fusion.sources[0][0]].dtype)
    shapes = fusion.fuse(lambda name: torch.empty(reader.tensors[name].shape, device="meta"))
    return [NewTensor(name, dtype, tuple(tensor.shape)) for name, tensor in shapes.items()]


def _write_fused(
    architecture: Architecture, reader: CheckpointReader, writer: CheckpointWriter, reporter: Reporter
) -> None:
    """Unlike everything else this holds whole tensors: the experts of one layer at a time, twice."""
    for number, fusion in enumerate(architecture.fusions):
        reporter.progress(number, len(architecture.fusions), "tensors", fusion.target)
        for name, tensor in fusion.fuse(reader.read).items():
            writer.write(name, tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor)


def _outputs(task: _Task) -> list[NewTensor]:
    return [tensor for module in task.modules for tensor in layout(module)] + list(task.kept_as)


def _carry_out(
    tasks: list[_Task],
    reader: CheckpointReader,
    writer: CheckpointWriter,
    reporter: Reporter,
    chosen: Chosen | None,
) -> None:
    total = sum(reader.tensors[task.source].nbytes for task in tasks)
    done = 0
    zero_points: dict[str, list[torch.Tensor]] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as pool:
        for block, rows in _read_ahead(_blocks(tasks), reader, pool):
            reporter.progress(done, total, "bytes", block.task.source)
            for module in block.task.modules:
                weight = _rounded(module, block, rows, chosen)
                _write_block(module, block, weight, writer, zero_points)
            changed = chosen.tensor(block.task.source) if chosen and block.task.kept_as else None
            for tensor in block.task.kept_as:
                rows = rows if changed is None else _rows(changed, block)
                kept = rows.to(torch.bfloat16) if tensor.dtype == "BF16" else rows
                writer.write(tensor.name, kept, block.start)
            done += rows.numel() * rows.element_size()
    reporter.progress(done, total, "bytes")


def _rounded(module: StoredModule, block: _Block, rows: torch.Tensor, chosen: Chosen | None) -> QuantizedWeight:
    """These rows as the method chose them, or rounded to nearest: from what it made of the tensor, if it did."""
    if chosen and (weight := chosen.weight(block.task.names[module.module])):
        part = slice(block.start, block.stop)
        zeros = None if weight.zero_points is None else weight.zero_points[part]
        return QuantizedWeight(weight.codes[part], weight.scales[part], zeros, weight.spec)
    changed = chosen.tensor(block.task.source) if chosen else None
    return quantize_rtn(rows if changed is None else _rows(changed, block), module.spec, block.task.source)


def _rows(tensor: torch.Tensor, block: _Block) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])[block.start : block.stop] if tensor.dim() else tensor.reshape(1, 1)


def _write_block(
    module: StoredModule,
    block: _Block,
    weight: QuantizedWeight,
    writer: CheckpointWriter,
    zero_points: dict[str, list[torch.Tensor]],
) -> None:
    for name, tensor in encode_rows(weight, module).items():
        writer.write(name, tensor, block.start)
    if weight.zero_points is not None:
        zero_points.setdefault(module.module, []).append(weight.zero_points)
    if block.last and not module.shares_codes:
        collected = zero_points.pop(module.module, None)
        whole = encode_whole(module, torch.cat(collected) if collected else None)
        for name, tensor in whole.items():
            writer.write(name, tensor)


def _blocks(tasks: list[_Task]) -> Iterator[_Block]:
    for task in tasks:
        columns = task.shape[-1] if task.shape else 1
        rows = NewTensor(task.source, "U8", task.shape).rows
        step = max(1, BLOCK_WEIGHTS // max(1, columns))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield _Block(task, start, stop, stop == rows)


def _read_ahead(
    blocks: Iterator[_Block], reader: CheckpointReader, pool: ThreadPoolExecutor
) -> Iterator[tuple[_Block, torch.Tensor]]:
    waiting: deque[tuple[_Block, Future[torch.Tensor]]] = deque()
    for block in blocks:
        waiting.append((block, pool.submit(reader.read_rows, block.task.source, block.start, block.stop)))
        if len(waiting) > READ_AHEAD:
            ready, future = waiting.popleft()
            yield ready, future.result()
    for ready, future in waiting:
        yield ready, future.result()


def _write_config(
    info: ModelInfo, out: Path, modules: list[StoredModule], architecture: Architecture, plan: QuantizationPlan
) -> None:
    config = read_json_object(info.path / CONFIG, MAX_CONFIG_BYTES)
    config.pop("auto_map", None)  # names Python files of the source, which are neither run nor copied
    quantized = {module.module for module in modules}
    tied = plan.tied_output if info.tied else False
    nested = config.get("text_config")
    for section in (config, nested) if isinstance(nested, dict) else (config,):
        section.pop("torch_dtype", None)
        section["dtype"] = "bfloat16"
        section["tie_word_embeddings"] = tied
    if info.removed_layers:
        config |= shortened_config(config, info.layers)
    ignore = [name for name in architecture.linears if name not in quantized]
    config["quantization_config"] = quantization_config(modules, ignore)
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    (out / CONFIG).write_text(text + "\n", encoding="utf-8")


def _copy_companions(source: Path, out: Path) -> None:
    for path in sorted(source.iterdir()):
        licence = path.name.upper().startswith(LICENSE_NAMES) and path.suffix in LICENSE_SUFFIXES
        wanted = path.name in COMPANIONS or licence
        if wanted and path.is_file() and path.stat().st_size <= MAX_COMPANION_BYTES:
            # Not shutil.copy: permissions and dates are the source's own business.
            shutil.copyfile(path, out / path.name)


def _parts(info: ModelInfo, layers: list[LayerPlan], architecture: Architecture) -> dict[str, Part]:
    """Part of every module and tensor that can occur in the output."""
    parts: dict[str, Part] = {tensor.name: tensor.part for tensor in info.tensors}
    for layer in layers:
        module = architecture.modules.get(layer.slot.module, layer.slot.module)
        parts[module] = parts[f"{module}.weight"] = layer.slot.part
    return parts


def _sizes(files: list[Path], parts: dict[str, Part]) -> Sizes:
    total = dict.fromkeys(Part, 0)
    for path in files:
        for tensor in read_header(path):
            module = tensor.name.rpartition(".")[0]
            named = tensor.name if tensor.name in parts else module
            total[parts.get(named, Part.LAYER)] += tensor.nbytes  # fused experts have names of their own
    return Sizes(
        embedding=total[Part.EMBEDDING], layers=total[Part.LAYER], head=total[Part.HEAD], rest=total[Part.REST]
    )


def _bits_per_weight(files: list[Path], modules: list[StoredModule], parts: dict[str, Part]) -> float:
    inner = [module for module in modules if parts[module.module] is Part.LAYER]
    names = {tensor.name for module in inner for tensor in layout(module)}
    stored = sum(tensor.nbytes for path in files for tensor in read_header(path) if tensor.name in names)
    weights = sum(module.rows * module.columns for module in inner)
    return stored * 8 / weights if weights else 0.0


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if problem := disk_problem(error):
            raise problem from error
        raise
