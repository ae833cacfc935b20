"""What was said, one panel for each turn. Plain text throughout: nothing a model writes is ever markup.

Pieces of an answer are gathered and put into the text at most 30 times a second, at its end, so that a model which
writes hundreds of tokens a second costs the window next to nothing.
"""

from __future__ import annotations

from PySide6.QtCore import QMargins, QSizeF, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication, QResizeEvent, QTextCursor, QTextOption, QWheelEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QScrollArea, QSizePolicy, QTextEdit, QVBoxLayout, QWidget

from quantstudio.core.conversation import Turn
from quantstudio.core.humanize import human_rate, human_seconds, plural
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import MARGIN, ElidedLabel, button, row
from quantstudio.gui.widgets.scroll_margin import keep_margin

FLUSH_MS = 33
READING_WIDTH = 820
MINE_WIDTH = 560
_REASONS = {
    "length": "the longest answer was reached",
    "stopped": "stopped",
    "failed": "no answer",
}


class PlainText(QTextEdit):
    """Text as high as it is long, to be selected and copied but never edited. No markup is interpreted."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setReadOnly(True)
        self.setAcceptRichText(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setStyleSheet("QTextEdit { background: transparent; border: none; padding: 0; }")
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setTabChangesFocus(True)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.setAccessibleName(name)
        self.document().setDocumentMargin(0)
        self.document().setUndoRedoEnabled(False)
        self.document().documentLayout().documentSizeChanged.connect(self._fit)

    def append_piece(self, text: str) -> None:
        """Add to the end; the selection stays."""
        cursor = QTextCursor(self.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(text)

    def trim(self) -> None:
        """Take away empty lines at the end: models often write some before they stop."""
        text = self.toPlainText()
        cursor = QTextCursor(self.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        empty = len(text) - len(text.rstrip())
        cursor.movePosition(QTextCursor.MoveOperation.Left, QTextCursor.MoveMode.KeepAnchor, empty)
        cursor.removeSelectedText()

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 - Qt's name
        event.ignore()  # the conversation scrolls, not one turn

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit(self.document().size())

    def _fit(self, size: QSizeF) -> None:
        height = max(self.fontMetrics().lineSpacing(), round(size.height() + 0.5))
        if height != self.height():
            self.setFixedHeight(height)


class Bubble(QFrame):
    """One turn: who, what, and under an answer how fast it came."""

    again_asked = Signal()

    def __init__(self, role: str, text: str = "") -> None:
        super().__init__()
        mine = self.mine = role == "user"
        self.setProperty("role", "info" if mine else "card")
        self.setAccessibleName(tr("You") if mine else tr("Answer"))
        self.body = PlainText(tr("What you said") if mine else tr("The model's answer"))
        self.body.setPlainText(text.rstrip())
        self.numbers = ElidedLabel("", "caption")
        self.copy = button(
            tr("Copy"), self._copy, icon="copy", variant="ghost", tooltip=tr("Put this text on the clipboard.")
        )
        self.again = button(
            tr("Again"),
            self.again_asked.emit,
            icon="refresh",
            variant="ghost",
            tooltip=tr("Throw this answer away and ask for another."),
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(14, 10, 14, 10)
        layout.setSpacing(4)
        layout.addWidget(self.body)
        self.foot = QWidget()
        foot = row(spacing=0)
        foot.addWidget(self.numbers, 1)
        foot.addLayout(row(self.copy, self.again, spacing=0))
        self.foot.setLayout(foot)
        self.foot.setVisible(not mine)
        self.again.setVisible(False)
        layout.addWidget(self.foot)
        if mine:
            self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
            longest = max((self.body.fontMetrics().horizontalAdvance(line) for line in text.split("\n")), default=0)
            self.body.setFixedWidth(min(MINE_WIDTH, longest + 12))

    def show_numbers(self, turn: Turn) -> None:
        """The numbers of a finished answer."""
        self.numbers.setText(answer_words(turn))

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.body.toPlainText())


def answer_words(turn: Turn) -> str:
    """`62.4 tok/s · first token after 53.1 ms · 128 tokens · stopped`."""
    parts = []
    if turn.tokens_per_s > 0:
        parts.append(human_rate(turn.tokens_per_s))
    if turn.ttft_s > 0:
        parts.append(f"{tr('first token after')} {human_seconds(turn.ttft_s)}")
    if turn.tokens:
        parts.append(plural(turn.tokens, tr("token")))
    if turn.reason in _REASONS:
        parts.append(tr(_REASONS[turn.reason]))
    return " · ".join(parts)


class ChatView(QScrollArea):
    """The conversation. While the end is in sight it stays in sight."""

    again_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName(tr("Conversation"))
        self.bubbles: list[Bubble] = []
        self._pending: list[str] = []
        self._flush_timer = QTimer(self)
        self._flush_timer.setInterval(FLUSH_MS)
        self._flush_timer.timeout.connect(self.flush)
        self._sticky = True
        inside = QWidget()
        outer = QHBoxLayout(inside)
        keep_margin(self, outer, QMargins(MARGIN, 8, MARGIN, 8))
        column = QWidget()
        column.setMaximumWidth(READING_WIDTH)
        self._column = QVBoxLayout(column)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(10)
        self._column.addStretch(1)
        outer.addStretch(1)
        outer.addWidget(column, 1000)
        outer.addStretch(1)
        self.setWidget(inside)
        bar = self.verticalScrollBar()
        bar.valueChanged.connect(self._on_scrolled)
        bar.rangeChanged.connect(self._on_grown)

    def show_turns(self, turns: list[Turn]) -> None:
        """Show this conversation instead."""
        self.clear()
        for turn in turns:
            bubble = self._add(Bubble(turn.role, turn.content))
            bubble.show_numbers(turn)
        self._mark_last()

    def clear(self) -> None:
        """Remove every turn."""
        self._flush_timer.stop()
        self._pending.clear()
        for bubble in self.bubbles:
            bubble.setParent(None)
            bubble.deleteLater()
        self.bubbles.clear()
        self._sticky = True

    def say(self, text: str) -> None:
        """Add what the person said."""
        self._add(Bubble("user", text))
        self._mark_last()

    def begin_answer(self) -> None:
        """Add an empty answer that pieces go into."""
        self._add(Bubble("assistant"))
        self._mark_last(offer_again=False)
        self.bubbles[-1].numbers.setText(tr("Reading your message…"))

    def say_reading(self, text: str) -> None:
        """How far the prompt is read, below the answer that has not begun."""
        self.bubbles[-1].numbers.setText(text)

    def add_piece(self, text: str) -> None:
        """Add to the answer, with the next flush."""
        self._pending.append(text)
        if not self._flush_timer.isActive():
            self._flush_timer.start()

    def flush(self) -> None:
        """Put what has gathered into the text now."""
        if not self._pending:
            self._flush_timer.stop()
            return
        text = "".join(self._pending)
        self._pending.clear()
        if self.bubbles:
            bubble = self.bubbles[-1]
            bubble.body.append_piece(text)
            if bubble.numbers.whole_text():
                bubble.numbers.setText("")

    def end_answer(self, turn: Turn) -> None:
        """The answer is whole."""
        self.flush()
        self.bubbles[-1].body.trim()
        self.bubbles[-1].show_numbers(turn)
        self._mark_last()

    def drop_answer(self) -> None:
        """Remove the last answer."""
        self._flush_timer.stop()
        self._pending.clear()
        bubble = self.bubbles.pop()
        bubble.setParent(None)
        bubble.deleteLater()
        self._mark_last()

    def _add(self, bubble: Bubble) -> Bubble:
        bubble.again_asked.connect(self.again_asked)
        self.bubbles.append(bubble)
        # Turns begin at the top and the stretch stays below them.
        side = Qt.AlignmentFlag.AlignRight if bubble.mine else Qt.AlignmentFlag(0)
        self._column.insertWidget(self._column.count() - 1, bubble, 0, side)
        self._sticky = True
        return bubble

    def _mark_last(self, *, offer_again: bool = True) -> None:
        for bubble in self.bubbles:
            bubble.again.setVisible(offer_again and bubble is self.bubbles[-1])

    def _on_scrolled(self, value: int) -> None:
        self._sticky = value >= self.verticalScrollBar().maximum() - 24

    def _on_grown(self, _: int, highest: int) -> None:
        if self._sticky:
            self.verticalScrollBar().setValue(highest)
