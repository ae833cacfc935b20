"""The other processes of a training on several GPUs, as the first one sees them: started, watched, and ended with it.

The first process is the worker itself. It must not wait for ever for one that is gone: a thread for each of them reads
what it says, and as soon as one reports an error or dies, everything that waits for it is made to give up, and the
training ends with one error, which says what happened on which GPU.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled, OutOfMemory, QuantStudioError, RecipeError, WorkerLost
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.core.section import Plain
from quantstudio.engine.child import Child, ChildFailed, as_error, child_environment
from quantstudio.engine.failures import without_secrets
from quantstudio.engine.load import resolve_device
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.train import group
from quantstudio.engine.train.group import Seat

COMMAND = (sys.executable, "-P", "-m", "quantstudio.engine.train.beside")
READY = "ready"
"""Id of the phase in which a process says that it can join."""
_POLL_S = 0.1
_EXPLANATION_S = 3.0
"""How long to wait for the reason when a collective has failed: the process that is to blame is just dying."""
_LETHARGY_S = 30.0
"""After this long in a call that neither ends nor gives up, this process ends itself rather than hang."""


class Task(Plain):
    """All that a process needs to take part in a training."""

    seat: Seat
    model: str
    recipe: Recipe
    run_folder: str
    passages: str
    """File with the text, as `Passages.save` writes it."""


def gpus_of(machine: MachineSection) -> int:
    """Over how many GPUs a training is spread. Raises RecipeError when there are not so many."""
    wanted = machine.gpus
    if wanted == 1:
        return 1
    if resolve_device(machine.device) != "cuda":
        raise RecipeError(
            f"A training on the CPU cannot be spread over {wanted} GPUs.",
            hint="Set the number of GPUs to 1.",
            field="machine.gpus",
        )
    if (found := torch.cuda.device_count()) < wanted:
        raise RecipeError(
            f"The training is to be spread over {wanted} GPUs, and this machine has {found} that can be used.",
            hint=f"Set the number of GPUs to {found} or fewer.",
            field="machine.gpus",
        )
    if not distributed.is_nccl_available():
        raise RecipeError(
            "A training cannot be spread over several GPUs here.",
            why="torch comes without NCCL on this system, with which GPUs talk to each other.",
            hint="Set the number of GPUs to 1, or train on Linux.",
            field="machine.gpus",
        )
    return wanted


class Crew:
    """The other processes while they run."""

    def __init__(self, children: dict[int, Child], seat: Seat, reporter: Reporter) -> None:
        self._children, self._seat, self._reporter = children, seat, reporter
        self._failures: list[QuantStudioError] = []
        self._failed, self._over = threading.Event(), threading.Event()
        self._ready = {rank: threading.Event() for rank in children}
        self._threads = [
            threading.Thread(target=self._watch, args=(rank, child), daemon=True) for rank, child in children.items()
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise `Cancelled` when the person asked to stop, and the error of a process that has failed."""
        self._reporter.check_cancel()
        if self._failed.is_set():
            raise self._reason()

    def wait_until_ready(self) -> None:
        """Wait until all others can join. Raises as `check`."""
        for ready in self._ready.values():
            while not ready.wait(_POLL_S):
                self.check()

    def explain(self) -> BaseException | None:
        """What is behind the failure of a collective: the wish to stop, the error of another process, or neither."""
        if self._reporter.cancel.is_set():
            return Cancelled()
        return self._reason() if self._failed.wait(_EXPLANATION_S) else None

    def end(self) -> None:
        """Kill whoever lives, and wait until nothing is left of them."""
        self._over.set()
        for child in self._children.values():
            child.process.kill()
        for child in self._children.values():
            child.end()
        for thread in self._threads:
            thread.join()

    def _watch(self, rank: int, child: Child) -> None:
        while (line := child.lines.get()) is not None:
            message = protocol.decode(line) if line.endswith(b"\n") else None  # it may be killed within a line
            if isinstance(message, protocol.Phase) and message.id == READY:
                self._ready[rank].set()
            elif isinstance(message, protocol.Log):
                self._reporter.log(f"GPU {rank}: {message.text}", message.level)
            elif isinstance(message, protocol.Error):
                self._fail(_located(as_error(message), rank, self._seat))
                return
        status = child.process.wait()
        if status and not self._over.is_set():
            if words := child.last_words():
                self._reporter.log(f"GPU {rank}: {without_secrets(words)}", "debug")
            self._fail(_lost(status, rank, self._seat))

    def _fail(self, failure: QuantStudioError) -> None:
        self._failures.append(failure)
        time.sleep(_POLL_S)  # others fail because of the first one: whichever is heard first, the named one counts
        self._failed.set()
        group.give_up()
        if not self._over.wait(_LETHARGY_S):
            print(f"A training that could not be stopped: {self._reason()}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(1)

    def _reason(self) -> QuantStudioError:
        return min(self._failures, key=lambda failure: isinstance(failure, ChildFailed))


@contextmanager
def crew(task: Task, reporter: Reporter) -> Iterator[Crew]:
    """Start the others; however the body is left, they are gone afterwards. `task`: of the first process.

    A collective that fails in the body becomes the error that is behind it.
    """
    children: dict[int, Child] = {}
    try:
        for rank in range(1, task.seat.count):
            own = task.model_copy(update={"seat": task.seat.model_copy(update={"rank": rank})})
            children[rank] = Child(COMMAND, child_environment(), own.model_dump_json().encode())
        team = Crew(children, task.seat, reporter)
    except BaseException:
        for child in children.values():
            child.end()
        raise
    try:
        yield team
    except (QuantStudioError, Cancelled):
        raise
    except Exception as error:
        if reason := team.explain():
            raise reason from error
        raise
    finally:
        team.end()


def _located(error: QuantStudioError, rank: int, seat: Seat) -> QuantStudioError:
    """The error with the GPU on which it happened."""
    why = f"It happened on GPU {rank} of the {seat.count} that train together. {error.why}".rstrip()
    return type(error)(error.what, why=why, hint=error.hint, field=error.field)


def _lost(status: int, rank: int, seat: Seat) -> QuantStudioError:
    """Why a process ended without a word, as well as its exit status can tell."""
    if sys.platform != "win32" and status == -signal.SIGKILL:
        return OutOfMemory(
            f"The process that trains on GPU {rank} was ended by the system, most likely because memory ran out.",
            why=f"Each of the {seat.count} GPUs has a process that holds the original model.",
            hint="Close other programs, train LoRA instead of all weights, or take a smaller model.",
        )
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return WorkerLost(
        f"The process that trains on GPU {rank} ended without saying how.",
        why=f"It ended with {how}.",
        hint="Its last words are in the log. Try again; if it happens again, please report it.",
    )
