"""What a model would need on this machine, task by task, before its weights are downloaded. Estimates, as ranges.

From `ModelInfo` (config.json and headers) alone. P is the number of weights, Q those of the layers that are quantized,
S the bytes of the result, L the number of blocks, H the width, V the vocabulary, T the tokens in work at once.

- *Download*: the files, once; the worker streams them (`WORKER_MEMORY`).
- *Quantize* and *measure*: `core.estimate`, which was measured; S on the disk.
- *Chat* at a context of C tokens: the libraries, the weights, and the cache of keys and values, which is
  C × (rows of all k and v projections) × 2 bytes; about a tenth more in passing while a model is loaded.
- *QAT*, all weights or LoRA: `core.working_memory`. The middle, and the times, are what `core.estimate` says of the
  same recipe with the quick preset; the lower end is with activations computed again and one short sequence at once,
  the upper one without and with as many tokens at once as are worth it.
- Speed of a chat: a token of an answer reads every weight once, so it takes S / bandwidth, and `BLOCK_SECONDS` for the
  calls of each block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from quantstudio.core.estimate import (
    BASE_MEMORY,
    DECODE_BYTES_PER_S,
    HEADROOM,
    LIBRARY_MEMORY,
    MEMORY_CORES,
    SPREAD,
    estimate,
)
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, MeasureSection, ModelSection, OnMisfit, Recipe
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import SCHEMES, W2A16, W3A16, W4A16, W8A16, AnyScheme
from quantstudio.core.working_memory import kept_text, training_span

WORKER_MEMORY = 80_000_000
"""A worker that downloads; measured by tests/benchmarks/hub_download.py."""
LINE_BYTES_PER_S = (2e6, 10e6, 100e6)
"""Home lines: slow, usual, fast."""
LOADING_SHARE = 0.1
SCORING_BYTES = 600_000_000
"""Of scoring a model of which only the size is known."""
BLOCK_SECONDS = 3e-4
"""Of Python and small operations for one token in one block: 3–4 ms a token in the starter model's six blocks."""
GPU_BYTES_PER_S = 5e11
SMALLER = (W8A16, W4A16, W3A16, W2A16)
"""Schemes from large to small, to look for one that fits."""
SHORTEST_CHAT = 512


class Task(StrEnum):
    """What a person may want to do with a model."""

    DOWNLOAD = "download"
    QUANTIZE = "quantize"
    MEASURE = "measure"
    CHAT = "chat"
    LORA = "lora"
    QAT = "qat"


class Verdict(StrEnum):
    """Whether there is room: also at the upper end of the range, only below it, or not even at the lower end."""

    FITS = "fits"
    CLOSE = "close"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Range:
    """A guess with its limits."""

    low: float
    middle: float
    high: float

    @staticmethod
    def around(middle: float, share: float) -> Range:
        """`middle` give or take a share of it."""
        return Range(middle * (1 - share), middle, middle * (1 + share))


@dataclass(frozen=True, slots=True)
class Instead:
    """The nearest thing that would fit; empty fields do not apply."""

    scheme: str = ""
    """Label of the scheme with the most bits that fits."""
    context: int = 0
    """The longest context that fits."""
    parameters: int = 0
    """The largest model that would fit, about."""
    task: Task | None = None
    """Another task that reaches nearly the same."""


@dataclass(frozen=True, slots=True)
class Need:
    """One task's needs. Bytes and seconds; `tokens_per_s` for chat only."""

    task: Task
    memory: Range
    disk: int
    seconds: Range | None
    verdict: Verdict
    on_gpu: bool = False
    """Whether `memory` is the GPU's."""
    disk_short: bool = False
    """Whether it is the disk that has no room."""
    tokens_per_s: Range | None = None
    instead: Instead | None = None


