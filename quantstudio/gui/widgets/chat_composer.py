"""Where a person writes: Enter sends, Shift+Enter starts a new line, Escape stops the answer."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QPlainTextEdit, QSizePolicy, QVBoxLayout

from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import button

MIN_LINES, MAX_LINES = 1, 8


class Field(QPlainTextEdit):
    """A text box that grows with its text."""

    entered = Signal()
    escaped = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setTabChangesFocus(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.document().documentLayout().documentSizeChanged.connect(lambda _: self._fit())
        self._fit()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802 - Qt's name
        plain = not event.modifiers() & (Qt.KeyboardModifier.ShiftModifier | Qt.KeyboardModifier.AltModifier)
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and plain:
            self.entered.emit()
        elif event.key() == Qt.Key.Key_Escape:
            self.escaped.emit()
        else:
            super().keyPressEvent(event)

    def _fit(self) -> None:
        lines = min(MAX_LINES, max(MIN_LINES, round(self.document().size().height())))
        self.setFixedHeight(lines * self.fontMetrics().lineSpacing() + 22)


class Composer(QFrame):
    """The field and one button, which sends or stops."""

    sent = Signal(str)
    stopped = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.field = Field()
        self.field.setAccessibleName(tr("Your message"))
        self.field.setToolTip(tr("Enter sends, Shift+Enter starts a new line."))
        self.send = button(
            tr("Send"), self._send, icon="send", variant="primary", tooltip=tr("Send your message (Enter).")
        )
        self.stop = button(
            tr("Stop"), self.stopped.emit, icon="stop", variant="danger", tooltip=tr("End this answer (Escape).")
        )
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(8)
        layout.addWidget(self.field, 1)
        side = QVBoxLayout()
        side.addStretch(0)
        for each in (self.send, self.stop):
            each.setFixedWidth(96)
            each.setMaximumHeight(self.field.height())
            each.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Expanding)
            side.addWidget(each, 1000)
        layout.addLayout(side)
        self.field.entered.connect(self._send)
        self.field.escaped.connect(self.stopped)
        self.setFocusProxy(self.field)
        self._may_be_empty = False
        self.set_answering(on=False)

    def set_answering(self, *, on: bool) -> None:
        """While an answer is written the button stops it."""
        self._answering = on
        had_focus = self.stop.hasFocus() or self.send.hasFocus()
        self.send.setVisible(not on)
        self.stop.setVisible(on)
        if had_focus:
            self.field.setFocus()

    def set_mode(self, *, template: bool) -> None:
        """In plain continuation an empty message is fine: the model just goes on."""
        self._may_be_empty = not template
        words = tr("Write a message…") if template else tr("Write the beginning of a text…")
        self.field.setPlaceholderText(words)

    def _send(self) -> None:
        text = self.field.toPlainText()
        if self._answering or not (text.strip() or self._may_be_empty):
            return
        self.sent.emit(text if self._may_be_empty else text.strip())

    def clear(self) -> None:
        """Empty the field, after its text was taken."""
        self.field.clear()
