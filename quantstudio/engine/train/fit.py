"""The largest micro-batch that fits the memory, found by trying on a GPU and by arithmetic on a CPU.

Larger ones are faster up to a few thousand tokens. Gradient checkpointing (activations computed again, a third more
time) comes last, when not even one sequence fits otherwise.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import psutil
import torch

from quantstudio.core.errors import OutOfMemory
from quantstudio.engine.failures import is_out_of_memory
from quantstudio.engine.train import group
from quantstudio.engine.train.objective import Lesson
from quantstudio.engine.train.shard import own

_ADAM_BYTES = 8
"""Of Adam's two fp32 moments, which do not exist while a micro-batch is tried."""
_GPU_SHARE = 0.92
_CPU_SHARE = 0.6
_CPU_TOKENS = 4096
"""More at once are no faster on a CPU."""
_KEPT_MARGIN = 1.3
"""What is estimated to be kept is taken to be this much more, before it is tried with several processes."""
_BLOCK_VALUES = 34
"""Activations kept for each token and block, in hidden sizes, as bf16; Korthikanti et al., arXiv:2205.05198."""


def fit(lesson: Lesson, batch: int, length: int, checkpointing: str, device: str) -> tuple[int, bool]:
    """(sequences in a micro-batch, whether to recompute activations). `batch` is divided by the first.

    `batch`: sequences of a step in this process. `checkpointing`: auto, on or off, as in the recipe. Where several
    processes train, every one must call this, and all get the same. Raises OutOfMemory when nothing fits.
    """
    if device == "cuda" and group.together():
        return _fit_together(lesson, batch, length, checkpointing)
    for micro, recompute in _candidates(batch, checkpointing):
        fits = _fits_gpu if device == "cuda" else _fits_cpu
        if any(group.agreed(fits(lesson, micro, length, recompute))):
            return micro, recompute
    raise _too_large()


def fits_still(lesson: Lesson, micro: int, length: int, recompute: bool, device: str) -> bool:  # noqa: FBT001
    """Give two micro-batches, of which nothing is kept, and say whether what they needed is there; on a CPU it is.

    Where several processes train, every one must call this, and all get the same.
    """
    if device != "cuda":
        _two_lessons(lesson, micro, length, device)
        return True
    if not group.together():
        return _fits_gpu(lesson, micro, length, recompute)
    room = -group.largest(-_room())[0]
    return _tried(lesson, micro, length, recompute=recompute) < room


def _too_large() -> OutOfMemory:
    return OutOfMemory(
        "The memory does not suffice to train this model.",
        why="Not even one sequence at a time fits.",
        hint="Train LoRA instead of all weights, use shorter sequences, or take a smaller model.",
        field="method.train",
    )


def set_recompute(lesson: Lesson, recompute: bool) -> None:  # noqa: FBT001 - a setter
    """Turn gradient checkpointing on or off."""
    student = lesson.student
    renamed = hasattr(student, "activation_checkpointing_enable")  # in transformers 5.24
    if recompute and renamed:
        student.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    elif recompute:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif renamed:
        student.activation_checkpointing_disable()
    else:
        student.gradient_checkpointing_disable()


def _candidates(batch: int, checkpointing: str) -> Iterator[tuple[int, bool]]:
    if checkpointing != "on":
        yield from ((size, False) for size in _sizes(batch))
    if checkpointing != "off":
        yield from ((size, True) for size in _sizes(batch) if size <= 8 or checkpointing == "on")


def _sizes(batch: int) -> list[int]:
    """Micro-batches that divide a batch, largest first."""
    return [size for size in range(batch, 0, -1) if batch % size == 0]


def _fits_gpu(lesson: Lesson, micro: int, length: int, recompute: bool) -> bool:  # noqa: FBT001
    room = _room()
    try:
        return _needed(lesson, micro, length, recompute) < room
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False


