"""A curve that grows while a job runs.

Painted by hand: a full matplotlib draw costs 30 to 100 ms, this 1 to 5 (300 to 4,000 points), so a chart can be
redrawn ten times a second beside a job that wants every core. Pointing at the curve, or the arrow keys, read single
values off it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log10

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import (
    QColor,
    QFont,
    QFontMetricsF,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPainterPath,
    QPaintEvent,
    QPen,
    QPolygonF,
)
from PySide6.QtWidgets import QSizePolicy, QWidget

from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.tokens import Tokens
from quantstudio.gui.widgets import chart_legend
from quantstudio.gui.widgets.chart_ticks import clock, nice_ticks, power_ticks, thinned, time_ticks

HEIGHT = 150
POWERS_FROM = 20.0
"""Ratio of the largest to the smallest value."""
_TOP, _BOTTOM, _RIGHT, _GAP = 10.0, 22.0, 10.0, 8.0


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; `colour` is an index into the theme's colours of data."""

    name: str
    x: list[float]
    y: list[float]
    colour: int = 1


@dataclass(frozen=True, slots=True)
class Reference:
    """A value that does not change, drawn dashed across the chart, such as what the original reaches."""

    name: str
    y: float
    colour: int = 0


class LiveChart(QWidget):
    """Curves over time or steps. `show_lines` is cheap and repaints once.

    Several curves, or reference lines, are named in a legend above the plot.
    """

    def __init__(
        self, name: str, value_text: Callable[[float], str], *, over_time: bool = True, may_span_powers: bool = False
    ) -> None:
        """`may_span_powers`: the axis of values becomes logarithmic where they span `POWERS_FROM` and more."""
        super().__init__()
        self._may_span_powers = may_span_powers
        self._value_text = value_text
        self._x_text: Callable[[float], str] = clock if over_time else (lambda x: f"{tr('step')} {x:g}")
        self._over_time = over_time
        self._lines: tuple[Line, ...] = ()
        self._references: tuple[Reference, ...] = ()
        self._picked: float | None = None
        self._from_zero = over_time
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName(name)
        self.setToolTip(tr("Point at the curve, or use the arrow keys, to read a value."))

    def show_lines(self, lines: Sequence[Line], references: Sequence[Reference] = ()) -> None:
        """Show these curves. Empty ones are left out."""
        self._lines = tuple(line for line in lines if line.x)
        self._references = tuple(references)
        self.setAccessibleDescription(self.spoken())
        self.update()

    def spoken(self) -> str:
        """The curves in words, for those who cannot see them."""
        curves = [
            f"{line.name}: {tr('last')} {self._value_text(line.y[-1])}, {tr('at most')} {self._value_text(max(line.y))}"
            for line in self._lines
        ]
        return ". ".join([*curves, *(f"{each.name}: {self._value_text(each.y)}" for each in self._references)])

    def picked_text(self) -> str:
        """What is read off at the crosshair; empty without one."""
        if self._picked is None or not self._lines:
            return ""
        values = [(line, _nearest(line, self._picked)) for line in self._lines]
        place = self._x_text(values[0][0].x[values[0][1]])
        return f"{place}   " + "   ".join(
            (f"{line.name} " if len(values) > 1 else "") + self._value_text(line.y[index]) for line, index in values
        )

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        return QSize(320, HEIGHT)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(160, HEIGHT)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        plot, high = self._plot(), self._x_high()
        inside = bool(self._lines) and plot.width() > 0 and plot.adjusted(-4, -4, 4, 4).contains(event.position())
        self._picked = (event.position().x() - plot.left()) / plot.width() * high if inside else None
        self.update()

    def leaveEvent(self, event: QEvent) -> None:  # noqa: N802
        self._picked = None
        self.update()

    def focusOutEvent(self, event: QEvent) -> None:  # noqa: N802
        self._picked = None
        super().focusOutEvent(event)  # type: ignore[arg-type]
        self.update()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        steps = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1, Qt.Key.Key_Home: -(1 << 30), Qt.Key.Key_End: 1 << 30}
        step = steps.get(Qt.Key(event.key()))
        if step is None or not self._lines:
            super().keyPressEvent(event)
            return
        line = self._lines[0]
        here = len(line.x) if self._picked is None else _nearest(line, self._picked)
        self._picked = line.x[min(len(line.x) - 1, max(0, here + step))]
        self.setAccessibleDescription(self.picked_text())
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        tokens = active_tokens()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(self._small_font())
        if not self._lines:
            painter.setPen(QColor(tokens.muted))
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, tr("Nothing measured yet"))
        else:
            self._paint_chart(painter, tokens)
        if self.hasFocus():
            painter.setPen(QPen(QColor(tokens.accent), 1))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), 6, 6)
        painter.end()

    def _paint_chart(self, painter: QPainter, tokens: Tokens) -> None:
        plot, high, ticks = self._plot(), self._x_high(), self._y_ticks()
        self._paint_grid(painter, tokens, plot, ticks)

        def place(x: float, y: float) -> QPointF:
            return QPointF(plot.left() + x / high * plot.width(), self._y_place(plot, ticks, y))

        self._paint_references(painter, tokens, plot, place)
        for line in self._lines:
            x, y = thinned(line.x, line.y, max(1, int(plot.width())))
            points = [place(a, b) for a, b in zip(x, y, strict=True)]
            alone = len(self._lines) == 1 and not self._references
            _paint_line(painter, points, plot, QColor(_colour(tokens, line)), fill=alone)
        if self._picked is not None:
            self._paint_picked(painter, tokens, plot, place)

    def _paint_references(
        self, painter: QPainter, tokens: Tokens, plot: QRectF, place: Callable[[float, float], QPointF]
    ) -> None:
        for each in self._references:
            y = place(0.0, each.y).y()
            painter.setPen(QPen(QColor(tokens.series[each.colour % len(tokens.series)]), 1.5, Qt.PenStyle.DashLine))
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
        painter.save()
        painter.translate(plot.left(), _TOP - 6)
        chart_legend.paint(painter, tokens, self._legend(), plot.width())
        painter.restore()

    def _legend(self) -> list[chart_legend.Entry]:
        if len(self._lines) < 2 and not self._references:
            return []
        curves = [
            chart_legend.Entry(f"{line.name} {self._value_text(line.y[-1])}", line.colour) for line in self._lines
        ]
        dashed = [
            chart_legend.Entry(f"{each.name} {self._value_text(each.y)}", each.colour, dashed=True)
            for each in self._references
        ]
        return curves + dashed

    def _paint_grid(self, painter: QPainter, tokens: Tokens, plot: QRectF, ticks: list[float]) -> None:
        texts = QColor(tokens.muted)
        for tick in ticks:
            y = self._y_place(plot, ticks, tick)
            painter.setPen(QPen(QColor(tokens.border), 1))
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
            painter.setPen(texts)
            box = QRectF(0, y - 10, plot.left() - _GAP, 20)
            painter.drawText(box, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, self._value_text(tick))
        high = self._x_high()
        count = max(2, int(plot.width() / 90))
        marks = time_ticks(high, count) if self._over_time else _whole(nice_ticks(0.0, high, count))
        for mark in marks:
            x = plot.left() + mark / high * plot.width()
            if x <= plot.right() + 1:
                box = QRectF(x - 40, plot.bottom() + 4, 80, 16)
                flag = Qt.AlignmentFlag.AlignHCenter
                if x + 20 > self.width():
                    box, flag = QRectF(self.width() - 82, plot.bottom() + 4, 80, 16), Qt.AlignmentFlag.AlignRight
                # The unit of steps stands at the first mark alone, for want of room.
                text = self._x_text(mark) if self._over_time or mark == marks[0] else f"{mark:g}"
                painter.drawText(box, flag | Qt.AlignmentFlag.AlignTop, text)

    def _paint_picked(
        self, painter: QPainter, tokens: Tokens, plot: QRectF, place: Callable[[float, float], QPointF]
    ) -> None:
        line = self._lines[0]
        x = place(line.x[_nearest(line, self._picked or 0.0)], 0).x()
        painter.setPen(QPen(QColor(tokens.border_strong), 1))
        painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))
        for each in self._lines:
            index = _nearest(each, self._picked or 0.0)
            painter.setPen(QPen(QColor(tokens.card), 2))
            painter.setBrush(QColor(_colour(tokens, each)))
            painter.drawEllipse(place(each.x[index], each.y[index]), 5, 5)
        text = self.picked_text()
        width = QFontMetricsF(painter.font()).horizontalAdvance(text) + 16
        left = min(max(plot.left(), x - width / 2), plot.right() - width)
        box = QRectF(left, plot.top(), width, 22)
        painter.setPen(QPen(QColor(tokens.border_strong), 1))
        painter.setBrush(QColor(tokens.card))
        painter.drawRoundedRect(box, 5, 5)
        painter.setPen(QColor(tokens.text))
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, text)

    def _plot(self) -> QRectF:
        metrics = QFontMetricsF(self._small_font())
        left = max((metrics.horizontalAdvance(self._value_text(tick)) for tick in self._y_ticks()), default=40.0)
        left += _GAP + 2
        legend = chart_legend.height(self._legend(), metrics, self.width() - left - _RIGHT)
        return QRectF(self.rect()).adjusted(left, _TOP + legend, -_RIGHT, -_BOTTOM)

    def _small_font(self) -> QFont:
        font = QFont(self.font())
        font.setPointSizeF(max(7.5, font.pointSizeF() - 1.5))
        return font

    def _x_high(self) -> float:
        return max((line.x[-1] for line in self._lines), default=0.0) or 1.0

    def _y_place(self, plot: QRectF, ticks: list[float], y: float) -> float:
        """Where a value lies, between the lowest and the highest tick."""
        scale = log10 if self._by_powers else float
        low, here, high = (scale(value) for value in (ticks[0], y, ticks[-1]))
        return plot.bottom() - (here - low) / (high - low) * plot.height()

    def _y_range(self) -> tuple[float, float]:
        fixed = [each.y for each in self._references]
        low = 0.0 if self._from_zero else min([min(line.y) for line in self._lines] + fixed)
        return low, max([max(line.y) for line in self._lines] + fixed)

    @property
    def _by_powers(self) -> bool:
        """Whether the values span so much that a logarithmic axis is needed to see the small ones."""
        low, high = self._y_range() if self._lines and self._may_span_powers else (0.0, 1.0)
        return low > 0 and POWERS_FROM * low < high < inf

    def _y_ticks(self) -> list[float]:
        if not self._lines:
            return [0.0, 1.0]
        return power_ticks(*self._y_range()) if self._by_powers else nice_ticks(*self._y_range(), 4)


def _whole(marks: list[float]) -> list[float]:
    """Marks of an axis of steps: there are no halves."""
    return [mark for mark in marks if mark == round(mark)]


def _paint_line(painter: QPainter, points: list[QPointF], plot: QRectF, colour: QColor, *, fill: bool) -> None:
    if len(points) == 1:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(colour)
        painter.drawEllipse(points[0], 3, 3)
        return
    if fill:
        area = QPainterPath(QPointF(points[0].x(), plot.bottom()))
        for point in points:
            area.lineTo(point)
        area.lineTo(points[-1].x(), plot.bottom())
        soft = QColor(colour)
        soft.setAlpha(28)
        painter.fillPath(area, soft)
    painter.setPen(QPen(colour, 1.8, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin))
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.drawPolyline(QPolygonF(points))


def _colour(tokens: Tokens, line: Line) -> str:
    return tokens.series[line.colour % len(tokens.series)]


def _nearest(line: Line, x: float) -> int:
    after = bisect_left(line.x, x)
    if after == 0:
        return 0
    if after == len(line.x):
        return after - 1
    return after if line.x[after] - x < x - line.x[after - 1] else after - 1
