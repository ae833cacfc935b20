"""Downloads in a row: one fetches, the others wait; each can be paused, gone on with, tried again or given up.

One at a time, because two would share one line and both come later. Pausing is cancelling the worker: what was fetched
stays on the disk, and the next worker goes on from there. Lives as long as the window, whatever page is shown; the list
outlives it (`download_list`), and nothing of it starts by itself in the next window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from PySide6.QtCore import QObject, Signal, SignalInstance

from quantstudio.client.download_list import Ending, KeptDownload, read_list, write_list
from quantstudio.client.worker_process import Patience, WorkerProcess
from quantstudio.core import protocol
from quantstudio.core.cache import local_snapshot
from quantstudio.core.hub import DownloadResult, DownloadState
from quantstudio.core.jobs import DownloadJob, RemoveJob
from quantstudio.core.paths import hub_cache
from quantstudio.core.protocol import Message
from quantstudio.core.run_state import Status


class DownloadStatus(StrEnum):
    """Where a download stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    """Cut off by the end of the window before; waits to be resumed."""
    DONE = "done"
    FAILED = "failed"

    @property
    def active(self) -> bool:
        """Whether it will go on by itself."""
        return self in (DownloadStatus.WAITING, DownloadStatus.RUNNING, DownloadStatus.PAUSING)

    @property
    def resumable(self) -> bool:
        """Whether it goes on when it is told to."""
        return self in (DownloadStatus.PAUSED, DownloadStatus.INTERRUPTED, DownloadStatus.FAILED)


@dataclass(slots=True)
class Download:
    """One model on its way. `files` has (done, total) of each file seen so far, in bytes."""

    job: DownloadJob
    status: DownloadStatus = DownloadStatus.WAITING
    state: DownloadState = field(default_factory=DownloadState)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    error: protocol.Error | None = None
    result: DownloadResult | None = None
    given_up: bool = False

    @property
    def model(self) -> str:
        """`owner/name`."""
        return self.job.model

    def take(self, state: DownloadState) -> None:
        """Take in where it stands. Files come one after the other, and the last word on a small one may be left out."""
        self.state = state
        if not state.file:
            return
        if state.file not in self.files:
            self.files = {name: (total, total) for name, (_, total) in self.files.items()}
        self.files[state.file] = (state.file_done, state.file_total)

    def kept(self) -> KeptDownload | None:
        """As the next window will find it; None for one that is done or given up."""
        if self.given_up or self.status is DownloadStatus.DONE:
            return None
        ends: dict[DownloadStatus, Ending] = {
            DownloadStatus.PAUSED: "paused",
            DownloadStatus.PAUSING: "paused",
            DownloadStatus.FAILED: "failed",
        }
        status = ends.get(self.status, "interrupted")
        return KeptDownload(job=self.job, status=status, done=self.state.done, total=self.state.total, error=self.error)

    @staticmethod
    def of(kept: KeptDownload) -> Download:
        """As the window before left it."""
        state = DownloadState(done=kept.done, total=kept.total)
        return Download(kept.job, DownloadStatus(kept.status), state, error=kept.error)