def _fit_together(lesson: Lesson, batch: int, length: int, checkpointing: str) -> tuple[int, bool]:
    """As `fit`, but nothing is tried that may not fit: a process that runs out of memory leaves the others waiting.

    One sequence is tried, then the next size, and from the difference it is known what fits. Whether activations can
    be kept is estimated before it is tried.
    """
    room = -group.largest(-_room())[0]
    candidates = list(_candidates(batch, checkpointing))
    if checkpointing == "auto":
        kept = _KEPT_MARGIN * length * _kept_bytes(lesson, recompute=False)
        if _tried(lesson, 1, length, recompute=True) + kept >= room:
            candidates = [found for found in candidates if found[1]]
    for recompute in sorted({found[1] for found in candidates}):
        sizes = [size for size, recomputed in candidates if recomputed == recompute]
        if size := _largest_fitting(lesson, sizes, length, room, recompute=recompute):
            return size, recompute
    raise _too_large()


def _largest_fitting(lesson: Lesson, sizes: list[int], length: int, room: float, *, recompute: bool) -> int | None:
    """The largest of the sizes that fits in `room` bytes."""
    kept = _KEPT_MARGIN * length * _kept_bytes(lesson, recompute)
    one = _tried(lesson, 1, length, recompute=recompute)
    if one >= room:
        return None
    more = min((size for size in sizes if size > 1), default=1)
    if more > 1 and one + (more - 1) * kept < room:
        kept = (_tried(lesson, more, length, recompute=recompute) - one) / (more - 1)
    return max(size for size in sizes if one + (size - 1) * kept < room)


def _tried(lesson: Lesson, micro: int, length: int, *, recompute: bool) -> float:
    """Bytes that a micro-batch needs where it needs most."""
    return group.largest(_needed(lesson, micro, length, recompute))[0]


def _room() -> float:
    """Bytes of this process's GPU that it may use."""
    free, total = torch.cuda.mem_get_info()
    return _GPU_SHARE * min(total, free + torch.cuda.memory_reserved())


def _needed(lesson: Lesson, micro: int, length: int, recompute: bool) -> float:  # noqa: FBT001
    """Bytes at the peak of a step with such micro-batches, found by trying."""
    set_recompute(lesson, recompute)
    trained = sum(own(value).numel() for value in lesson.parameters() if value.requires_grad)
    torch.cuda.reset_peak_memory_stats()
    try:
        _two_lessons(lesson, micro, length, "cuda")
        return torch.cuda.max_memory_allocated() + _ADAM_BYTES * trained
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _two_lessons(lesson: Lesson, micro: int, length: int, device: str) -> None:
    """Two micro-batches, the second with the gradients of the first there, as when they are accumulated."""
    lesson.train()
    ids = torch.zeros(micro, length, dtype=torch.int64, device=device)
    try:
        for _ in range(2):
            lesson(ids, ids)[0].backward()
    finally:
        lesson.zero_grad(set_to_none=True)


def _fits_cpu(lesson: Lesson, micro: int, length: int, recompute: bool) -> bool:  # noqa: FBT001
    if micro > 1 and micro * length > _CPU_TOKENS:
        return False
    trained = sum(own(value).numel() for value in lesson.parameters() if value.requires_grad)
    needed = micro * length * _kept_bytes(lesson, recompute) + (_ADAM_BYTES + 4) * trained
    return needed < _CPU_SHARE * psutil.virtual_memory().available


def _kept_bytes(lesson: Lesson, recompute: bool) -> float:  # noqa: FBT001
    """Bytes kept for the backward pass for each token, about."""
    config = lesson.student.config.get_text_config(decoder=True)
    kept = 2 if recompute else _BLOCK_VALUES + 6 * getattr(config, "intermediate_size", 0) / config.hidden_size
    blocks = 2 * config.hidden_size * config.num_hidden_layers * kept
    return blocks + 3 * 2 * config.vocab_size
