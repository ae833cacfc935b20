"""One run: where it stands, what it measures, what came out.

`show_run` brings another run; `refresh` looks at the same one again and is called by the page's timer. It only reads
the state, so a job that sends thousands of messages a second costs the window ten looks a second.
"""

from __future__ import annotations

import time

from pydantic import ValidationError
from PySide6.QtCore import QMargins, Qt, Signal
from PySide6.QtWidgets import QFrame, QGridLayout, QScrollArea, QVBoxLayout, QWidget

from quantstudio.core.contest_file import has_contest
from quantstudio.core.humanize import human_bytes, human_seconds
from quantstudio.core.result import RunResult
from quantstudio.core.run_state import RunState, Series, Status
from quantstudio.core.run_store import RunHeader, can_resume
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import (
    MARGIN,
    SPACE,
    Banner,
    Card,
    ElidedLabel,
    badge,
    button,
    label,
    restyle,
    row,
)
from quantstudio.gui.widgets.chart_live import Line, LiveChart
from quantstudio.gui.widgets.run_log import LogFold
from quantstudio.gui.widgets.run_steps import StepBar, StepList, steps_of
from quantstudio.gui.widgets.run_stopped import StoppedCard
from quantstudio.gui.widgets.run_summary import ErrorCard, ResultCard
from quantstudio.gui.widgets.run_training import TrainingPanel, is_training
from quantstudio.gui.widgets.run_words import detail_words, progress_words, status_level, status_words, when
from quantstudio.gui.widgets.scroll_margin import keep_margin

MAX_NOTICES = 8
NARROW = 620
"""Below this width the steps stand above the charts instead of beside them."""
WIDE = 760
_METRIC_TITLES = {
    "original_perplexity": "The original's perplexity on the text so far",
    "perplexity": "The result's perplexity on the text so far",
}
"""Means that settle while the text is read: without these words they look like something that improves."""
_ELSEWHERE = "Another program does this run: a terminal, or the search for the best. It can be stopped only there."


