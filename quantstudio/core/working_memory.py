"""What each phase of a run holds in memory at its peak, derived from what the engine keeps. Bytes; a CPU.

Phases follow each other, and what one has freed is given back before the next (`engine.memory`), so a run's peak is the
largest of them. W is a matrix's weights, C its columns, B the weights of the largest block, H the model's width, I the
width inside a block, L the blocks, V the words, P all weights, T the tokens in work at once, N the tokens of the
calibration text.

- *Reading text*: tokenizer and array libraries; text and passages of n bytes, its n / 4 tokens with masks, and the
  64-bit hash of each with its place while equal passages are looked for, 16 n; one batch of text with the tokenizer's
  own lists. 2.3 n stay: tokens and masks.
- *Calibrating, every method*: the block in bf16, 2 B; activations between blocks in bf16, 2 N H; one batch on its way,
  in bf16 through the widest layer and in fp32 as its input. Once, before the blocks: the embedding as it is read, and
  rounded there, 2 V H.
- *GPTQ*: the original's block and activations as well. For each matrix, in fp32, with Σ x xᵀ, the cross products and
  what is factored: 5 C² + 6 W while columns are rounded, 3 C² + 7.3 W while grids are searched for. Fitting scales: a
  system of g × g for each row, g groups, twice.
- *AWQ, SmoothQuant*: the block in fp32, 4 B; Σ x xᵀ for each of the layers that share an input; and for one matrix 5 W
  (candidates of grids) or 3 W (rounding alone), in fp32.
  Pieces as large as a matrix come and go in slightly different sizes, which the heap cannot put into each other's
  place: of W it holds twice as much as lives (`HEAP_COPIES`).
- *Training*: the original in bf16, 2 P, and, of every weight that trains, the weight and Adam's two averages in fp32,
  12; its gradient, 4, is whole when activations are gone, except where several micro-batches add to it. Activations
  that autograd keeps, counted tensor by tensor in a Llama's block: two norms, 12 H with their fp32 input; the input of
  queries, keys and values, 2 H; attention's four, 8 H; the input of the output's layer and of the two wide ones, 4 H;
  gate, its activation, up and their product, 8 I: 26 H + 8 I. Recomputed, one block's and each block's input, 2 H.
  Logits of student, teacher and their gradient in bf16, 6 T V, and some pieces of `LOSS_PIECE` in fp32.
- *LoRA*: frozen weights once, 2 P; adapters in fp32 like trained weights; for one matrix at a time the sum in fp32, its
  rounding and its gradient, 16 W. Norms do not train, so their bf16 input is not kept: 22 H + 8 I.
- *Asking whether a small model bears few bits*, before the run: see `asking_memory`.
- *Measuring*: see `scoring_memory`.

Each constant says where its number comes from. The tests compare the derivation with what autograd keeps and what a
small run holds; `tests/benchmarks/estimates.py` compares it with models that it was not looked at with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from quantstudio.core.engines import OTHER_ENGINE_TOKENS
from quantstudio.core.first_layers import kept_part
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part, WeightSlot
from quantstudio.core.plan import LayerPlan, QuantizationPlan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_data import FileData, FolderData, HubData
from quantstudio.core.recipe_method import STEP_TOKENS, Awq, FineTune, Gptq, Qat

MB = 1_000_000
BUILTIN_TEXT = 12_111_832
"""Bytes of the built-in books."""
TEXT_LIBRARIES = 30 * MB
"""Tokenizer and array libraries: 40–60 MB measured, of which `estimate.LIBRARY_MEMORY` has 30 to spare."""
TEXT_BATCH = 60 * MB
"""A megabyte of text on its way through the tokenizer: its lists of Python numbers and its own records."""
TEXT_AT_WORK, TEXT_KEPT = 16, 2.3
"""Bytes for each byte of text: at the peak, and afterwards."""
CALIBRATING_LIBRARIES = 25 * MB
"""Linear algebra that is loaded with the first factorization: 21 MB measured."""
BATCH_TOKENS = 2048
"""As `engine.calibration.streams` takes at once on a CPU."""
TRAINING_LIBRARIES = 210 * MB
"""The trainer with what it imports: 100 MB after importing it, and as much again once it is made."""
LOSS_PIECE = 64 << 20
"""As `engine.train.loss.CHUNK_BYTES`."""
LOSS_PIECES, MORE_PIECES = 6, 2
"""Of one piece: both logarithms, the wide logits, the probabilities, their product and the gradient; where there is
more than one, the gradient before and its product are still there. 5.6–6.1 and 7.9 were measured."""
MICRO_TOKENS = 4096
"""As `engine.train.fit`: more tokens at once are no faster on a CPU."""
CPU_SHARE = 0.6
"""Of the free memory; as `engine.train.fit` fills it with activations."""
ADAM, MASTER, GRADIENT = 8, 4, 4
JUDGED_LOGITS, JUDGED_TOKENS = 128 << 20, 4096
"""As `engine.train.evaluate` has at once, for each of two models."""
HEAP_COPIES = 2
"""By how much the process grew while one matrix was chosen, over what torch says was alive: 1.9 to 2.1 for the parts
that grow with W, 1.0 for those that grow with C² (matrices from 0.8 to 4.4 million weights)."""
ROUNDING, SEARCHING = (5, 6.0), (3, 7.3)
"""What is alive while GPTQ rounds columns, and while grids are searched for: times C² and times W."""
AWQ_LIVE, SMOOTH_LIVE = 5, 3
"""What is alive while one matrix is scaled and rounded: times W."""
HEAP_WASTE = 0.05
"""Share of what is in work that the heap cannot fill: 4–6 % in training runs of the models these formulas were
looked at with."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the formulas want to know of a model: numbers of weights, and widths."""

    weights: int
    block: int
    embedding: int
    width: int
    inner: int
    blocks: int
    words: int

    @staticmethod
    def of(info: ModelInfo) -> Sizes:
        inside = [slot for slot in info.slots if slot.part is Part.LAYER]
        return Sizes(
            weights=info.parameters,
            block=largest_block(info),
            embedding=max((slot.rows * slot.columns for slot in info.slots if slot.part is Part.EMBEDDING), default=0),
            width=info.hidden_size,
            inner=max((slot.columns for slot in inside), default=info.hidden_size),
            blocks=max(1, info.layers),
            words=info.vocab_size,
        )


