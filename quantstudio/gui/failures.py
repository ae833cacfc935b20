"""Mistakes of ours, told in a window that stays.

Qt hands an exception of any slot, paint event or thread of a pool to `sys.excepthook`, in the thread and at the moment
where it happened. A message box made there would end the process without a word: widgets may be made in the window's
thread alone, and a box that opens inside of a paint event paints again and fails again. So what happened is only passed
on, and the box opens when the window's thread comes back to its event loop.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

import shiboken6
from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtWidgets import QMessageBox


class Failures(QObject):
    """Tells each mistake once: what fails while painting would fail again at every look."""

    _happened = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._known: set[str] = set()
        self._happened.connect(self._show, Qt.ConnectionType.QueuedConnection)

    def take(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """As `sys.excepthook`, from any thread: always to stderr, where a log may be kept, and soon in a box."""
        details = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(details)
        if shiboken6.isValid(self):  # the last objects may fail when the window is gone
            self._happened.emit(details)

    def _show(self, details: str) -> None:
        if details in self._known:
            return
        self._known.add(details)
        box = QMessageBox()
        box.setIcon(QMessageBox.Icon.Warning)
        box.setWindowTitle("QuantStudio")
        box.setText("Something went wrong in the window.")
        box.setInformativeText("Runs at work go on. If it happens again, please report it with the details below.")
        box.setDetailedText(details)
        box.exec()
