"""Work that is too slow for the window's thread and of which only the latest answer counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal


class Latest(QObject):
    """Runs functions one after the other in a thread; `found` brings the result of the last one asked for.

    A function must not touch widgets. What it raises is raised again in the window's thread, so that no failure is
    lost in a pool.
    """

    found = Signal(object)
    _done = Signal(int, object, object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(1)
        self._number = 0
        self._done.connect(self._take)

    def ask(self, work: Callable[[], Any]) -> None:
        """Run `work`; answers to earlier questions are dropped from now on."""
        self._number += 1
        self._pool.clear()
        self._pool.start(_Task(self._number, work, self._done.emit))

    def wait(self) -> None:
        """Drop what waits, and finish what runs without telling its answer, as before the window goes."""
        self._number += 1
        self._pool.clear()
        self._pool.waitForDone()

    def _take(self, number: int, result: Any, error: Exception | None) -> None:
        if number != self._number:
            return
        if error is not None:
            raise error
        self.found.emit(result)


class _Task(QRunnable):
    def __init__(
        self, number: int, work: Callable[[], Any], tell: Callable[[int, Any, Exception | None], None]
    ) -> None:
        super().__init__()
        self._number, self._work, self._tell = number, work, tell

    def run(self) -> None:
        try:
            result, error = self._work(), None
        except Exception as problem:
            result, error = None, problem
        # The only error that telling can raise is that whoever asked has been deleted: nobody wants the answer.
        with suppress(RuntimeError):
            self._tell(self._number, result, error)