def largest_block(info: ModelInfo) -> int:
    """Weights of the block that has most of them: what lies under one number in the tensors' names."""
    blocks: dict[str, int] = {}
    for tensor in info.tensors:
        if found := re.match(r"(.*?\.\d+)\.", tensor.name):
            count = 1
            for length in tensor.shape:
                count *= length
            blocks[found.group(1)] = blocks.get(found.group(1), 0) + count
    return max(blocks.values(), default=0)


def text_bytes(recipe: Recipe) -> int:
    """Bytes of text that will be read, as far as can be told without reading."""
    source, limit = recipe.data.source, recipe.data.size_limit_mb * MB
    if isinstance(source, FileData):
        return min(limit, _size(Path(source.path).expanduser())) if source.path else 0
    if isinstance(source, FolderData):
        folder = Path(source.folder).expanduser()
        return min(limit, sum(map(_size, folder.glob("*")))) if source.folder else 0
    if isinstance(source, HubData):
        return limit
    return BUILTIN_TEXT if source.kind == "builtin" else MB


def reading_memory(recipe: Recipe) -> int:
    """Peak bytes beside the libraries while the text is read and split."""
    nbytes = text_bytes(recipe)
    return round(TEXT_LIBRARIES + TEXT_BATCH * min(1.0, nbytes / MB) + TEXT_AT_WORK * nbytes)


def kept_text(recipe: Recipe) -> int:
    """Bytes that stay of the text, with the libraries that read it."""
    return round(TEXT_LIBRARIES + TEXT_KEPT * text_bytes(recipe))


def calibration_memory(info: ModelInfo, plan: QuantizationPlan, recipe: Recipe) -> int:
    """Peak bytes beside libraries and text while integers are chosen block by block."""
    sizes, method = Sizes.of(info), recipe.method
    streams = 2 if isinstance(method, Gptq | FineTune) else 1
    tokens = recipe.data.calibration_sequences * recipe.data.sequence_length
    activations = streams * 2 * tokens * sizes.width
    inside = [layer for layer in plan.quantized if layer.slot.part is Part.LAYER]
    passing = BATCH_TOKENS * (2 * 3 * sizes.inner + streams * 4 * sizes.inner)
    if streams == 2:
        working = streams * 2 * sizes.block + max(map(_gptq, inside), default=0) + passing
        heads = [layer for layer in plan.quantized if layer.slot.part is Part.HEAD and layer.spec]
        for layer in heads:
            if layer.spec and layer.spec.bits < 8:
                working = max(working, streams * 2 * sizes.embedding + _gptq(layer))
    else:
        alive = AWQ_LIVE if isinstance(method, Awq) else SMOOTH_LIVE
        one = max((layer.slot.rows * layer.slot.columns for layer in inside), default=0)
        working = (2 + 4) * sizes.block + _sums(inside) + 4 * HEAP_COPIES * alive * one + passing
    return CALIBRATING_LIBRARIES + activations + max(working, 2 * sizes.embedding)


