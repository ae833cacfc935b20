"""The names of a chart's curves and reference lines, in rows above the plot.

Names at the ends of their lines would lie on top of each other whenever the values are close, which is when they
matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QPen

from quantstudio.gui.tokens import Tokens

ROW, DASH, GAP, BETWEEN = 18.0, 16.0, 6.0, 16.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One name. `colour` is an index into the theme's colours of data; references are dashed."""

    text: str
    colour: int
    dashed: bool = False


def places(entries: Sequence[Entry], metrics: QFontMetricsF, width: float) -> list[QRectF]:
    """Where each entry stands, from the top left, in as many rows as `width` needs."""
    found: list[QRectF] = []
    x = y = 0.0
    for entry in entries:
        wide = DASH + GAP + metrics.horizontalAdvance(entry.text)
        if x and x + wide > width:
            x, y = 0.0, y + ROW
        found.append(QRectF(x, y, min(wide, width), ROW))
        x += wide + BETWEEN
    return found


def height(entries: Sequence[Entry], metrics: QFontMetricsF, width: float) -> float:
    """Room that the rows take; 0 without entries."""
    return max((place.bottom() for place in places(entries, metrics, width)), default=0.0)


def paint(painter: QPainter, tokens: Tokens, entries: Sequence[Entry], width: float) -> None:
    """Paint the rows from the painter's origin in its font."""
    metrics = QFontMetricsF(painter.font())
    for entry, box in zip(entries, places(entries, metrics, width), strict=True):
        colour = QColor(tokens.series[entry.colour % len(tokens.series)])
        painter.setPen(QPen(colour, 2, Qt.PenStyle.DashLine if entry.dashed else Qt.PenStyle.SolidLine))
        middle = box.center().y()
        painter.drawLine(QPointF(box.left(), middle), QPointF(box.left() + DASH, middle))
        painter.setPen(QColor(tokens.muted))
        words = box.adjusted(DASH + GAP, 0, 1, 0)
        text = metrics.elidedText(entry.text, Qt.TextElideMode.ElideRight, words.width() + 1)
        painter.drawText(words, Qt.AlignmentFlag.AlignVCenter, text)
