"""How far a download is and how fast, told at most ten times a second."""

from __future__ import annotations

import time
from collections import deque

from quantstudio.core import protocol
from quantstudio.core.hub import HubFile, TransferStage
from quantstudio.engine.reporter import Reporter

INTERVAL_S = 0.1
WINDOW_S = 5.0
"""The speed is an average over so many seconds."""


class Meter:
    """Counts bytes of all files of one download and reports them."""

    def __init__(self, reporter: Reporter, files: list[HubFile]) -> None:
        self._reporter = reporter
        self._total = sum(file.size for file in files)
        self._files = len(files)
        self._files_done = 0
        self._finished = 0
        self._file: HubFile | None = None
        self._here = 0
        self._told = 0.0
        self._arrivals: deque[tuple[float, int]] = deque()
        self.fetched = 0

    def begin(self, file: HubFile, have: int) -> None:
        """The next file starts with `have` bytes that are here already."""
        self._file, self._here = file, have
        self.tell(TransferStage.FETCHING, force=True)

    def set_position(self, have: int) -> None:
        """So many bytes of the file are here now (less than before when it starts anew)."""
        self._here = have

    def arrived(self, count: int) -> None:
        """Bytes came over the network."""
        self.fetched += count
        self._here += count
        now = time.monotonic()
        self._arrivals.append((now, count))
        while self._arrivals and self._arrivals[0][0] < now - WINDOW_S:
            self._arrivals.popleft()
        self.tell(TransferStage.FETCHING)

    def finished(self) -> None:
        """The file is here, whole and verified."""
        if self._file is not None:
            self._finished += self._file.size
        self._files_done += 1
        self._file, self._here = None, 0
        self.tell(TransferStage.FETCHING, force=self._files_done == self._files)

    def tell(self, stage: TransferStage, detail: str = "", *, force: bool = False) -> None:
        """Report, unless it was done a moment ago. Raises Cancelled."""
        now = time.monotonic()
        if not force and now - self._told < INTERVAL_S:
            return
        self._told = now
        done = self._finished + self._here
        speed = self._speed(now)
        self._reporter.emit(
            protocol.Transfer(
                t=time.time(),
                stage=stage.value,
                file=self._file.path if self._file else "",
                file_done=self._here,
                file_total=self._file.size if self._file else 0,
                done=done,
                total=self._total,
                files_done=self._files_done,
                files_total=self._files,
                bytes_per_s=speed,
                eta_s=(self._total - done) / speed if speed > 0 else None,
                detail=detail,
            )
        )
        self._reporter.progress(done, self._total, "bytes", self._file.path if self._file else "")

    def _speed(self, now: float) -> float:
        if not self._arrivals:
            return 0.0
        return sum(count for _, count in self._arrivals) / max(0.5, now - self._arrivals[0][0])
