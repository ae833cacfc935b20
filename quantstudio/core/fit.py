"""What a model would need on this machine, task by task, before its weights are downloaded. Estimates, as ranges.

From `ModelInfo` (config.json and headers) alone. P is the number of weights, Q those of the layers that are quantized,
S the bytes of the result, L the number of blocks, H the width, V the vocabulary, T the tokens in work at once.

- *Download*: the files, once; the worker streams them (`WORKER_MEMORY`).
- *Quantize* and *measure*: `core.estimate`, which was measured; S on the disk.
- *Chat* at a context of C tokens: the libraries, the weights, and the cache of keys and values, which is
  C × (rows of all k and v projections) × 2 bytes; about a tenth more in passing while a model is loaded.
- *QAT*: AdamW in fp32 keeps weight, gradient and two moments, 16 bytes a trained weight; the teacher is the model
  itself in bf16, 2P; fake-quantized weights kept for the backward pass, 4Q, fall away with gradient checkpointing; so
  do most of the activations, about 34 × H × 2 bytes for each token and block (Korthikanti et al. 2022, arXiv
  2205.05198, without the attention matrix); the logits of teacher, student and their gradient, 3 × 4 × T × V, never do.
- *QAT with LoRA*: the base once in bf16 (2P, teacher and student share it), 16 bytes for each weight of the adapters
  of rank r, which are r × (rows + columns) for each matrix, and W + BA, fake-quantized, for one matrix (checkpointing)
  or all of them.
  The middle of both, and their times, are what `core.estimate` says of the same recipe with the quick preset; the
  lower end is with checkpointing and the smallest micro-batch, the upper one without.
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
    MEMORY_CORES,
    SCORING_MEMORY,
    SPREAD,
    estimate,
    quantize_base,
)
from quantstudio.core.estimate_method import method_memory
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, MeasureSection, ModelSection, OnMisfit, Recipe
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import SCHEMES, W2A16, W3A16, W4A16, W8A16, AnyScheme

WORKER_MEMORY = 80_000_000
"""A worker that downloads; measured by tests/benchmarks/hub_download.py."""
LINE_BYTES_PER_S = (2e6, 10e6, 100e6)
"""Home lines: slow, usual, fast."""
LOADING_SHARE = 0.1
BYTES_PER_TRAINED = 16
ACTIVATION_BYTES = 34 * 2
LOGIT_BYTES = 12
MICRO_TOKENS = (512, 4096)
"""Tokens in work at once while training: the least and the most."""
LORA_RANK = 16
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


def qat_memory(info: ModelInfo, recipe: Recipe) -> Range:
    """Peak memory of training every weight, in bytes; see the module for the derivation."""
    fixed = BASE_MEMORY + (2 + BYTES_PER_TRAINED) * info.parameters
    kept = 4 * sum(layer.slot.rows * layer.slot.columns for layer in make_plan(info, recipe).quantized)
    return _span(info, recipe, Qat(), fixed, kept)


def lora_memory(info: ModelInfo, recipe: Recipe) -> Range:
    """Peak memory of training adapters of rank `LORA_RANK`, in bytes."""
    matrices = [layer.slot for layer in make_plan(info, recipe).quantized if layer.slot.part is Part.LAYER]
    adapters = BYTES_PER_TRAINED * LORA_RANK * sum(slot.rows + slot.columns for slot in matrices)
    largest = 8 * max((slot.rows * slot.columns for slot in matrices), default=0)
    fixed = BASE_MEMORY + 2 * info.parameters + adapters + largest
    kept = 4 * sum(slot.rows * slot.columns for slot in matrices)
    return _span(info, recipe, Qat(train="lora"), fixed, kept)


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
    return BASE_MEMORY + int(small * (1 + LOADING_SHARE)), 2 * BASE_MEMORY + weight_bytes + small + SCORING_MEMORY


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
    method = Qat(train="lora") if task is Task.LORA else Qat()
    trained = recipe.model_copy(update={"method": method, "measure": _unmeasured(recipe)})
    costs = estimate(info, trained, machine, home)
    memory = lora_memory(info, recipe) if task is Task.LORA else qat_memory(info, recipe)
    found = _need(task, memory, costs.disk_bytes, Range(*_range(costs.seconds)), machine)
    if found.verdict is not Verdict.NO or found.disk_short:
        return found
    room = usable(machine.gpu_memory if found.on_gpu else machine.memory)
    if task is Task.QAT and lora_memory(info, recipe).low <= room:
        return replace(found, instead=Instead(task=Task.LORA))
    return replace(found, instead=Instead(parameters=_largest(info.parameters, memory.low - BASE_MEMORY, room)))


def _span(info: ModelInfo, recipe: Recipe, method: Qat, fixed: float, kept: float) -> Range:
    """From little in work at once to much; the middle is the estimate that a run of it is checked against."""
    middle = quantize_base(info) + method_memory(info, recipe.model_copy(update={"method": method}))
    (logits, _), (most_logits, most_activations) = (_in_work(info, tokens) for tokens in MICRO_TOKENS)
    return Range(min(middle, fixed + logits), middle, max(middle, fixed + kept + most_logits + most_activations))


def _largest(parameters: int, bytes_beside_libraries: float, room: int) -> int:
    """How many weights would fit if needs grow with them; 0 when the libraries alone are too much."""
    return max(0, int(parameters * (room - BASE_MEMORY) / max(1.0, bytes_beside_libraries)))


def _in_work(info: ModelInfo, tokens: int) -> tuple[float, float]:
    """(logits with one block's activations, all blocks' activations) of so many tokens, in bytes."""
    block = ACTIVATION_BYTES * info.hidden_size * tokens
    return LOGIT_BYTES * tokens * info.vocab_size + block, block * info.layers