def needs(
    info: ModelInfo, machine: Machine, runs_home: Path, *, scheme: AnyScheme, context: int, missing_bytes: int
) -> list[Need]:
    """Every task's needs for a model that is to be quantized by `scheme` and talked to with `context` tokens.

    `missing_bytes` is what a download would still fetch. Never raises.
    """
    found = [_download(missing_bytes, machine)]
    if info.quantized:
        return [*found, _chat(info, info.nbytes, machine, context, recipe=None)]
    recipe = _recipe(scheme)
    costs = estimate(info, recipe, machine, runs_home)
    disk_used = missing_bytes + costs.disk_bytes
    quantize = estimate(info, recipe.model_copy(update={"measure": _unmeasured(recipe)}), machine, runs_home)
    seconds = Range(*_range(quantize.seconds))
    found.append(_fixed(Task.QUANTIZE, costs.quantize_memory_bytes, disk_used, seconds, machine))
    measure = costs.seconds - quantize.seconds
    found.append(_fixed(Task.MEASURE, costs.measure_memory_bytes, disk_used, Range(*_range(measure)), machine))
    found.append(_chat(info, costs.output_bytes, machine, context, recipe=recipe))
    return [*found, *(_training(info, recipe, machine, task, runs_home) for task in (Task.LORA, Task.QAT))]


def chat_memory(info: ModelInfo, weight_bytes: int, context: int) -> Range:
    """Memory of a chat with weights of so many bytes and a full context, in bytes."""
    base = BASE_MEMORY + weight_bytes + context * cache_bytes_per_token(info)
    return Range(base * 0.95, base, base + LOADING_SHARE * weight_bytes)


def cache_bytes_per_token(info: ModelInfo) -> int:
    """Bytes of keys and values in bf16 that each token adds, over all blocks.

    From the rows of k_proj and v_proj; where one matrix makes queries, keys and values (Phi-3, GPT-NeoX), what is left
    of its rows after the queries, which are as wide as the output projection's input; else two full widths a block.
    """
    rows = dict.fromkeys(("kv", "fused", "out"), 0)
    for slot in info.slots:
        name = slot.module.rpartition(".")[2]
        if name in ("k_proj", "v_proj"):
            rows["kv"] += slot.rows
        elif name in ("qkv_proj", "query_key_value", "Wqkv", "c_attn", "W_pack"):
            rows["fused"] += slot.rows
        elif name in ("o_proj", "dense", "out_proj"):
            rows["out"] += slot.columns
    known = rows["kv"] or (max(0, rows["fused"] - rows["out"]) if rows["fused"] and rows["out"] else 0)
    return 2 * (known or 2 * info.layers * info.hidden_size)


def training_range(info: ModelInfo, recipe: Recipe, middle: int) -> Range:
    """Peak memory of training as the recipe says, in bytes, around the estimate of a run of it."""
    if not isinstance(recipe.method, Qat):
        raise TypeError(f"{recipe.method.kind} is not QAT")
    kept = LIBRARY_MEMORY + kept_text(recipe)
    low, high = (kept + nbytes for nbytes in training_span(info, make_plan(info, recipe), recipe.method))
    return Range(min(middle, low), middle, max(middle, high))


def scheme_sizes(info: ModelInfo) -> Iterator[tuple[str, str, int, int]]:
    """(kind, label, bytes, layers that get smaller groups than asked for) after each scheme."""
    for scheme in SCHEMES:
        plan = make_plan(info, _recipe(scheme()))
        yield scheme().kind, scheme().weight_spec().label, plan.sizes.total, len(plan.misfits)


def usable(memory: int) -> int:
    """What jobs may take of so many bytes of memory."""
    return int(memory * (1 - HEADROOM))


def rough_needs(parameters: int, weight_bytes: int) -> tuple[int, int]:
    """(memory to chat with it as int4, memory to quantize and measure it) when only the size is known, in bytes."""
    small = min(weight_bytes, int(parameters * 0.6))
    return BASE_MEMORY + int(small * (1 + LOADING_SHARE)), 2 * BASE_MEMORY + weight_bytes + small + SCORING_BYTES


def _recipe(scheme: AnyScheme) -> Recipe:
    return Recipe(model=ModelSection(), scheme=scheme, layers=LayersSection(on_misfit=OnMisfit.SMALLER))


def _unmeasured(recipe: Recipe) -> MeasureSection:
    return recipe.measure.model_copy(update={"enabled": False})


def _range(middle: float) -> tuple[float, float, float]:
    return middle * SPREAD[0], middle, middle * SPREAD[1]


def _download(missing: int, machine: Machine) -> Need:
    slow, usual, fast = LINE_BYTES_PER_S
    seconds = Range(missing / fast, missing / usual, missing / slow) if missing else None
    return _fixed(Task.DOWNLOAD, WORKER_MEMORY, missing, seconds, machine)


