"""The charts of a comparison, drawn with matplotlib for the window, the HTML report and the command line alike.

matplotlib takes most of a second to import, so it is imported inside the functions. Figures are drawn without
pyplot (no global state, no window system): whoever saves gets Agg or SVG, whoever shows brings a Qt canvas.

Bars start at zero and lie on their side, so that names of any length can be read; what is uncertain carries its
spread or interval. Texts are never taken for mathematics: a model may be called "$x$".
"""

from __future__ import annotations

import base64
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantstudio.core.comparison import Cell, Comparison, Row, compare
from quantstudio.core.humanize import human_bytes
from quantstudio.core.result import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABEL, LETTERS_PER_INCH = 30, 4.4
_LOCK = threading.RLock()


class Chart(StrEnum):
    """The charts of a comparison, in the order in which they are shown. Values are stable ids (file names)."""

    SIZE = "size"
    MEMORY = "memory"
    LATENCY = "latency"
    QUALITY = "quality"
    TRADEOFF = "tradeoff"

    @property
    def words(self) -> str:
        """Its title, for people."""
        return _TITLES[self]


_TITLES = {
    Chart.SIZE: "Size of the weight files",
    Chart.MEMORY: "Peak memory",
    Chart.LATENCY: "Latency and speed",
    Chart.QUALITY: "Loss of quality against the original",
    Chart.TRADEOFF: "Size against quality",
}


@dataclass(frozen=True, slots=True)
class ChartStyle:
    """The colours of a theme, as `#rrggbb`. `series[0]` is the original's."""

    background: str = "#ffffff"
    text: str = "#1a1d24"
    muted: str = "#596273"
    grid: str = "#e1e4ea"
    series: tuple[str, ...] = ("#8a93a5", "#3f56d9", "#0f9488", "#d9702b", "#a63fc4", "#c02b60", "#5d8a1c", "#1787c2")
    font_size: float = 9.0
    fonts: tuple[str, ...] = ()
    """Families to prefer where they are installed."""

    def colour(self, index: int) -> str:
        """Colour of the row at `index`: 0 is the original's, which no run is given."""
        return self.series[0] if index == 0 else self.series[1 + (index - 1) % (len(self.series) - 1)]


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    x: float
    y: float


def has_data(chart: Chart, group: Comparison) -> bool:
    """Whether the chart has anything to show for these runs."""
    wanted = {
        Chart.SIZE: ("size",),
        Chart.MEMORY: ("memory",),
        Chart.LATENCY: ("ttft", "decode_tps"),
        Chart.QUALITY: ("change", "kl"),
        Chart.TRADEOFF: ("change",),
    }[chart]
    return any(row.cells[name].value is not None for row in group.rows for name in wanted)


def chart_height(chart: Chart, group: Comparison) -> float:
    """A fitting height in inches: bars need room for each row, a scatter does not."""
    return 3.4 if chart is Chart.TRADEOFF else 1.15 + 0.34 * len(group.rows)


def draw_chart(figure: Figure, chart: Chart, group: Comparison, style: ChartStyle | None = None) -> None:
    """Draw one chart into an empty or used figure, which is cleared."""
    style = style or ChartStyle()
    with _drawing(style):
        figure.clear()
        figure.set_facecolor(style.background)
        _DRAW[chart](figure, group, style)


def chart_figure(chart: Chart, group: Comparison, style: ChartStyle | None = None, *, width: float = 7.0) -> Figure:
    """A new figure with the chart. `width` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, chart_height(chart, group)), layout="constrained")
    draw_chart(figure, chart, group, style)
    return figure


def save_chart(chart: Chart, group: Comparison, path: Path, style: ChartStyle | None = None) -> None:
    """Write one chart; the suffix (`.png`, `.svg`) decides the format. Raises OSError."""
    _save(chart_figure(chart, group, style), path)


def chart_svg(chart: Chart, group: Comparison, style: ChartStyle | None = None) -> str:
    """The chart as a `data:` address of an SVG picture, for `<img src>`."""
    out = io.BytesIO()
    with _drawing(style or ChartStyle()):
        chart_figure(chart, group, style).savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def chart_pixels(
    chart: Chart, group: Comparison, style: ChartStyle, size: tuple[float, float], dpi: float
) -> tuple[bytes, int, int]:
    """The chart as RGBA pixels, 8 bits each, row by row, with their width and height. `size` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _drawing(style):
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw_chart(figure, chart, group, style)
        canvas.draw()
        width, height = canvas.get_width_height()
        return bytes(canvas.buffer_rgba()), width, height


