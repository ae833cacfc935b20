"""A run's log, folded away until somebody wants it. Nothing is done for it while it is folded."""

from __future__ import annotations

from collections import deque

from PySide6.QtGui import QFontDatabase
from PySide6.QtWidgets import QPlainTextEdit, QVBoxLayout, QWidget

from quantstudio.core.run_state import MAX_LOG_LINES
from quantstudio.gui.language import tr
from quantstudio.gui.theme import set_icon
from quantstudio.gui.widgets.basics import button

HEIGHT = 220
_WHOLE_EVERY = 5
"""A full log has no end to append to; it is replaced as a whole, and only at every fifth look."""


class LogFold(QWidget):
    """A button and, once pressed, the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.fold = button(tr("Log"), self._toggle, variant="fold", tooltip=tr("Show or hide what the job wrote."))
        self.fold.setCheckable(True)
        self.text = QPlainTextEdit()
        self.text.setReadOnly(True)
        self.text.setFixedHeight(HEIGHT)
        self.text.setMaximumBlockCount(MAX_LOG_LINES)
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.text.setAccessibleName(tr("Log of the run"))
        self.text.setToolTip(tr("What the job wrote, newest at the end. It is also kept in the run's folder."))
        self.text.setToolTip(tr("What the job wrote, the latest line at the bottom."))
        self.text.setVisible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(8)
        layout.addWidget(self.fold)
        layout.addWidget(self.text)
        self._log: deque[str] = deque()
        self._shown = 0
        self._looks = 0
        self._dress()

    def show_log(self, log: deque[str], *, new_run: bool = False) -> None:
        """Follow this log; `new_run` starts over."""
        if new_run or log is not self._log:
            self._log, self._shown = log, 0
            self.text.clear()
        self.fold.setText(f"{tr('Log')} ({len(log)})" if log else tr("Log"))
        if self.fold.isChecked():
            self._catch_up()

    def _catch_up(self) -> None:
        self._looks += 1
        full = len(self._log) == self._log.maxlen
        if len(self._log) < self._shown or (full and self._shown == len(self._log)):
            if self._looks % _WHOLE_EVERY and full:
                return
            if full and self._log[-1] == self._last_line():
                return
            self.text.setPlainText("\n".join(self._log))
            self._to_end()
        elif len(self._log) > self._shown:
            at_end = self._at_end()
            self.text.appendPlainText("\n".join(list(self._log)[self._shown :]))
            if at_end:
                self._to_end()
        self._shown = len(self._log)

    def _last_line(self) -> str:
        return self.text.document().lastBlock().text()

    def _at_end(self) -> bool:
        bar = self.text.verticalScrollBar()
        return bar.value() >= bar.maximum() - 2

    def _to_end(self) -> None:
        bar = self.text.verticalScrollBar()
        bar.setValue(bar.maximum())

    def _toggle(self) -> None:
        self.text.setVisible(self.fold.isChecked())
        self._dress()
        if self.fold.isChecked():
            self._catch_up()

    def _dress(self) -> None:
        set_icon(self.fold, "chevron-down" if self.fold.isChecked() else "chevron-right", "muted")
