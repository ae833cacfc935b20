"""Questions to the Hub and jobs on its cache, each in a worker of its own: the window never waits for a network.

One question at a time: asking again drops the one before, because only the last one is on the screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PySide6.QtCore import QObject, Signal

from quantstudio.client.worker_process import Patience, WorkerProcess
from quantstudio.core import protocol
from quantstudio.core.hub import Account, DownloadResult, ModelDetails, RemoveResult, SearchPage, VerifyResult
from quantstudio.core.jobs import HubJob
from quantstudio.core.run_state import RunState, Status

_RESULTS: dict[str, Callable[[Any], object]] = {
    "search": SearchPage.model_validate,
    "details": ModelDetails.model_validate,
    "download": DownloadResult.model_validate,
    "verify": VerifyResult.model_validate,
    "remove": RemoveResult.model_validate,
    "account": Account.model_validate,
}


class HubCall(QObject):
    """`ask` a job; then comes one of `answered` (the job's typed result), `failed` (a `protocol.Error`), `stopped`."""

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
        self._kind = ""

    @property
    def busy(self) -> bool:
        """Whether an answer is waited for."""
        return self._worker is not None

    @property
    def state(self) -> RunState | None:
        """How far the job is; None when nothing is asked."""
        return self._worker.state if self._worker else None

    def ask(self, job: HubJob) -> None:
        """Start a worker with this job; an earlier one is dropped and says nothing more."""
        self.drop()
        worker = WorkerProcess(self, command=self._command, patience=self._patience)
        worker.received.connect(self._on_received)
        worker.finished.connect(self._on_finished)
        self._worker, self._kind = worker, job.kind
        worker.start(job)
        self.changed.emit()

    def cancel(self) -> None:
        """Ask the job to stop; `stopped` comes, or its result if it was quicker."""
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
        state = worker.state
        self.changed.emit()
        if state.status is Status.DONE and state.result is not None:
            self.answered.emit(_RESULTS[self._kind](state.result.data))
        elif state.error is not None:
            self.failed.emit(state.error)
        else:
            self.stopped.emit()