class DownloadQueue(QObject):
    """The downloads of this window, by model. All signals carry the model's id; `changed` comes at most every 40 ms."""

    added = Signal(str)
    changed = Signal(str)
    removed = Signal(str)
    done = Signal(str)

    def __init__(
        self,
        parent: QObject | None = None,
        *,
        command: Sequence[str] | None = None,
        patience: Patience | None = None,
        kept: Path | None = None,
    ) -> None:
        """`kept`: the file in which the list outlives the window; None: nowhere."""
        super().__init__(parent)
        self._command, self._patience, self._kept = command, patience, kept
        before = self._seen = read_list(kept) if kept else []
        self._downloads = {each.job.model: Download.of(each) for each in before}
        self._worker: WorkerProcess | None = None
        self._active = ""
        self._removing: dict[str, WorkerProcess] = {}
        self._closing = False

    @property
    def downloads(self) -> list[Download]:
        """Every download, in the order in which they were added."""
        return list(self._downloads.values())

    def download(self, model: str) -> Download | None:
        """The download of this model, if there is one."""
        return self._downloads.get(model)

    def add(self, job: DownloadJob) -> None:
        """Line up a download; one of the same model that is paused, failed or done starts again with this job."""
        known = self._downloads.get(job.model)
        if known is not None and known.status.active:
            return
        self._downloads[job.model] = Download(job)
        self._tell(job.model, self.changed if known else self.added)
        self._start_next()

    def pause(self, model: str) -> None:
        """Stop, and keep what was fetched. One that waits is taken out of the line."""
        download = self._downloads.get(model)
        if download is None or not download.status.active:
            return
        if model == self._active and self._worker is not None:
            download.status = DownloadStatus.PAUSING
            self._worker.cancel()
        else:
            download.status = DownloadStatus.PAUSED
        self._tell(model)

    def resume(self, model: str) -> None:
        """Go on with one that is paused, interrupted or failed."""
        download = self._downloads.get(model)
        if download is not None and download.status.resumable:
            download.status, download.error = DownloadStatus.WAITING, None
            self._tell(model)
            self._start_next()

    def resume_interrupted(self) -> None:
        """Go on with everything that the end of the window before cut off, in its old order."""
        for download in self.downloads:
            if download.status is DownloadStatus.INTERRUPTED:
                self.resume(download.model)

    def give_up(self, model: str) -> None:
        """Stop and forget it. What it fetched of a model that is not here otherwise is deleted."""
        download = self._downloads.get(model)
        if download is None:
            return
        if model == self._active and self._worker is not None:
            download.given_up = True
            self.pause(model)
        else:
            self._forget(download)

    def shutdown(self) -> None:
        """End what works at once; what was fetched stays, and so does the list. Call before the window is gone."""
        self._keep()
        self._closing = True
        for worker in filter(None, (self._worker, *self._removing.values())):
            worker.shutdown()

    def _start_next(self) -> None:
        if self._worker is not None or self._closing:
            return
        waiting = (each for each in self._downloads.values() if each.status is DownloadStatus.WAITING)
        ready = (each for each in waiting if each.model not in self._removing)
        if (download := next(ready, None)) is None:
            return
        download.status, self._active = DownloadStatus.RUNNING, download.model
        self._worker = WorkerProcess(self, command=self._command, patience=self._patience)
        self._worker.received.connect(self._on_received)
        self._worker.finished.connect(self._on_finished)
        self._worker.start(download.job)
        self._tell(download.model)

    def _on_received(self, batch: list[Message]) -> None:
        download = self._downloads.get(self._active)
        if download is None:
            return
        total = download.state.total
        for message in batch:
            if isinstance(message, protocol.Transfer):
                download.take(DownloadState.of(message))
        if download.state.total != total:
            self._keep()
        self.changed.emit(download.model)

    def _on_finished(self) -> None:
        worker, download = self._worker, self._downloads.get(self._active)
        if worker is None:
            return
        self._worker, self._active = None, ""
        worker.deleteLater()
        if download is not None:
            self._end(download, worker)
        self._start_next()

    def _end(self, download: Download, worker: WorkerProcess) -> None:
        state = worker.state
        if state.status is Status.DONE and state.result is not None:
            download.status = DownloadStatus.DONE
            download.result = DownloadResult.model_validate(state.result.data)
        elif state.error is not None:
            download.status, download.error = DownloadStatus.FAILED, state.error
        else:
            download.status = DownloadStatus.PAUSED
        if download.given_up and download.status is not DownloadStatus.DONE:
            self._forget(download)
            return
        self._tell(download.model)
        if download.status is DownloadStatus.DONE:
            self.done.emit(download.model)

    def _forget(self, download: Download) -> None:
        del self._downloads[download.model]
        self._keep()
        self.removed.emit(download.model)
        started = download.state.total > 0 and download.status is not DownloadStatus.DONE
        if started and local_snapshot(hub_cache(), download.model, "") is None:
            self._remove_remains(download.model)

    def _tell(self, model: str, signal: SignalInstance | None = None) -> None:
        """A download stands elsewhere now: write it down, and say so."""
        self._keep()
        (signal or self.changed).emit(model)

    def _keep(self) -> None:
        if self._kept and not self._closing:  # what ends because the window does is to come back
            mine = [kept for download in self.downloads if (kept := download.kept())]
            if write_list(self._kept, mine, self._seen):
                self._seen = mine

    def _remove_remains(self, model: str) -> None:
        """Delete what a given-up download has left; the library shows it if that fails."""
        worker = self._removing[model] = WorkerProcess(self, command=self._command, patience=self._patience)
        worker.finished.connect(self._on_removed)
        worker.start(RemoveJob(model=model))

    def _on_removed(self) -> None:
        for model, worker in list(self._removing.items()):
            if not worker.running:
                del self._removing[model]
                worker.deleteLater()
                self.removed.emit(model)
        self._start_next()