class RunDetail(QScrollArea):
    """The right side of the Run page. Wishes are signals; the page knows how to fulfil them."""

    cancel_asked = Signal()
    kill_asked = Signal()
    delete_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.header = RunHeader(name="", created=0.0)
        self.state = RunState()
        self.result: RunResult | None = None
        self._seen = -1
        self._elsewhere = False
        self._notices = 0
        self.result_card, self.error_card, self.stopped_card = ResultCard(), ErrorCard(), StoppedCard()
        self.training, self.log = TrainingPanel(), LogFold()
        self._make_head()
        self._make_progress()
        self._make_charts()
        self._lay_out()

    def show_run(self, header: RunHeader, state: RunState, *, elsewhere: bool = False) -> None:
        """Show this run from its start. `elsewhere`: another process carries it out, which this window cannot stop."""
        self._elsewhere = elsewhere
        self.header, self.state, self._seen, self._notices, self.result = header, state, -1, 0, None
        for banner in self.notices.findChildren(Banner, options=Qt.FindChildOption.FindDirectChildrenOnly):
            banner.deleteLater()
        self._metric_charts.clear()
        _empty(self._metrics)
        self.training.new_run()
        self.log.show_log(state.log, new_run=True)
        self.refresh()
        self.verticalScrollBar().setValue(0)

    def refresh(self, header: RunHeader | None = None) -> None:
        """Look again. `header` replaces what is known from the folder."""
        if header is not None and header != self.header:
            self.header, self._seen = header, -1
        now = time.time()
        self._show_head(now)
        self._show_progress(now)
        if self.state.messages != self._seen:
            self._seen = self.state.messages
            self._show_charts()
            self._show_notices()
            self.log.show_log(self.state.log)
            self._show_end()

    def _make_head(self) -> None:
        self.name = ElidedLabel("", "title")
        self.badge = badge("")
        self.about = ElidedLabel("", "muted")
        self.cancel = button(
            tr("Cancel"),
            self.cancel_asked.emit,
            icon="stop",
            variant="danger",
            tooltip=tr("Ask the run to stop and clean up. No half-written model is kept."),
        )
        self.kill = button(
            tr("Force stop"),
            self.kill_asked.emit,
            icon="stop",
            variant="danger",
            tooltip=tr("End the run's process at once, without waiting for it to clean up."),
        )
        self.delete = button(
            "",
            self.delete_asked.emit,
            icon="trash",
            variant="ghost",
            tooltip=tr("Delete this run and its model from the disk."),
        )
        self.delete.setAccessibleName(tr("Delete run"))
        self.head = QVBoxLayout()
        self.head.setSpacing(2)
        top = row(spacing=10)
        top.addWidget(self.name, 1)
        for part in (self.badge, self.cancel, self.kill, self.delete):
            top.addWidget(part, 0, Qt.AlignmentFlag.AlignVCenter)
        self.head.addLayout(top)
        self.head.addWidget(self.about)

    def _make_progress(self) -> None:
        self.progress_card = Card(spacing=10)
        self.phase = ElidedLabel("", "strong")
        self.where = ElidedLabel("", "muted")
        self.bar = StepBar()
        self.at = ElidedLabel("", "caption", mode=Qt.TextElideMode.ElideMiddle)
        self.elsewhere = label(_ELSEWHERE, "caption", wrap=True)
        for part in (self.phase, self.bar, self.where, self.at, self.elsewhere):
            self.progress_card.body.addWidget(part)

    def _make_charts(self) -> None:
        self.steps_card = Card(tr("Steps"), spacing=8)
        self.steps = StepList()
        self.steps_card.body.addWidget(self.steps)
        self.steps_card.body.addStretch(1)
        self.memory_card = Card(spacing=8)
        self.memory_now = label("", "muted")
        top = row(label(tr("Memory"), "heading"), None, self.memory_now)
        self.memory = LiveChart(tr("Memory of the job over time"), human_bytes)
        self.memory_card.body.addLayout(top)
        self.memory_card.body.addWidget(self.memory, 1)
        self._metric_charts: dict[str, LiveChart] = {}
        self._metrics = QVBoxLayout()
        self._metrics.setSpacing(SPACE)

    def _lay_out(self) -> None:
        inside = QWidget()
        layout = QVBoxLayout(inside)
        keep_margin(self, layout, QMargins(SPACE, MARGIN, MARGIN, MARGIN))
        layout.setSpacing(SPACE)
        self.notices = QWidget()
        self._notice_box = QVBoxLayout(self.notices)
        self._notice_box.setContentsMargins(0, 0, 0, 0)
        self._notice_box.setSpacing(8)
        self._grid = QGridLayout()
        self._grid.setSpacing(SPACE)
        layout.addLayout(self.head)
        cards = (self.progress_card, self.error_card, self.stopped_card, self.result_card, self.notices, self.training)
        for card in cards:
            layout.addWidget(card)
        layout.addLayout(self._grid)
        layout.addLayout(self._metrics)
        layout.addWidget(self.log)
        layout.addStretch(1)
        self.setWidget(inside)
        self._place_cards()

    def resizeEvent(self, event: object) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)  # type: ignore[arg-type]
        self._place_cards()

    def _place_cards(self) -> None:
        beside = self.viewport().width() >= NARROW
        self._grid.addWidget(self.steps_card, 0, 0)
        self._grid.addWidget(self.memory_card, 0 if beside else 1, 1 if beside else 0)
        wide = self.viewport().width() >= WIDE
        self._grid.setColumnStretch(0, 2 if wide else 1)
        self._grid.setColumnStretch(1, (3 if wide else 1) if beside else 0)

    def _show_head(self, now: float) -> None:
        status = self.state.status
        self.name.setText(self.header.name)
        self.badge.setText(status_words(status))
        restyle(self.badge, "level", status_level(status))
        at_work = status in (Status.STARTING, Status.RUNNING)
        here = not self._elsewhere
        self.cancel.setVisible(here and (at_work or status is Status.WAITING))
        self.kill.setVisible(here and status is Status.CANCELLING)
        self.delete.setVisible(status.final)
        self.about.setText(self._about(now))

    def _about(self, now: float) -> str:
        header = self.header
        label = "" if header.label in header.name else header.label
        took = self.state.last - self.state.started if self.state.status.final and self.state.started else 0.0
        parts = (
            header.model if header.model not in header.name else "",
            label,
            when(header.created, now),
            f"{tr('took')} {human_seconds(took)}" if took > 0 else "",
        )
        return " · ".join(part for part in parts if part)

    def _show_progress(self, now: float) -> None:
        status = self.state.status
        self.progress_card.setVisible(not status.final)
        self.steps_card.setVisible(bool(self.state.phases))
        self.memory_card.setVisible(bool(self.state.memory.x) or not status.final)
        self.steps.show_steps(steps_of(self.state, now))
        self.bar.show_state(self.state)
        if status is Status.WAITING:
            self.phase.setText(tr("Waiting for the runs before it"))
            self.where.setText("")
        elif status is Status.CANCELLING:
            self.phase.setText(tr("Stopping and cleaning up…"))
            self.where.setText(tr("It is ended by force if this takes more than 10 seconds."))
        else:
            self.phase.setText(self.state.phases[-1].title if self.state.phases else tr("Starting"))
            self.where.setText(progress_words(self.state, now))
        self.where.setVisible(bool(self.where.whole_text()))
        self.at.setText(detail_words(self.state))
        self.at.setVisible(bool(self.at.whole_text()))
        self.elsewhere.setVisible(self._elsewhere)

    def _show_charts(self) -> None:
        memory, cuda = self.state.memory, self.state.cuda_memory
        lines = [Line(tr("Memory"), memory.x, memory.y, 1)]
        if cuda.x:
            lines.append(Line(tr("GPU memory"), cuda.x, cuda.y, 2))
        self.memory.show_lines(lines)
        if memory.y:
            now = "" if self.state.status.final else f"{tr('now')} {human_bytes(memory.y[-1])} · "
            self.memory_now.setText(f"{now}{tr('peak')} {human_bytes(max(memory.y))}")
        else:
            self.memory_now.setText("")
        self.training.show_state(self.state)
        for name, series in self.state.metrics.items():
            if len(series.x) > 1 and not is_training(name):
                self._metric_chart(name, series).show_lines([Line(name, series.x, series.y, 1)])

    def _metric_chart(self, name: str, series: Series) -> LiveChart:
        if name not in self._metric_charts:
            title = _METRIC_TITLES.get(name, name.replace("_", " ").capitalize())
            title = tr(title) + (f" ({series.unit})" if series.unit else "")
            card = Card(title, spacing=8)
            chart = LiveChart(title, lambda value: f"{value:.4g}", over_time=False)
            card.body.addWidget(chart)
            self._metrics.addWidget(card)
            self._metric_charts[name] = chart
        return self._metric_charts[name]

    def _show_notices(self) -> None:
        for notice in self.state.notices[self._notices : MAX_NOTICES]:
            self._notice_box.addWidget(Banner(notice.text, "warning" if notice.level == "warning" else "info"))
        self._notices = len(self.state.notices)
        self.notices.setVisible(bool(self._notices))

    def _show_end(self) -> None:
        resumable = self.state.status in (Status.FAILED, Status.CANCELLED) and can_resume(self.header.path)
        self.error_card.setVisible(self.state.error is not None)
        if self.state.error is not None:
            self.error_card.show_error(self.state.error, resumable=resumable)
        self.stopped_card.setVisible(self.state.status is Status.CANCELLED)
        self.stopped_card.show_stopped(resumable=resumable)
        if self.state.result is not None and self.result is None:
            try:
                self.result = RunResult.model_validate(self.state.result.data)
            except ValidationError:
                self._notice_box.addWidget(Banner(tr("This run's result cannot be read. Run it again."), "warning"))
                self.notices.setVisible(True)
            else:
                self.result_card.show_result(self.result)
        self.result_card.contest.setVisible(self.result is not None and has_contest(self.header.path))
        self.result_card.setVisible(self.result is not None)


def _empty(layout: QVBoxLayout) -> None:
    while (item := layout.takeAt(0)) is not None:
        if (widget := item.widget()) is not None:
            widget.deleteLater()