def save_comparison(results: Sequence[RunResult], path: Path, style: ChartStyle | None = None) -> None:
    """Write every chart of these runs as one picture (`.png` or `.svg`). Raises OSError."""
    _save(overview(compare(results), style), path)


def overview(groups: Sequence[Comparison], style: ChartStyle | None = None) -> Figure:
    """One figure with every chart of every group: each group is a row of two columns."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style = style or ChartStyle()
    pages = [(group, [chart for chart in Chart if has_data(chart, group)]) for group in groups]
    heights = [_overview_height(group, charts) for group, charts in pages]
    with _drawing(style):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(14, sum(heights)), layout=layout, facecolor=style.background)
        parts = figure.subfigures(len(pages), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (group, charts) in zip(parts, pages, strict=True):
            part.set_facecolor(style.background)
            part.suptitle(group.model_name, color=style.text, weight="bold", size=style.font_size + 4)
            for place, chart in zip(_places(part, len(charts)), charts, strict=True):
                place.set_facecolor(style.background)
                _DRAW[chart](place, group, style)
    return figure


def _places(part: Any, count: int) -> list[Any]:
    """Two places to a line; the last one takes the whole line when the count is odd."""
    lines = part.subfigures((count + 1) // 2, 1, hspace=0.06, squeeze=False)[:, 0]
    places: list[Any] = []
    for line in lines:
        places += list(line.subfigures(1, 2, wspace=0.04)) if count - len(places) > 1 else [line]
    return places


def _overview_height(group: Comparison, charts: Sequence[Chart]) -> float:
    return 0.6 + sum(max(chart_height(chart, group) for chart in charts[i : i + 2]) for i in range(0, len(charts), 2))


def _save(figure: Figure, path: Path) -> None:
    kind = path.suffix.lstrip(".").lower() or "png"
    with _drawing(ChartStyle()):
        figure.savefig(path, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {})


@contextmanager
def _drawing(style: ChartStyle) -> Iterator[None]:
    import matplotlib as mpl

    settings: dict[str, Any] = {
        "font.size": style.font_size,
        "font.family": [*_installed(style.fonts), "DejaVu Sans"],
        "text.color": style.text,
        "text.parse_math": False,
        "axes.edgecolor": style.grid,
        "axes.labelcolor": style.muted,
        "axes.formatter.useoffset": False,
        "xtick.color": style.muted,
        "ytick.color": style.text,
        "svg.fonttype": "path",
        "svg.hashsalt": "quantstudio",
    }
    # matplotlib's settings belong to the whole process: one drawing at a time, from whatever thread.
    with _LOCK, mpl.rc_context(settings), warnings.catch_warnings():
        # A model may be named in letters that the font lacks: boxes in the chart, not a warning on the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _installed(families: Sequence[str]) -> list[str]:
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return [family for family in families if family in known]


def _draw_size(figure: Any, group: Comparison, style: ChartStyle) -> None:
    axes = _bars_axes(figure, group, style, Chart.SIZE.words, "MB, smaller is better")
    parts = (("embedding", 0.55), ("layers", 1.0), ("head", 0.75), ("rest", 0.35))
    left = [0.0] * len(group.rows)
    for name, strength in parts:
        widths = [_part_bytes(row, name) / 1e6 for row in group.rows]
        colours = [_blend(style.colour(i), style.background, strength) for i in range(len(widths))]
        axes.barh(range(len(widths)), widths, left=left, height=0.62, color=colours, edgecolor=style.background)
        _name_part(axes, name, left[0], widths[0], style, colours[0])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    labels = [human_bytes(row.sizes.total) for row in group.rows]
    _label_ends(axes, left, labels, style)


def _part_bytes(row: Row, name: str) -> int:
    return {
        "embedding": row.sizes.embedding,
        "layers": row.sizes.layers,
        "head": row.sizes.head,
        "rest": row.sizes.rest,
    }[name]


def _name_part(axes: Axes, name: str, start: float, width: float, style: ChartStyle, colour: str) -> None:
    """Name a part inside the bar of the original, where there is room."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    ink = "#14161c" if 0.3 * red + 0.59 * green + 0.11 * blue > 120 else "#ffffff"
    face = {"ha": "center", "va": "center", "size": style.font_size - 1.5, "color": ink}
    text = _fitting_text()(start + width / 2, 0, name, room=width, scale=axes.transData, **face)
    text.set_in_layout(False)  # it makes no room for itself
    axes.add_artist(text)


