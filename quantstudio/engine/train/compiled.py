"""Blocks of a student and its teacher as torch.compile writes them, for as long as lessons are given.

One program serves all blocks of a kind, and only what a block computes is compiled: its hooks (looking for a wish to
stop, gathering shares of several GPUs) and gradient checkpointing stay around it, as they are. Evaluations and samples
run the blocks as they always do: they come in many lengths, and what they judge is what will be saved.

Compiling by blocks is what PyTorch's own trainings do with FSDP2 (github.com/pytorch/torchtitan), too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from quantstudio.core.humanize import human_seconds
from quantstudio.engine import compiling
from quantstudio.engine.interrupt import checked_meanwhile
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.sensitivity.restart import decoder_blocks
from quantstudio.engine.train import group
from quantstudio.engine.train.fit import fits_still
from quantstudio.engine.train.objective import Lesson
from quantstudio.engine.train.trainer import Place

_TOO_LARGE = "its memory does not suffice for that"


class _Blocks:
    """Compiled ways through the blocks, taken while `on`; the first failure turns all of them off."""

    def __init__(self) -> None:
        self.on = True
        self.proven = False
        """Whether all programs are there: what fails then has failed by itself."""
        self.failure: BaseException | None = None
        self._programs: dict[type[nn.Module], Callable[..., Any]] = {}
        self._changed: list[nn.Module] = []

    def add(self, model: nn.Module, student: nn.Module) -> None:
        """Take the compiled way through the blocks of `model` while the student learns."""
        for block in decoder_blocks(model):
            block.forward = self._way(block, block.forward, student)
            self._changed.append(block)

    def remove(self) -> None:
        """Leave the blocks as they were: a copy of one with another way would take the way of its original."""
        for block in self._changed:
            del block.forward

    def fail(self, error: BaseException) -> None:
        self.on, self.failure = False, self.failure or error

    def _way(self, block: nn.Module, plain: Callable[..., Any], student: nn.Module) -> Callable[..., Any]:
        program = self._program(type(block))

        def forward(*inputs: Any, **more: Any) -> Any:
            if not (self.on and student.training):
                return plain(*inputs, **more)
            try:
                return program(block, *inputs, **more)
            except Exception as error:
                if self.proven or not compiling.is_failure(error):
                    raise
                self.fail(error)
                return plain(*inputs, **more)

        return forward

    def _program(self, kind: type[nn.Module]) -> Callable[..., Any]:
        if kind not in self._programs:
            self._programs[kind] = torch.compile(kind.forward, backend=compiling.BACKEND, dynamic=False)
        return self._programs[kind]


@contextmanager
def compiled(
    lesson: Lesson,
    teacher: nn.Module | None,
    length: int,
    place: Place,
    reporter: Reporter,
    check: Callable[[], None],
) -> Iterator[None]:
    """Give the lessons of the body to compiled blocks, if that works; what came of it is said.

    `length`: of a sequence. `check` is called while torch compiles, and raises what ends the training. Where several
    processes train, every one must call this.
    """
    if reason := compiling.why_not(place.device):
        _say_without(reporter, reason)
        yield
        return
    compiling.keep_programs()
    blocks = _Blocks()
    try:
        with compiling.settings_for_training(), checked_meanwhile(check):
            blocks.add(lesson.student, lesson.student)
            if teacher is not None:
                blocks.add(teacher, lesson.student)
            _try(blocks, lesson, length, place, reporter)
        yield
    finally:
        blocks.remove()


def _try(blocks: _Blocks, lesson: Lesson, length: int, place: Place, reporter: Reporter) -> None:
    """Compile by giving two lessons of which nothing is kept, and take the ordinary way if that fails."""
    reporter.progress(0, 1, "", compiling.IN_PROGRESS)
    compiling.forget_counts()
    started, state, too_large = time.monotonic(), place.state, False
    try:
        too_large = not fits_still(lesson, state.micro_batch, length, state.recompute, place.device)
    except Exception as error:
        # Several processes can only fail together if each of them goes on, as `_Blocks` does with what comes up first.
        if group.together() or not compiling.is_failure(error):
            raise
        blocks.fail(error)
    blocks.proven = True
    failed, large = group.largest(float(not blocks.on), float(too_large))
    seconds = human_seconds(time.monotonic() - started)
    if failed or large:
        blocks.on = False
        other = "it failed on another GPU" if group.together() else ""
        why = _TOO_LARGE if large else compiling.reason(blocks.failure) if blocks.failure else other
        _say_without(reporter, f"{why}. {seconds} went into the attempt.")
        return
    reporter.notice(f"The model was compiled for this training in {seconds}{compiling.words_if_kept()}.")


def _say_without(reporter: Reporter, why: str) -> None:
    reporter.notice(f"The training goes on without being compiled: {why}", "warning")