def _fixed(task: Task, memory: int, disk: int, seconds: Range | None, machine: Machine) -> Need:
    return _need(task, Range.around(memory, 0.1), disk, seconds, machine, use_gpu=False)


def _need(
    task: Task, memory: Range, disk: int, seconds: Range | None, machine: Machine, *, use_gpu: bool = True
) -> Need:
    on_gpu = use_gpu and bool(machine.gpu_memory)
    room = usable(machine.gpu_memory if on_gpu else machine.memory)
    verdict = Verdict.NO if memory.low > room else Verdict.CLOSE if memory.high > room else Verdict.FITS
    disk_short = disk > machine.free_disk
    return Need(
        task=task,
        memory=memory,
        disk=disk,
        seconds=seconds,
        verdict=Verdict.NO if disk_short else verdict,
        on_gpu=on_gpu,
        disk_short=disk_short,
    )


def _chat(info: ModelInfo, weight_bytes: int, machine: Machine, context: int, *, recipe: Recipe | None) -> Need:
    found = _need(Task.CHAT, chat_memory(info, weight_bytes, context), 0, None, machine)
    bandwidth = GPU_BYTES_PER_S if found.on_gpu else DECODE_BYTES_PER_S * min(machine.cores, MEMORY_CORES)
    per_s = 1 / (weight_bytes / bandwidth + BLOCK_SECONDS * max(1, info.layers))
    instead = None
    if found.verdict is Verdict.NO:
        room = usable(machine.gpu_memory if found.on_gpu else machine.memory)
        instead = _chat_instead(info, weight_bytes, room, context, recipe)
    speed = Range(per_s / SPREAD[1], per_s, per_s / SPREAD[0])
    return Need(
        task=Task.CHAT,
        memory=found.memory,
        disk=0,
        seconds=None,
        verdict=found.verdict,
        on_gpu=found.on_gpu,
        tokens_per_s=speed,
        instead=instead,
    )


def _chat_instead(info: ModelInfo, weight_bytes: int, room: int, context: int, recipe: Recipe | None) -> Instead:
    """Fewer bits, else a shorter context, else a smaller model."""
    per_token = cache_bytes_per_token(info)
    for scheme in SMALLER if recipe else ():
        nbytes = make_plan(info, _recipe(scheme())).sizes.total
        if nbytes < weight_bytes and chat_memory(info, nbytes, context).high <= room:
            return Instead(scheme=scheme().weight_spec().label)
    left = room - BASE_MEMORY - (1 + LOADING_SHARE) * weight_bytes
    if per_token and (fitting := int(left // per_token)) >= SHORTEST_CHAT:
        return Instead(context=1 << (fitting.bit_length() - 1))
    return Instead(parameters=_largest(info.parameters, weight_bytes + context * per_token, room))


def _training(info: ModelInfo, recipe: Recipe, machine: Machine, task: Task, home: Path) -> Need:
    trained = _trained(recipe, task)
    costs = estimate(info, trained, machine, home)
    memory = training_range(info, trained, costs.quantize_memory_bytes)
    found = _need(task, memory, costs.disk_bytes, Range(*_range(costs.seconds)), machine)
    if found.verdict is not Verdict.NO or found.disk_short:
        return found
    room = usable(machine.gpu_memory if found.on_gpu else machine.memory)
    if task is Task.QAT and training_range(info, _trained(recipe, Task.LORA), 1 << 62).low <= room:
        return replace(found, instead=Instead(task=Task.LORA))
    return replace(found, instead=Instead(parameters=_largest(info.parameters, memory.low - BASE_MEMORY, room)))


def _trained(recipe: Recipe, task: Task) -> Recipe:
    method = Qat(train="lora") if task is Task.LORA else Qat()
    return recipe.model_copy(update={"method": method, "measure": _unmeasured(recipe)})


def _largest(parameters: int, bytes_beside_libraries: float, room: int) -> int:
    """How many weights would fit if needs grow with them; 0 when the libraries alone are too much."""
    return max(0, int(parameters * (room - BASE_MEMORY) / max(1.0, bytes_beside_libraries)))