@cache
def _fitting_text() -> Any:
    """A text that is left out where it is wider than its room, which is known only while the chart is drawn."""
    from matplotlib.text import Text

    class FittingText(Text):
        def __init__(self, *args: Any, room: float, scale: Any, **face: Any) -> None:
            super().__init__(*args, **face)
            self._room, self._scale = room, scale

        def draw(self, renderer: Any) -> None:
            start, end = (self._scale.transform((x, 0))[0] for x in (0, self._room))
            if self.get_window_extent(renderer).width < end - start - 4:
                super().draw(renderer)

    return FittingText


def _draw_memory(figure: Any, group: Comparison, style: ChartStyle) -> None:
    gpu = any(row.cells["gpu_memory"].value for row in group.rows)
    panels = ("memory", "gpu_memory") if gpu else ("memory",)
    titles = {"memory": Chart.MEMORY.words, "gpu_memory": "GPU memory"}
    unit = "MB,\nless is better" if gpu else "MB, less is better"
    for axes, name in zip(_panels(figure, len(panels)), panels, strict=True):
        _bars(axes, group, style, name, titles[name], unit, 1e-6, names=name == "memory")


def _draw_latency(figure: Any, group: Comparison, style: ChartStyle) -> None:
    left, right = _panels(figure, 2)
    _bars(left, group, style, "ttft", "First token", "ms,\nless is better", 1e3)
    _bars(right, group, style, "decode_tps", "Answer speed", "tokens/s,\nmore is better", 1.0, names=False)


def _draw_quality(figure: Any, group: Comparison, style: ChartStyle) -> None:
    left, right = _panels(figure, 2)
    _bars(left, group, style, "change", "Perplexity", "change in %,\nless is better", 100.0)
    _bars(right, group, style, "kl", "KL divergence", "nats,\nless is better", 1.0, names=False)


def _draw_tradeoff(figure: Any, group: Comparison, style: ChartStyle) -> None:
    (axes,) = _panels(figure, 1)
    _plain_axes(axes, style)
    axes.set_title(Chart.TRADEOFF.words, loc="left", weight="bold", size=style.font_size + 1)
    axes.set_xlabel("Size in MB, smaller is better")
    axes.set_ylabel("Change of perplexity, %")
    axes.grid(visible=True, color=style.grid, linewidth=0.8)
    points = []
    for index, row in enumerate(group.rows):
        change = Cell(0.0, 0.0, 0.0) if row.is_original else row.cells["change"]
        if change.value is None:
            continue
        x, y = row.sizes.total / 1e6, change.value * 100
        colour = style.colour(index)
        axes.errorbar(x, y, yerr=_whiskers(change, 100.0), fmt="o", color=colour, capsize=3, markersize=7)
        points.append(_Point(_label(row), x, y))
    axes.margins(x=0.12, y=0.18)
    axes.set_xlim(left=0, right=axes.get_xlim()[1] * 1.12)
    _name_points(axes, points, style)


def _name_points(axes: Axes, points: Sequence[_Point], style: ChartStyle) -> None:
    """Above and below in turn, and to the left of a point that has another one close to its right, so that names cover
    neither each other nor points. Of points in one place the first is named, with how many more there are."""
    places: list[list[_Point]] = []
    for point in points:
        place = next((place for place in places if _near(axes, place[0], point, (-0.01, 0.01), 0.03)), None)
        if place is None:
            places.append([point])
        else:
            place.append(point)
    for turn, (point, *more) in enumerate(places):
        left = any(_near(axes, point, other[0], (0.01, 0.2), 0.1) for other in places) and _has_room(axes, point)
        axes.annotate(
            f"{point.name} and {len(more)} more" if more else point.name,
            (point.x, point.y),
            xytext=(-8 if left else 8, 6 if turn % 2 == 0 else -12),
            ha="right" if left else "left",
            textcoords="offset points",
            size=style.font_size - 0.5,
            color=style.text,
        )


