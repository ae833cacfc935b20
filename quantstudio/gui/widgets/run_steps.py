"""Where a run stands: a bar with one segment for each phase, and the list of phases with the time each took."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QFontMetricsF, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QSizePolicy, QWidget

from quantstudio.core.humanize import human_seconds
from quantstudio.core.run_state import RunState, Status
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.tokens import Tokens

ROW, BAR = 30, 8
BESIDE_TITLE, WIDEST = 120, 360
"""Room for the mark and the time beside a step's title; how much the longest title may ask for in all."""


class StepState(StrEnum):
    """What became of a phase."""

    DONE = "done"
    NOW = "now"
    FAILED = "failed"
    STOPPED = "stopped"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Step:
    """One phase as shown."""

    title: str
    state: StepState
    seconds: float = 0.0


def steps_of(state: RunState, now: float) -> list[Step]:
    """The phases so far with their times, and those ahead, of which only the number is known."""
    steps: list[Step] = []
    ends = {Status.DONE: StepState.DONE, Status.FAILED: StepState.FAILED, Status.CANCELLED: StepState.STOPPED}
    for place, phase in enumerate(state.phases):
        last = place == len(state.phases) - 1
        end = (state.last if state.status.final else max(now, state.last)) if last else state.phases[place + 1].t
        what = ends.get(state.status, StepState.NOW) if last else StepState.DONE
        steps.append(Step(phase.title, what, max(0.0, end - phase.t)))
    if state.phases and not state.status.final:
        ahead = state.phases[-1].total - state.phases[-1].index - 1
        steps += [Step("", StepState.AHEAD)] * max(0, ahead)
    return steps


class StepBar(QWidget):
    """One segment for each phase; the current one fills as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self._fraction, self._total, self._status = 0.0, 1, Status.WAITING
        self.setFixedHeight(BAR)
        self.setAccessibleName(tr("Progress of the run"))

    def show_state(self, state: RunState) -> None:
        """Show how far the run is."""
        total = state.phases[-1].total if state.phases else 1
        shown = (state.fraction, max(1, min(total, 40)), state.status)
        if shown != (self._fraction, self._total, self._status):
            self._fraction, self._total, self._status = shown
            self.setAccessibleDescription(f"{self._fraction * 100:.0f} %")
            self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        tokens = active_tokens()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        gap = 3.0
        width = (self.width() - gap * (self._total - 1)) / self._total
        colour = QColor(_bar_colour(tokens, self._status))
        for place in range(self._total):
            box = QRectF(place * (width + gap), 0, width, self.height())
            filled = min(1.0, max(0.0, self._fraction * self._total - place))
            painter.setBrush(QColor(tokens.pressed))
            painter.drawRoundedRect(box, 3, 3)
            if filled > 0:
                painter.setBrush(colour)
                painter.drawRoundedRect(box.adjusted(0, 0, (filled - 1) * width, 0), 3, 3)
        painter.end()


class StepList(QWidget):
    """The phases, one below the other, joined by a line."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Step] = []
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(tr("Steps"))

    def show_steps(self, steps: list[Step]) -> None:
        """Show these; the unnamed ones ahead become one line."""
        named = [step for step in steps if step.title]
        ahead = len(steps) - len(named)
        if ahead:
            words = tr("1 more step") if ahead == 1 else f"{ahead} {tr('more steps')}"
            named.append(Step(words, StepState.AHEAD))
        if named != self._steps:
            before = self.minimumSizeHint()
            self._steps = named
            self.setAccessibleDescription(self.spoken())
            if self.minimumSizeHint() != before:
                self.updateGeometry()
            self.update()

    def spoken(self) -> str:
        """The list in words."""
        words = {
            StepState.DONE: tr("done"),
            StepState.NOW: tr("in progress"),
            StepState.FAILED: tr("failed"),
            StepState.STOPPED: tr("stopped"),
            StepState.AHEAD: tr("to come"),
        }
        return "; ".join(f"{step.title}: {words[step.state]}" for step in self._steps)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(240, ROW * max(1, len(self._steps)))

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        font = QFont(self.font())
        font.setBold(True)
        needed = max((QFontMetrics(font).horizontalAdvance(step.title) for step in self._steps), default=0)
        return QSize(min(WIDEST, max(160, needed + BESIDE_TITLE)), self.sizeHint().height())

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        tokens = active_tokens()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for place, step in enumerate(self._steps):
            centre = QPointF(9, place * ROW + ROW / 2)
            if place + 1 < len(self._steps):
                painter.setPen(QPen(QColor(tokens.border_strong), 1.5))
                painter.drawLine(centre + QPointF(0, 9), centre + QPointF(0, ROW - 9))
            _paint_mark(painter, tokens, centre, step.state)
            self._paint_texts(painter, tokens, place, step)
        painter.end()

    def _paint_texts(self, painter: QPainter, tokens: Tokens, place: int, step: Step) -> None:
        time = human_seconds(step.seconds) if step.state is not StepState.AHEAD and step.seconds >= 0.05 else ""
        box = QRectF(28, place * ROW, self.width() - 28, ROW)
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.setPen(QColor(tokens.muted))
        painter.drawText(box, Qt.AlignmentFlag.AlignRight | middle, time)
        font = painter.font()
        font.setBold(step.state is StepState.NOW)
        painter.setFont(font)
        metrics = QFontMetricsF(font)
        room = box.width() - metrics.horizontalAdvance(time) - 12
        painter.setPen(QColor(tokens.muted if step.state is StepState.AHEAD else tokens.text))
        text = metrics.elidedText(step.title, Qt.TextElideMode.ElideRight, room)
        painter.drawText(box, Qt.AlignmentFlag.AlignLeft | middle, text)
        font.setBold(False)
        painter.setFont(font)


def _bar_colour(tokens: Tokens, status: Status) -> str:
    colours = {
        Status.DONE: tokens.success,
        Status.FAILED: tokens.danger,
        Status.CANCELLED: tokens.disabled,
        Status.CANCELLING: tokens.warning,
    }
    return colours.get(status, tokens.accent)


def _paint_mark(painter: QPainter, tokens: Tokens, centre: QPointF, state: StepState) -> None:
    colour = {
        StepState.DONE: tokens.success,
        StepState.NOW: tokens.accent,
        StepState.FAILED: tokens.danger,
        StepState.STOPPED: tokens.muted,
        StepState.AHEAD: tokens.border_strong,
    }[state]
    painter.setPen(QPen(QColor(colour), 1.8))
    filled = state in (StepState.DONE, StepState.FAILED, StepState.STOPPED)
    painter.setBrush(QColor(colour) if filled else Qt.BrushStyle.NoBrush)
    painter.drawEllipse(centre, 7, 7)
    painter.setPen(QPen(QColor(tokens.card), 1.8, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
    if state is StepState.DONE:
        corners = [QPointF(-3.2, 0.2), QPointF(-0.8, 2.6), QPointF(3.4, -2.4)]
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawPolyline(QPolygonF([centre + corner for corner in corners]))
    elif state is StepState.FAILED:
        for x in (-2.6, 2.6):
            painter.drawLine(centre + QPointF(x, -2.6), centre + QPointF(-x, 2.6))
    elif state is StepState.STOPPED:
        painter.drawLine(centre + QPointF(-3, 0), centre + QPointF(3, 0))
    elif state is StepState.NOW:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(colour))
        painter.drawEllipse(centre, 3, 3)
