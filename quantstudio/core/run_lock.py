"""Who works in a run folder: one process, known by a lock that the operating system releases when it dies.

The lock answers both questions that a process id alone cannot: is the worker still there (ids are used again), and
does another window already work here. It is advisory and local: two machines on one network share are not covered.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from quantstudio.core.errors import RunBusy

LOCK_FILE = "run.lock"
_PATIENCE_S = 0.3
"""Another process that only looks whether a run is alive holds the lock for an instant."""


class RunLock:
    """Exclusive hold of a run folder. Use with `with`; raises RunBusy when another process has it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._handle: int | None = None

    def __enter__(self) -> Self:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + _PATIENCE_S
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                os.close(handle)
                raise RunBusy(
                    f"The run {self._path.parent.name} is being worked on.",
                    why="Another window or command has it open.",
                    hint="Wait until it is finished, or cancel it there.",
                )
            time.sleep(0.02)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)  # closing releases the lock
            self._handle = None


def is_locked(folder: Path) -> bool:
    """Whether a process works in the folder now. A folder that cannot be opened counts as not locked."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        # flock, not lockf: a record lock would be lost when any other handle to the file is closed in this process.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
