"""Runs in a row: one works, the others wait, and each keeps its state.

One at a time, because two jobs on one machine would falsify each other's timings and share its memory. A run that
fails, is killed or cannot even start does not hold up the next.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PySide6.QtCore import QObject, Signal

from quantstudio.client.worker_process import Patience, WorkerProcess
from quantstudio.core import protocol, run_store
from quantstudio.core.errors import RunBusy
from quantstudio.core.jobs import RunJob
from quantstudio.core.protocol import Message
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import load_recipe
from quantstudio.core.run_lock import RunLock
from quantstudio.core.run_state import RunState, Status, replay


@dataclass(slots=True)
class _Entry:
    """A run of this queue. `worker` is set while its process lives; `hold` has the folder's lock while it waits."""

    folder: Path
    recipe: Recipe
    state: RunState = field(default_factory=RunState)
    worker: WorkerProcess | None = None
    hold: ExitStack = field(default_factory=ExitStack)


class RunQueue(QObject):
    """The runs started by this window. Ids are the names of run folders.

    `added`, `changed` and `finished` carry a run's id; `changed` comes at most every 40 ms for each run. `received`
    carries the id and a batch of messages, for those who need each one.
    """

    added = Signal(str)
    changed = Signal(str)
    finished = Signal(str)
    received = Signal(str, object)

    def __init__(
        self,
        parent: QObject | None = None,
        *,
        command: Sequence[str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(parent)
        self._command, self._patience = command, patience
        self._entries: dict[str, _Entry] = {}

    @property
    def command(self) -> Sequence[str] | None:
        """What starts a worker; None: the real one."""
        return self._command

    @property
    def runs(self) -> list[tuple[str, RunState]]:
        """Every run of this queue with its state, in the order in which they were added."""
        return [(run_id, entry.state) for run_id, entry in self._entries.items()]

    @property
    def active(self) -> str | None:
        """The run whose process lives; None when nothing works."""
        return next((run_id for run_id, entry in self._entries.items() if entry.worker is not None), None)

    def state(self, run_id: str) -> RunState | None:
        """The live state of a run; None when this queue does not have it (see `run_store` for history)."""
        entry = self._entries.get(run_id)
        return entry.state if entry else None

    def folder(self, run_id: str) -> Path | None:
        """The run's folder; None when this queue does not have it."""
        entry = self._entries.get(run_id)
        return entry.folder if entry else None

    def recipe(self, run_id: str) -> Recipe | None:
        """The run's recipe; None when this queue does not have it."""
        entry = self._entries.get(run_id)
        return entry.recipe if entry else None

    def add(self, recipe: Recipe, runs_home: Path) -> str:
        """Make a run folder for the recipe and line it up; its id. Raises DiskProblem."""
        return self._line_up(run_store.create_run(runs_home, recipe), recipe)

    def resume(self, folder: Path) -> str:
        """Line up a run that ended before its time (see `run_store.can_resume`) to go on; its id.

        Raises RecipeError when its recipe cannot be read.
        """
        recipe = load_recipe(folder / run_store.RECIPE)
        ends = protocol.TERMINAL
        so_far = replay([message for message in run_store.read_messages(folder) if not isinstance(message, ends)])
        so_far.status = Status.WAITING
        return self._line_up(folder, recipe, so_far)

    def _line_up(self, folder: Path, recipe: Recipe, state: RunState | None = None) -> str:
        self._entries[folder.name] = entry = _Entry(folder, recipe, state or RunState())
        # Held while it waits, so that history can tell a run that waits from one whose window is gone.
        with suppress(RunBusy):
            entry.hold.enter_context(RunLock(folder))
        self.added.emit(folder.name)
        self._start_next()
        return folder.name

    def cancel(self, run_id: str) -> None:
        """Ask a working run to stop, by force after a while; take a waiting one out of the line."""
        entry = self._entries.get(run_id)
        if entry is None or entry.state.status.final:
            return
        if entry.worker is not None:
            entry.worker.cancel()
            self.changed.emit(run_id)
            return
        entry.state.apply(protocol.CancelledMessage())
        self._end(run_id, entry)

    def kill(self, run_id: str) -> None:
        """End a working run's process at once."""
        entry = self._entries.get(run_id)
        if entry is not None and entry.worker is not None:
            entry.worker.kill()

    def shutdown(self) -> None:
        """Cancel what waits and end what works, at once. Call before the window is gone."""
        for run_id, entry in reversed(list(self._entries.items())):
            if entry.worker is None:
                self.cancel(run_id)
            else:
                entry.worker.shutdown()

    def _start_next(self) -> None:
        if self.active is not None:
            return
        for run_id, entry in self._entries.items():
            if entry.state.status is Status.WAITING:
                self._start(run_id, entry)
                return

    def _start(self, run_id: str, entry: _Entry) -> None:
        worker = WorkerProcess(self, command=self._command, patience=self._patience)
        entry.worker, worker.state = worker, entry.state  # curves of a run that is resumed go on
        # Bound methods, not functions that hold the worker: a connection that keeps its own sender alive would have it
        # destroyed twice. Only one run has a worker, so there is no doubt whose signal it is.
        worker.received.connect(self._pass_on)
        worker.finished.connect(self._on_finished)
        _let_go(entry)
        worker.start(RunJob(recipe=entry.recipe, run_folder=str(entry.folder)))
        self.changed.emit(run_id)

    def _pass_on(self, batch: list[Message]) -> None:
        if (run_id := self.active) is not None:
            self.received.emit(run_id, batch)
            self.changed.emit(run_id)

    def _on_finished(self) -> None:
        if (run_id := self.active) is None:
            return
        entry = self._entries[run_id]
        if entry.worker is not None:
            entry.worker.deleteLater()
            entry.worker = None
        self._end(run_id, entry)
        self._start_next()

    def _end(self, run_id: str, entry: _Entry) -> None:
        self._settle(entry)
        self.changed.emit(run_id)
        self.finished.emit(run_id)

    def _settle(self, entry: _Entry) -> None:
        """Bring the folder in line with what we know, in case the worker could not do it itself."""
        _let_go(entry)
        ending = entry.state.error or protocol.CancelledMessage(t=entry.state.last)
        if entry.state.status is Status.DONE:
            return
        try:
            run_store.settle(entry.folder, ending)
        except (RunBusy, OSError) as error:
            # The state in the window is right all the same; the folder is settled at the next start.
            entry.state.log.append(f"The run's folder could not be brought up to date: {error}")


def _let_go(entry: _Entry) -> None:
    """Give the folder's lock up for the worker to take; the header's time says that this was just now."""
    with suppress(OSError):
        os.utime(entry.folder / run_store.HEADER)
    entry.hold.close()
