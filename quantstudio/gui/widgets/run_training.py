"""How a training goes: the curves of a run, with what it is measured against, and what the model writes on the way.

Live and from history alike, because both are a `RunState`. The perplexity is the chart that decides, so it is the large
one: the original's is the goal, rounding to nearest the start, the best calibrated method what training must beat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PySide6.QtWidgets import QGridLayout, QVBoxLayout, QWidget

from quantstudio.core.humanize import human_rate
from quantstudio.core.run_state import RunState, Series
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import SPACE, Card, label, row
from quantstudio.gui.widgets.chart_live import Line, LiveChart, Reference
from quantstudio.gui.widgets.run_samples import SamplesCard

PERPLEXITY, HELD_OUT, LOSS = "eval/perplexity", "eval/loss", "train/loss"
RATE, SPEED = "train/learning_rate", "train/tokens_per_s"
REFERENCE = "reference/"
NARROW = 540
"""Below this width the small charts stand one below the other."""
_METHODS = {"original": "Original", "rtn": "Round to nearest", "smoothquant": "SmoothQuant"}
_COLOURS = {"original": 0, "rtn": 3}
_CALIBRATED = 2


def is_training(name: str) -> bool:
    """Whether this metric is shown here, and not in a chart of its own."""
    return name in (PERPLEXITY, HELD_OUT, LOSS, RATE, SPEED) or name.startswith(REFERENCE)


def references(state: RunState) -> list[Reference]:
    """The perplexities that training is held against: the original first, then the worst to the best."""
    found = [
        Reference(tr(_METHODS.get(key, key.upper())), series.y[-1], _COLOURS.get(key, _CALIBRATED))
        for name, series in state.metrics.items()
        if (key := name.removeprefix(REFERENCE)) != name and series.y
    ]
    return sorted(found, key=lambda each: (each.colour != 0, -each.y))


def perplexity_words(state: RunState) -> str:
    """`now 36.2 · best 35.9 at step 100`; empty before the first evaluation."""
    series = state.metrics.get(PERPLEXITY)
    if series is None or not series.y:
        return ""
    best = min(range(len(series.y)), key=series.y.__getitem__)
    text = f"{tr('best')} {_number(series.y[best])} {tr('at step')} {series.x[best]:g}"
    return text if state.status.final else f"{tr('now')} {_number(series.y[-1])} · {text}"


@dataclass(frozen=True, slots=True)
class _Small:
    metric: str
    title: str
    text: Callable[[float], str]
    tip: str


class TrainingPanel(QWidget):
    """Hidden until a metric of training comes."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = SamplesCard()
        self._now: dict[str, object] = {}
        self.perplexity_now = label("", "muted")
        self.perplexity = LiveChart(tr("Perplexity on held-out text"), _number, over_time=False, may_span_powers=True)
        self.perplexity.setMinimumHeight(220)
        self._big = Card(spacing=8)
        self._big.body.addLayout(row(label("Perplexity on held-out text", "heading"), None, self.perplexity_now))
        self._big.body.addWidget(self.perplexity)
        self.charts: dict[str, LiveChart] = {}
        self._cards: dict[str, Card] = {}
        self._latest = {small.metric: label("", "muted") for small in _SMALL}
        for small in _SMALL:
            self._add_small(small)
        self._grid = QGridLayout()
        self._grid.setSpacing(SPACE)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACE)
        layout.addWidget(self._big)
        layout.addWidget(self.samples)
        layout.addLayout(self._grid)

    def new_run(self) -> None:
        """Forget what the person had picked in the run before."""
        self.samples.new_run()

    def show_state(self, state: RunState) -> None:
        """Look at the run again."""
        metrics = state.metrics
        evaluated = metrics.get(PERPLEXITY)
        lines = [Line(tr("This training"), evaluated.x, evaluated.y)] if evaluated else []
        self.perplexity.show_lines(lines, references(state))
        self.perplexity_now.setText(perplexity_words(state))
        self._big.setVisible(bool(lines))
        for small in _SMALL:
            self._show_small(small, metrics.get(small.metric))
        self.samples.show_samples(state.samples)
        self.setVisible(bool(lines) or bool(state.samples) or any(name in metrics for name in self.charts))
        self._place()

    def resizeEvent(self, event: object) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)  # type: ignore[arg-type]
        self._place()

    def _add_small(self, small: _Small) -> None:
        card = Card(spacing=8)
        title = label(small.title, "heading")
        title.setToolTip(tr(small.tip))
        card.body.addLayout(row(title, None, self._latest[small.metric]))
        chart = LiveChart(tr(small.title), small.text, over_time=False)
        card.body.addWidget(chart)
        self.charts[small.metric], self._cards[small.metric] = chart, card

    def _show_small(self, small: _Small, series: Series | None) -> None:
        shown = series is not None and bool(series.x)
        self._cards[small.metric].setVisible(shown)
        if series is not None and shown:
            self.charts[small.metric].show_lines([Line(tr(small.title), series.x, series.y)])
            self._latest[small.metric].setText(small.text(series.y[-1]))

    def _place(self) -> None:
        columns = 2 if self.width() >= NARROW else 1
        shown = [self._cards[small.metric] for small in _SMALL if not self._cards[small.metric].isHidden()]
        key = {"columns": columns, "shown": shown}
        if key == self._now:
            return
        self._now = key
        for card in self._cards.values():
            self._grid.removeWidget(card)
        for place, card in enumerate(shown):
            last_alone = place == len(shown) - 1 and place % columns == 0
            self._grid.addWidget(card, place // columns, place % columns, 1, columns if last_alone else 1)
        for column in range(2):
            self._grid.setColumnStretch(column, 1 if column < columns else 0)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _rate(value: float) -> str:
    """`0.001`, `8 · 10⁻⁵`."""
    digits, _, power = f"{value:.3g}".partition("e")
    return f"{digits} · 10{str(int(power)).translate(_RAISED)}" if power else digits


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL = (
    _Small(
        LOSS, "Training loss", _number, "What each step makes smaller. It scatters, because every step sees other text."
    ),
    _Small(
        HELD_OUT,
        "Held-out loss",
        _number,
        "The same loss on text that is not trained on. If it rises, training has gone too far.",
    ),
    _Small(SPEED, "Speed", human_rate, "Tokens trained on in a second."),
    _Small(RATE, "Learning rate", _rate, "How far a step may go. It rises at first and falls towards the end."),
)
