"""matplotlib charts in the window, drawn in a thread.

A full draw costs 30 to 60 ms and importing matplotlib most of a second. Five canvases that drew themselves would make
every resize stutter, so charts are drawn with Agg in one background thread and shown as pictures; while a new size is
being drawn the old picture is stretched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from PySide6.QtCore import QObject, QRectF, QRunnable, QSize, Qt, QThreadPool, QTimer, Signal
from PySide6.QtGui import QColor, QImage, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from quantstudio.core.comparison import Comparison
from quantstudio.core.figures import Chart, ChartStyle, chart_height
from quantstudio.gui.language import tr
from quantstudio.gui.theme import FONT_FAMILIES, active_tokens
from quantstudio.gui.tokens import Tokens

DPI = 100
SETTLE_MS = 60
"""How long a size must hold still before it is drawn."""


def chart_style(tokens: Tokens) -> ChartStyle:
    """A theme's colours for charts."""
    return ChartStyle(
        background=tokens.card,
        text=tokens.text,
        muted=tokens.muted,
        grid=tokens.border,
        series=tokens.series,
        fonts=tuple(FONT_FAMILIES),
    )


_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be drawn. It knows no widget, because a widget may be gone when the picture is done."""

    chart: Chart
    group: Comparison
    tokens: Tokens
    size: QSize
    ratio: float


class _Draw(QRunnable):
    """One drawing. Whatever happens is told and nothing raised: an exception would end in a thread that cannot say it.

    `tell` belongs to an object that may be gone, too.
    """

    def __init__(self, key: _Key, order: _Order, tell: Callable[[_Key, QImage | Exception], None]) -> None:
        super().__init__()
        self._key, self._order, self._tell = key, order, tell

    def run(self) -> None:
        order = self._order
        try:
            made: QImage | Exception = draw_image(order.chart, order.group, order.tokens, order.size, order.ratio)
        except Exception as error:
            made = error
        with suppress(RuntimeError):  # the window is gone: nobody wants the picture
            self._tell(self._key, made)


def draw_image(chart: Chart, group: Comparison, tokens: Tokens, size: QSize, ratio: float) -> QImage:
    """The chart as a picture of `size` device-independent pixels at `ratio` device pixels each. Any thread."""
    from quantstudio.core.figures import chart_pixels

    width, height = size.width() / DPI, size.height() / DPI
    pixels, columns, rows = chart_pixels(chart, group, chart_style(tokens), (width, height), DPI * ratio)
    image = QImage(pixels, columns, rows, columns * 4, QImage.Format.Format_RGBA8888).copy()
    image.setDevicePixelRatio(ratio)
    return image


class ChartPool(QObject):
    """The one thread in which charts are drawn. `drawn` carries who asked and the picture, or why there is none.

    The pool of threads is a part of it and not its base: while a `QThreadPool` is destroyed it waits for its thread,
    to which its own signals are then no signals any more.
    """

    drawn = Signal(object, object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._threads = QThreadPool(self)
        self._threads.setMaxThreadCount(1)
        self._views = 0

    def new_view(self) -> int:
        """A number for a view that will ask."""
        self._views += 1
        return self._views

    def draw(self, key: _Key, order: _Order) -> None:
        """Draw this when it is its turn."""
        self._threads.start(_Draw(key, order, self.drawn.emit))

    def clear(self) -> None:
        """Drop what waits."""
        self._threads.clear()

    def shutdown(self) -> None:
        """Drop what waits and finish what is being drawn, as before the window goes."""
        self._threads.clear()
        self._threads.waitForDone()


class ChartView(QWidget):
    """One chart of a comparison, in the colours of the theme that is on."""

    def __init__(self, chart: Chart, group: Comparison, pool: ChartPool) -> None:
        super().__init__()
        self.chart, self._group, self._pool = chart, group, pool
        self._image: QImage | None = None
        self._failed = False
        self._key = (pool.new_view(), 0)
        pool.drawn.connect(self._take)  # Qt undoes this when the view goes
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self._ask)
        self._height = round(chart_height(chart, group) * DPI)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFixedHeight(self._height)
        self.setAccessibleName(tr(chart.words))
        self.setAccessibleDescription(spoken(chart, group))
        self.setToolTip(tr(chart.words))

    @property
    def drawn(self) -> bool:
        """Whether there is a picture."""
        return self._image is not None

    def redraw(self) -> None:
        """Draw anew, as after a change of theme."""
        self._settle.start()

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        return QSize(480, self._height)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(280, self._height)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._settle.start()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        if self._image is None:
            painter.setPen(QColor(active_tokens().muted))
            words = tr("This chart cannot be drawn.") if self._failed else tr("Drawing…")
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, words)
        else:
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawImage(QRectF(self.rect()), self._image)
        painter.end()

    def _ask(self) -> None:
        if self.width() < 50 or self.height() < 50:
            return
        self._key = (self._key[0], self._key[1] + 1)
        order = _Order(self.chart, self._group, active_tokens(), self.size(), self.devicePixelRatioF())
        self._pool.draw(self._key, order)

    def _take(self, key: _Key, made: QImage | Exception) -> None:
        if key != self._key:
            return
        self._failed = isinstance(made, Exception)
        self._image = None if isinstance(made, Exception) else made
        self.update()
        if isinstance(made, Exception):
            raise made


_SPOKEN = {
    Chart.SIZE: ("size",),
    Chart.MEMORY: ("memory", "gpu_memory"),
    Chart.LATENCY: ("ttft", "decode_tps"),
    Chart.QUALITY: ("change", "kl"),
    Chart.TRADEOFF: ("size", "change"),
}


def spoken(chart: Chart, group: Comparison) -> str:
    """The chart in words, for those who cannot see it."""
    heads = [column for column in group.columns if column.id in _SPOKEN[chart]]
    return ". ".join(
        f"{tr('Original') if row.is_original else row.name}: "
        + ", ".join(f"{tr(head.title)} {row.cells[head.id].text}" for head in heads)
        for row in group.rows
    )