def _near(axes: Axes, point: _Point, other: _Point, across: tuple[float, float], up: float) -> bool:
    """Whether the other point is as far to the right as `across` and at most `up` above or below, of the chart's 1."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    reach = (other.x - point.x) / (right - left)
    return across[0] <= reach <= across[1] and abs(other.y - point.y) / (high - low) < up


def _has_room(axes: Axes, point: _Point) -> bool:
    """Whether the name fits between the left edge and its point, roughly: 30 letters are a quarter of a chart."""
    return point.x / axes.get_xlim()[1] > 0.25 * len(point.name) / MAX_LABEL


def _bars(
    axes: Axes,
    group: Comparison,
    style: ChartStyle,
    name: str,
    title: str,
    unit: str,
    factor: float,
    *,
    names: bool = True,
) -> None:
    """Horizontal bars of one column of the table, with whiskers where it has a spread or interval."""
    _prepare_bars(axes, group, style, title, unit, names=names)
    cells = [row.cells[name] for row in group.rows]
    if name in ("change", "kl"):
        cells[0] = Cell(0.0, text="original")
    ends = []
    for index, cell in enumerate(cells):
        value = (cell.value or 0.0) * factor
        axes.barh(index, value, height=0.62, color=style.colour(index))
        ends.append(max(value, (cell.high or 0.0) * factor))
        if cell.low is not None and cell.value is not None:
            axes.errorbar(
                value, index, xerr=_whiskers(cell, factor), color=style.text, capsize=2.5, linewidth=1, fmt="none"
            )
    _label_ends(axes, ends, [cell.text for cell in cells], style)


def _whiskers(cell: Cell, factor: float) -> list[list[float]]:
    """Distances from the value down and up, as `errorbar` wants them."""
    value = cell.value or 0.0
    low = value if cell.low is None else min(cell.low, value)
    high = value if cell.high is None else max(cell.high, value)
    return [[(value - low) * factor], [(high - value) * factor]]


def _panels(figure: Any, count: int) -> list[Axes]:
    """Side by side, with as many marks on the axis as there is room for."""
    made = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in made:
        axes.locator_params(axis="x", nbins=5 if count == 1 else 3)
        axes.xaxis.set_major_formatter("{x:g}")  # 0 and 0.02, not 0.00 and 0.02
    return made


def _bars_axes(figure: Any, group: Comparison, style: ChartStyle, title: str, unit: str) -> Axes:
    (axes,) = _panels(figure, 1)
    _prepare_bars(axes, group, style, title, unit, names=True)
    return axes


def _prepare_bars(axes: Axes, group: Comparison, style: ChartStyle, title: str, unit: str, *, names: bool) -> None:
    _plain_axes(axes, style)
    axes.set_title(title, loc="left", weight="bold", size=style.font_size + 1)
    axes.set_xlabel(unit)
    most = _longest_label(axes)
    axes.set_yticks(range(len(group.rows)), [_label(row, most) if names else "" for row in group.rows])
    axes.set_ylim(len(group.rows) - 0.5, -0.5)  # the original on top
    axes.grid(visible=True, axis="x", color=style.grid, linewidth=0.8)
    axes.tick_params(axis="y", length=0)


def _plain_axes(axes: Axes, style: ChartStyle) -> None:
    axes.set_facecolor(style.background)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _label_ends(axes: Axes, ends: Sequence[float], texts: Sequence[str], style: ChartStyle) -> None:
    reach = max(max(ends, default=0.0), 0.0)
    low = min(axes.get_xlim()[0], 0.0)
    axes.set_xlim(low, (reach or 1.0) * 1.28)
    for index, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(
            text, (max(end, 0.0), index), xytext=(5, 0), textcoords="offset points", va="center", color=style.text
        )


def _longest_label(axes: Axes) -> int:
    """How many letters a name may have beside the bars, which need most of the room, above all where two share it."""
    figure: Any = axes.get_figure(root=False)
    inches = figure.bbox.width / figure.dpi
    letters = LETTERS_PER_INCH if len(figure.axes) > 1 else 1.5 * LETTERS_PER_INCH
    return max(12, min(MAX_LABEL, int(inches * letters)))


def _label(row: Row, most: int = MAX_LABEL) -> str:
    text = "Original" if row.is_original else row.name
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _blend(colour: str, background: str, strength: float) -> str:
    pairs = [(int(colour[i : i + 2], 16), int(background[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(top * strength + under * (1 - strength)):02x}" for top, under in pairs)


_DRAW: dict[Chart, Callable[[Any, Comparison, ChartStyle], None]] = {
    Chart.SIZE: _draw_size,
    Chart.MEMORY: _draw_memory,
    Chart.LATENCY: _draw_latency,
    Chart.QUALITY: _draw_quality,
    Chart.TRADEOFF: _draw_tradeoff,
}
