"""What lists of models paint alike: the ground of a row, a line of text, a badge."""

from __future__ import annotations

from PySide6.QtCore import QRect, QRectF, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter
from PySide6.QtWidgets import QStyle, QStyleOptionViewItem

from quantstudio.gui.tokens import Tokens

BADGE_HEIGHT, BADGE_PADDING = 18, 8


def paint_background(painter: QPainter, area: QRect, option: QStyleOptionViewItem, tokens: Tokens) -> None:
    """The ground of a row: marked, under the mouse, or nothing."""
    state = option.state
    if state & QStyle.StateFlag.State_Selected:
        colour = tokens.accent_soft
    elif state & QStyle.StateFlag.State_MouseOver:
        colour = tokens.hover
    else:
        return
    painter.setPen(QColor(tokens.accent) if state & QStyle.StateFlag.State_HasFocus else Qt.PenStyle.NoPen)
    painter.setBrush(QColor(colour))
    painter.drawRoundedRect(QRectF(area).adjusted(0.5, 0.5, -0.5, -0.5), 8, 8)


def paint_badge(painter: QPainter, area: QRect, text: str, level: str, font: QFont, tokens: Tokens) -> int:
    """A rounded tag at the right end of `area`; its width. `level`: success, warning, error, accent, or grey."""
    badge = QRect(0, 0, QFontMetrics(font).horizontalAdvance(text) + 2 * BADGE_PADDING, BADGE_HEIGHT)
    badge.moveTopRight(area.topRight())
    colours = {
        "success": (tokens.success_soft, tokens.success),
        "warning": (tokens.warning_soft, tokens.warning),
        "error": (tokens.danger_soft, tokens.danger),
        "accent": (tokens.accent_soft, tokens.accent),
    }
    background, colour = colours.get(level, (tokens.hover, tokens.muted))
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(background))
    painter.drawRoundedRect(badge, 8, 8)
    paint_line(painter, badge, text, font, colour, Qt.AlignmentFlag.AlignCenter)
    return badge.width()


def paint_line(
    painter: QPainter,
    area: QRect,
    text: str,
    font: QFont,
    colour: str,
    align: Qt.AlignmentFlag = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter,
) -> None:
    """One line of text, with … where there is no room."""
    painter.setFont(font)
    painter.setPen(QColor(colour))
    shown = QFontMetrics(font).elidedText(text.replace("\n", " "), Qt.TextElideMode.ElideRight, area.width())
    painter.drawText(area, int(align), shown)
