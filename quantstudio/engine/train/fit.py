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
from quantstudio.engine.train.objective import Lesson

_ADAM_BYTES = 8
"""Of Adam's two fp32 moments, which do not exist while a micro-batch is tried."""
_GPU_SHARE = 0.92
_CPU_SHARE = 0.6
_CPU_TOKENS = 4096
"""More at once are no faster on a CPU."""
_BLOCK_VALUES = 34
"""Activations kept for each token and block, in hidden sizes, as bf16; Korthikanti et al., arXiv:2205.05198."""


def fit(lesson: Lesson, batch: int, length: int, checkpointing: str, device: str) -> tuple[int, bool]:
    """(sequences in a micro-batch, whether to recompute activations). `batch` is divided by the first.

    `checkpointing`: auto, on or off, as in the recipe. Raises OutOfMemory when nothing fits.
    """
    for micro, recompute in _candidates(batch, checkpointing):
        fits = _fits_gpu if device == "cuda" else _fits_cpu
        if fits(lesson, micro, length, recompute):
            return micro, recompute
    raise OutOfMemory(
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
    sizes = [size for size in range(batch, 0, -1) if batch % size == 0]
    if checkpointing != "on":
        yield from ((size, False) for size in sizes)
    if checkpointing != "off":
        yield from ((size, True) for size in sizes if size <= 8 or checkpointing == "on")


def _fits_gpu(lesson: Lesson, micro: int, length: int, recompute: bool) -> bool:  # noqa: FBT001
    set_recompute(lesson, recompute)
    lesson.train()
    trained = sum(value.numel() for value in lesson.parameters() if value.requires_grad)
    free, total = torch.cuda.mem_get_info()
    ours = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    try:
        ids = torch.zeros(micro, length, dtype=torch.int64, device="cuda")
        # Twice: with the gradients of one micro-batch there, as when they are accumulated.
        for _ in range(2):
            lesson(ids, ids)[0].backward()
        needed = torch.cuda.max_memory_allocated() + _ADAM_BYTES * trained
        return needed < _GPU_SHARE * min(total, free + ours)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        lesson.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


def _fits_cpu(lesson: Lesson, micro: int, length: int, recompute: bool) -> bool:  # noqa: FBT001
    if micro > 1 and micro * length > _CPU_TOKENS:
        return False
    config = lesson.student.config.get_text_config(decoder=True)
    trained = sum(value.numel() for value in lesson.parameters() if value.requires_grad)
    kept = 2 if recompute else _BLOCK_VALUES + 6 * getattr(config, "intermediate_size", 0) / config.hidden_size
    blocks = 2 * config.hidden_size * config.num_hidden_layers * kept
    logits = 3 * 2 * config.vocab_size
    needed = micro * length * (blocks + logits) + (_ADAM_BYTES + 4) * trained
    return needed < _CPU_SHARE * psutil.virtual_memory().available
