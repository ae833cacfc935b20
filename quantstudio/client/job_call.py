"""One job with one answer, such as a preview or a measurement, in a worker of its own.

One at a time: asking again drops the one before, because only the last one is on the screen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError
from PySide6.QtCore import QObject, Signal

from quantstudio.client.worker_process import Patience, WorkerProcess
from quantstudio.core import protocol
from quantstudio.core.errors import ProtocolMismatch
from quantstudio.core.jobs import AnyJob
from quantstudio.core.run_state import RunState, Status


class JobCall(QObject):
    """`ask` a job; then comes one of `answered` (what `read` made of the result), `failed` (an Error), `stopped`."""

    answered = Signal(object)
    failed = Signal(object)
    stopped = Signal()
    changed = Signal()
    """It started, ended, or told how far it is (`state`)."""

    def __init__(
        self,
        parent: QObject | None = None,
        *,
        command: Sequence[str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(parent)
        self._command, self._patience = command, patience
        self._worker: WorkerProcess | None = None
        self._read: Callable[[Any], object] = dict

    @property
    def busy(self) -> bool:
        """Whether an answer is waited for."""
        return self._worker is not None

    @property
    def state(self) -> RunState | None:
        """How far the job is; None when nothing is asked."""
        return self._worker.state if self._worker else None

    def ask(self, job: AnyJob, read: Callable[[Any], object]) -> None:
        """Start a worker with this job. `read` makes a typed value of the result's data or raises ValidationError."""
        self.drop()
        worker = WorkerProcess(self, command=self._command, patience=self._patience)
        worker.received.connect(self._on_received)
        worker.finished.connect(self._on_finished)
        self._worker, self._read = worker, read
        worker.start(job)
        self.changed.emit()

    def cancel(self) -> None:
        """Ask the job to stop; `stopped` comes, or its answer if it was quicker."""
        if self._worker is not None:
            self._worker.cancel()

    def drop(self) -> None:
        """End the worker at once; no signal but `changed` comes of it any more."""
        worker = self._worker
        if worker is None:
            return
        self._worker = None
        worker.received.disconnect(self._on_received)
        worker.finished.disconnect(self._on_finished)
        worker.retire()
        self.changed.emit()

    def shutdown(self) -> None:
        """As `drop`, and wait until the process is gone. Call before the window is gone."""
        if worker := self._worker:
            worker.finished.disconnect(self._on_finished)
            self._worker = None
            worker.shutdown()

    def _on_received(self, _batch: list[protocol.Message]) -> None:
        self.changed.emit()

    def _on_finished(self) -> None:
        worker = self._worker
        if worker is None:
            return
        self._worker = None
        worker.deleteLater()
        self.changed.emit()
        state = worker.state
        if state.status is Status.DONE and state.result is not None:
            self._answer(state.result.data)
        elif state.error is not None:
            self.failed.emit(state.error)
        else:
            self.stopped.emit()

    def _answer(self, data: dict[str, Any]) -> None:
        try:
            value = self._read(data)
        except ValidationError as error:
            what = "The answer of the process that did the work cannot be read."
            why = f"{error.error_count()} of its values are not what they should be."
            hint = "Close the window and start it again: it may be older than what is installed now."
            self.failed.emit(protocol.Error(t=time.time(), kind=ProtocolMismatch.kind, what=what, why=why, hint=hint))
            return
        self.answered.emit(value)