def training_memory(info: ModelInfo, plan: QuantizationPlan, recipe: Recipe, free: float) -> int:
    """Peak bytes beside libraries and text while the recipe's method trains, with `free` bytes of memory before it."""
    method = recipe.method
    if not isinstance(method, Qat | FineTune):
        return 0
    student = kept_part(info, recipe)
    sizes, learner = Sizes.of(student), _learner(student, plan, method)
    learner = replace(learner, held=learner.held + 2 * (info.parameters - student.parameters))
    length = recipe.data.sequence_length
    batch = method.batch_sequences or max(1, STEP_TOKENS // length)
    left = free - learner.held + ADAM * learner.trained
    micro, recompute = micro_batch(sizes, learner.trained, batch, length, method.gradient_checkpointing, left)
    learning = _training(sizes, learner, micro * length, accumulates=micro < batch, again=recompute)
    at_once = max(length, min(JUDGED_LOGITS // (2 * max(1, sizes.words)), JUDGED_TOKENS))
    held_out = min(recipe.data.held_out_sequences * length, at_once)
    judging = learner.held + 2 * sizes.weights + _loss(sizes, held_out, gradient=False)
    return TRAINING_LIBRARIES + max(learning, round(judging))


def training_span(info: ModelInfo, plan: QuantizationPlan, method: Qat) -> tuple[int, int]:
    """The least and the most that training may take beside libraries and text: one short sequence at once with
    activations computed again, and as many tokens as are worth it, without."""
    sizes, learner = Sizes.of(info), _learner(info, plan, method)
    least = _training(sizes, learner, 512, accumulates=True, again=True)
    most = _training(sizes, learner, MICRO_TOKENS, accumulates=True, again=False)
    return TRAINING_LIBRARIES + least, TRAINING_LIBRARIES + most


def micro_batch(
    sizes: Sizes, trained: int, batch: int, length: int, checkpointing: str, free: float
) -> tuple[int, bool]:
    """(sequences at once, whether activations are computed again), as `engine.train.fit` decides on a CPU."""
    whole = [size for size in range(batch, 0, -1) if batch % size == 0]
    tries = [(size, False) for size in whole] if checkpointing != "on" else []
    if checkpointing != "off":
        tries += [(size, True) for size in whole if size <= 8 or checkpointing == "on"]
    for micro, again in tries:
        kept = 2 if again else 34 + 6 * sizes.inner / max(1, sizes.width)
        needed = micro * length * (2 * sizes.width * sizes.blocks * kept + 6 * sizes.words) + 12 * trained
        if (micro == 1 or micro * length <= MICRO_TOKENS) and needed < CPU_SHARE * free:
            return micro, again
    return 1, checkpointing != "off"


def asking_memory(info: ModelInfo, plan: QuantizationPlan) -> int:
    """Peak bytes beside the libraries while the whole model is rounded and judged before a run.

    The books and their passages three times; the model and its rounded layers in bf16, 4 P; Σ x xᵀ of every layer for
    GPTQ; the original's scores in fp32 and other logits in bf16, 6 T V; and five pieces of `ASKED_ROWS` in fp32.
    """
    sizes = Sizes.of(info)
    inside = [layer.slot for layer in plan.layers if layer.slot.part is Part.LAYER]
    tokens = min(ASKED_TOKENS, LOSS_PIECE * 2 // (4 * max(1, sizes.words)))
    judging = 6 * tokens * sizes.words + 5 * 4 * min(tokens, ASKED_ROWS) * sizes.words
    sums = 4 * sum(slot.columns**2 for slot in inside)
    return TEXT_LIBRARIES + 3 * BUILTIN_TEXT + 4 * sizes.weights + sums + judging


ASKED_TOKENS, ASKED_ROWS = 2048, 1024
"""As `engine.sensitivity.knee` judges, and `engine.sensitivity.wholes` at once."""


def scoring_memory(info: ModelInfo, recipe: Recipe) -> int:
    """Peak bytes beside libraries and both models while they score the same windows of text.

    Logits of both in bf16, 4 T V, for as many positions as `SCORED_LOGITS` holds (or the whole text has); for one of
    them, before the other's are there, a layer's activations on the way: gate, up and their product, 6 I, input and
    residual, 4 H, for each position; and four pieces of `SCORED_PIECE` in fp32.
    """
    sizes, positions = Sizes.of(info), _scored_positions(info, recipe)
    logits = 4 * min(positions, SCORED_LOGITS // (2 * max(1, sizes.words))) * sizes.words
    return logits + positions * (6 * sizes.inner + 4 * sizes.width) + 4 * SCORED_PIECE


def other_scoring_memory(info: ModelInfo, recipe: Recipe) -> int:
    """As `scoring_memory`, where ONNX Runtime is compared with torch: its logits are fp32, 2 T V more."""
    few = recipe.measure.model_copy(update={"quality_tokens": min(recipe.measure.quality_tokens, OTHER_ENGINE_TOKENS)})
    scored = recipe.model_copy(update={"measure": few})
    words = max(1, Sizes.of(info).words)
    return scoring_memory(info, scored) + 2 * min(_scored_positions(info, scored), SCORED_LOGITS // (2 * words)) * words


def _scored_positions(info: ModelInfo, recipe: Recipe) -> int:
    """Positions of a batch of windows: as many as the budget for logits holds, whole windows, at least one."""
    measure = recipe.measure
    window = min(measure.window, info.context_length or measure.window)
    positions = max(1, SCORED_LOGITS // (2 * max(1, Sizes.of(info).words)))
    return min(max(positions // window, 1) * window, max(window, measure.quality_tokens))


SCORED_LOGITS, SCORED_PIECE = 192 << 20, 32 << 20
"""As `engine.measure.quality`."""


@dataclass(frozen=True, slots=True)
class _Learner:
    """`held`: bytes of both models, with the averages of what trains. `trained`: how many weights do."""

    held: int
    trained: int
    norms: int
    """Widths that the norms keep of each token and block."""
    passing: int
    """Bytes that the largest matrix needs on its way."""


def _learner(info: ModelInfo, plan: QuantizationPlan, method: Qat | FineTune) -> _Learner:
    slots = [layer.slot for layer in plan.layers]
    largest = max((slot.rows * slot.columns for slot in slots), default=0)
    scales = sum(_groups(layer) for layer in plan.quantized if layer.spec and layer.spec.bits < 8)
    scales = scales if isinstance(method, Qat) else 0
    start = 4 * scales
    if method.train == "lora":
        inside = [slot for slot in slots if slot.part is Part.LAYER and slot.quantizable]
        trained = method.lora_rank * sum(slot.rows + slot.columns for slot in inside) + scales
        one = max((slot.rows * slot.columns for slot in inside), default=0)
        return _Learner(2 * info.parameters + (MASTER + ADAM) * trained + start, trained, 22, 16 * one)
    trained = info.parameters + scales
    return _Learner(2 * info.parameters + (MASTER + ADAM) * trained + start, trained, 26, 10 * largest)


def _training(sizes: Sizes, learner: _Learner, tokens: int, *, accumulates: bool, again: bool) -> int:
    block = learner.norms * sizes.width + 8 * sizes.inner
    kept = block + 2 * sizes.width * sizes.blocks if again else block * sizes.blocks
    forward = tokens * kept + max(_loss(sizes, tokens, gradient=True), 2 * tokens * sizes.words + learner.passing)
    gradients = GRADIENT * learner.trained
    at_work = max(forward + (gradients if accumulates else 0), gradients + learner.passing)
    return round(learner.held + (1 + HEAP_WASTE) * at_work)


def _loss(sizes: Sizes, tokens: int, *, gradient: bool) -> float:
    """Bytes of the logits of so many tokens, of student and teacher, and of scoring them."""
    whole = 4 * tokens * sizes.words
    pieces = LOSS_PIECES + (MORE_PIECES if whole > LOSS_PIECE else 0)
    return (1.5 if gradient else 1.0) * whole + pieces * min(LOSS_PIECE, whole)


def _gptq(layer: LayerPlan) -> int:
    """Bytes of choosing one matrix, in fp32; see the module."""
    slot, bits = layer.slot, layer.spec.bits if layer.spec else 8
    weights, square = slot.rows * slot.columns, slot.columns**2
    groups = _groups(layer) // max(1, slot.rows)
    tries = (ROUNDING,) if bits == 8 else (ROUNDING, SEARCHING)
    chosen = max(squares * square + HEAP_COPIES * times * weights for squares, times in tries)
    fitted = 3 * square + HEAP_COPIES * 4 * weights + 2 * slot.rows * groups**2 if bits < 8 else 0
    return round(4 * max(chosen, fitted))


def _sums(inside: Iterable[LayerPlan]) -> int:
    """Bytes of Σ x xᵀ of one block: once for each input, told apart by name and width."""
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    blocks: dict[str, dict[str, int]] = {}
    for layer in inside:
        block, name = _block_of(layer.slot), layer.slot.module.rpartition(".")[2]
        blocks.setdefault(block, {})[shared.get(name, name)] = 4 * layer.slot.columns**2
    return max((sum(each.values()) for each in blocks.values()), default=0)


def _block_of(slot: WeightSlot) -> str:
    found = re.match(r"(.*?\.\d+)\.", slot.module)
    return found.group(1) if found else ""


def _groups(layer: LayerPlan) -> int:
    size = layer.spec.group_size if layer.spec else 0
    return layer.slot.rows * (layer.slot.columns // size if size else 1)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
