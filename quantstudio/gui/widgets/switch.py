"""An on/off switch. A check box for keyboards and screen readers, drawn as what it does."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QCheckBox, QSizePolicy

from quantstudio.gui.theme import active_tokens

WIDTH, HEIGHT, KNOB = 38, 22, 16


class Switch(QCheckBox):
    """A check box without a text of its own; its row's label is its buddy."""

    def __init__(self) -> None:
        super().__init__()
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        return QSize(WIDTH + 4, HEIGHT + 8)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return self.sizeHint()

    def hitButton(self, pos: QPoint) -> bool:  # noqa: N802
        return self.rect().contains(pos)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        tokens = active_tokens()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        track = QRectF(2, (self.height() - HEIGHT) / 2, WIDTH, HEIGHT)
        on = self.isChecked()
        if not self.isEnabled():
            track_colour, knob_colour = tokens.border, tokens.disabled
        else:
            track_colour, knob_colour = (tokens.accent, tokens.on_accent) if on else (tokens.border_strong, tokens.card)
        painter.setPen(QPen(QColor(tokens.text), 1.5) if self.hasFocus() else Qt.PenStyle.NoPen)
        painter.setBrush(QColor(track_colour))
        painter.drawRoundedRect(track.adjusted(0.5, 0.5, -0.5, -0.5), HEIGHT / 2, HEIGHT / 2)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(knob_colour))
        gap = (HEIGHT - KNOB) / 2
        x = track.right() - gap - KNOB if on else track.left() + gap
        painter.drawEllipse(QRectF(x, track.top() + gap, KNOB, KNOB))
        painter.end()
