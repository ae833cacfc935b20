"""Finished runs side by side: verdicts, table and charts, and ways to take them along."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QDir, QMargins, Qt, QTimer, Signal
from PySide6.QtGui import QAction, QGuiApplication, QKeySequence, QResizeEvent, QShortcut, QShowEvent
from PySide6.QtWidgets import (
    QFileDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QMenu,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from quantstudio.core.comparison import Comparison, Row, compare
from quantstudio.core.errors import DiskProblem, QuantStudioError, RunNotFound
from quantstudio.core.figures import Chart, has_data
from quantstudio.core.report import markdown_table
from quantstudio.core.result import RunResult
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import RunHeader, list_runs, read_result
from quantstudio.core.verdict import split_verdict
from quantstudio.gui.background import Latest
from quantstudio.gui.context import AppContext
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import (
    MARGIN,
    SPACE,
    Banner,
    Card,
    ElidedLabel,
    EmptyState,
    PageHeader,
    button,
    label,
    row,
    typeset,
)
from quantstudio.gui.widgets.chart_view import ChartPool, ChartView
from quantstudio.gui.widgets.compare_export import FORMATS, ExportFormat, export, with_suffix
from quantstudio.gui.widgets.compare_picker import RunPicker
from quantstudio.gui.widgets.compare_table import CompareTable
from quantstudio.gui.widgets.scroll_margin import keep_margin

PICKER_WIDTH, NARROW_PICKER = 232, 180
"""The list of runs in a roomy window, and in the narrowest one, so that the original and two runs stand beside it."""
ROOM_FOR_THREE = 596
"""What a table of three models and the page's margins take of its width."""
TWO_CHARTS = 820
"""From this width on two charts stand side by side."""
MAX_FIRST, MAX_READ = 4, 24
"""How many runs are ticked for a person who comes here for the first time; among how many of the newest they are."""


class _Area(QScrollArea):
    """Says when its contents have another width: a page hears of its own new size before its parts have theirs."""

    resized = Signal()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self.resized.emit()


class ComparePage(QWidget):
    """Runs to tick on the left, their comparison on the right."""

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.headers: list[RunHeader] = []
        self.results: list[RunResult] = []
        self.picker, self.banner = RunPicker(), Banner()
        self.charts: list[ChartView] = []
        self.pool = ChartPool(self)
        self._exporter = Latest(self)
        self._export_to = Path(QDir.homePath())
        self._cache: dict[str, RunResult] = {}
        self._touched = False
        self._grids: list[tuple[QGridLayout, list[QWidget]]] = []
        self._stack, self._right = QStackedWidget(), QStackedWidget()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(0)
        self._make_actions()
        self._lay_out()
        self._connect()
        self.reload()

    def show_runs(self, run_ids: list[str]) -> None:
        """Tick these runs and no others."""
        self._touched = True
        self.reload()
        self.picker.pick(run_ids)
        self._show_picked()

    def reload(self) -> None:
        """Look for finished runs again."""
        self.headers = [h for h in list_runs(self.context.settings.runs_path) if h.status is Status.DONE]
        known = {header.id for header in self.headers}
        self._cache = {run_id: result for run_id, result in self._cache.items() if run_id in known}
        before = self.picker.picked()
        self.picker.fill(self.headers)
        if not self._touched and not self.picker.picked():
            self.picker.pick(self._first_choice())
        self._stack.setCurrentIndex(1 if self.headers else 0)
        if self.picker.picked() != before or not self.results:
            self._show_picked()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        super().showEvent(event)
        self.reload()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self._picker_side.setFixedWidth(max(NARROW_PICKER, min(PICKER_WIDTH, self.width() - ROOM_FOR_THREE)))

    def save_as(self, kind: ExportFormat) -> None:
        """Ask where to, and write the comparison there."""
        start = str(self._export_to / f"comparison.{kind.suffix}")
        chosen, _ = QFileDialog.getSaveFileName(self, tr(kind.title), start, tr(kind.filter))
        if chosen:
            self.save(with_suffix(Path(chosen), kind.suffix))

    def save(self, path: Path) -> None:
        """Write the comparison in the background; the suffix decides the format."""
        self._export_to = path.parent
        self.export_button.setEnabled(False)
        self.banner.say(tr("Writing the file…"))
        results = list(self.results)

        def work() -> tuple[Path, DiskProblem | None]:
            try:
                export(results, path)
            except DiskProblem as problem:
                return path, problem
            return path, None

        self._exporter.ask(work)

    def copy_table(self) -> None:
        """Put the table on the clipboard as Markdown."""
        QGuiApplication.clipboard().setText(markdown_table(self.results))
        self.banner.say(tr("The table is on the clipboard, as Markdown."), "success")

    def _make_actions(self) -> None:
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        for kind in FORMATS:
            action = QAction(tr(kind.title), self)
            action.setToolTip(tr(kind.help))
            action.triggered.connect(lambda _=False, kind=kind: self.save_as(kind))
            menu.addAction(action)
        menu.addSeparator()
        copy = QAction(tr("Copy table as Markdown"), self)
        copy.setToolTip(tr("For a README or a message."))
        copy.triggered.connect(self.copy_table)
        menu.addAction(copy)
        self.export_menu = menu
        self.export_button = button(
            tr("E&xport"),
            self._open_menu,
            icon="save",
            tooltip=tr("Save the comparison as a report, pictures or a table."),
        )

    def _open_menu(self) -> None:
        corner = self.export_button.rect().bottomRight()
        corner.setX(corner.x() - self.export_menu.sizeHint().width())
        self.export_menu.popup(self.export_button.mapToGlobal(corner))

    def _lay_out(self) -> None:
        header = PageHeader(tr("Compare"), tr("Finished runs side by side with the original."), self.export_button)
        start = button(
            tr("Quantize a model"),
            self.context.open_quantize,
            icon="quantize",
            variant="primary",
            tooltip=tr("Go to the form that starts a run."),
        )
        empty = EmptyState(
            "compare",
            tr("Nothing to compare yet"),
            tr("When a run is finished, it stands here beside the original: size, memory, speed and quality."),
            start,
        )
        nothing = EmptyState("compare", tr("No run ticked"), tr("Tick one or more runs on the left."))
        self._right.addWidget(nothing)
        self._area = _Area()
        self._area.resized.connect(self._place_charts)
        self._area.setWidgetResizable(True)
        self._area.setFrameShape(QFrame.Shape.NoFrame)
        self._right.addWidget(self._area)
        body = QWidget()
        layout = QHBoxLayout(body)
        layout.setContentsMargins(MARGIN, 0, 0, 0)
        layout.setSpacing(SPACE)
        layout.addWidget(self._side())
        layout.addWidget(self._right, 1)
        full = QWidget()
        inner = QVBoxLayout(full)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(SPACE)
        top = QVBoxLayout()
        top.setContentsMargins(MARGIN, MARGIN, MARGIN, 0)
        top.setSpacing(12)
        top.addWidget(header)
        top.addWidget(self.banner)
        inner.addLayout(top)
        inner.addWidget(body, 1)
        self._stack.addWidget(empty)
        self._stack.addWidget(full)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(self._stack)

    def _side(self) -> QWidget:
        self._picker_side = side = QWidget()
        layout = QVBoxLayout(side)
        layout.setContentsMargins(0, 0, 0, SPACE)
        layout.setSpacing(4)
        every = button(tr("All"), self._pick_all, variant="ghost", tooltip=tr("Tick every run."))
        none = button(tr("None"), self._pick_none, variant="ghost", tooltip=tr("Tick no run."))
        layout.addLayout(row(label(tr("Runs"), "strong"), None, every, none, spacing=0))
        layout.addWidget(self.picker, 1)
        return side

    def _connect(self) -> None:
        self.picker.itemChanged.connect(lambda _: self._on_ticked())
        self._settle.timeout.connect(self._show_picked)
        self._exporter.found.connect(lambda found: self._on_exported(*found))
        self.context.queue.finished.connect(lambda _: self.reload())
        self.context.settings_changed.connect(self.reload)
        self.context.theme_changed.connect(self._on_theme)
        self.context.closing.connect(self.shutdown)
        QShortcut(QKeySequence.StandardKey.SelectAll, self.picker).activated.connect(self._pick_all)
        QShortcut(QKeySequence.StandardKey.Save, self).activated.connect(self._open_menu)

    def shutdown(self) -> None:
        """Wait until nothing is drawn or written any more."""
        self.pool.shutdown()
        self._exporter.wait()

    def _pick_all(self) -> None:
        self.picker.pick_all()
        self._on_ticked()

    def _pick_none(self) -> None:
        self.picker.pick([])
        self._on_ticked()

    def _on_ticked(self) -> None:
        self._touched = True
        self._settle.start()

    def _on_theme(self) -> None:
        for chart in self.charts:
            chart.redraw()
        self.picker.viewport().update()

    def _on_exported(self, path: Path, problem: DiskProblem | None) -> None:
        self.export_button.setEnabled(True)
        if problem is None:
            self.banner.say(f"{tr('Saved as')} {path}", "success")
        else:
            self.banner.say(str(problem), "error")

    def _show_picked(self) -> None:
        self.results, problems = [], []
        for run_id in self.picker.picked():
            try:
                self.results.append(self._result(run_id))
            except QuantStudioError as error:
                problems.append(str(error))
        self.banner.say(" ".join(problems), "warning")
        self.export_button.setEnabled(bool(self.results))
        self._right.setCurrentIndex(1 if self.results else 0)
        self.pool.clear()
        self.charts = []
        groups = compare(self.results)
        inside = QWidget()
        layout = QVBoxLayout(inside)
        layout.setSpacing(SPACE)
        if len(groups) > 1:
            text = tr("These runs started from different models. Each model is compared with its own original.")
            layout.addWidget(Banner(text, "info"))
        self._grids = []
        for group in groups:
            self._add_group(layout, group, named=len(groups) > 1)
        layout.addStretch(1)
        self._area.setWidget(inside)
        keep_margin(self._area, layout, QMargins(0, 0, MARGIN, MARGIN))
        self._place_charts()

    def _first_choice(self) -> list[str]:
        """The newest measured runs of the model that was worked on last; any while none of them was measured."""
        if not self.headers:
            return []
        model = (self.headers[0].model, self.headers[0].original_bytes)
        alike = [header.id for header in self.headers if (header.model, header.original_bytes) == model][:MAX_READ]
        measured = [run_id for run_id in alike if self._is_measured(run_id)]
        return (measured or alike)[:MAX_FIRST]

    def _is_measured(self, run_id: str) -> bool:
        try:
            return self._result(run_id).quantized is not None
        except RunNotFound:
            return False  # said when it is ticked

    def _result(self, run_id: str) -> RunResult:
        if run_id not in self._cache:
            self._cache[run_id] = read_result(self.context.settings.runs_path / run_id)
        return self._cache[run_id]

    def _add_group(self, layout: QVBoxLayout, group: Comparison, *, named: bool) -> None:
        if named:
            layout.addWidget(ElidedLabel(group.model_name, "title", mode=Qt.TextElideMode.ElideMiddle))
        for note in group.notes:
            layout.addWidget(Banner(note, "warning"))
        card = Card(spacing=8)
        card.body.addWidget(CompareTable(group))
        card.body.addWidget(label(_legend(group), "caption", wrap=True))
        layout.addWidget(card)
        verdicts = [_verdict(run) for run in group.runs if run.verdict]
        if verdicts:
            layout.addWidget(_verdict_card(verdicts))
        grid = QGridLayout()
        grid.setSpacing(SPACE)
        cards: list[QWidget] = []
        for chart in Chart:
            if has_data(chart, group):
                view = ChartView(chart, group, self.pool)
                holder = Card(spacing=0)
                holder.body.addWidget(view)
                holder.body.addStretch(1)
                self.charts.append(view)
                cards.append(holder)
        layout.addLayout(grid)
        self._grids.append((grid, cards))

    def _place_charts(self) -> None:
        columns = 2 if self._area.viewport().width() >= TWO_CHARTS else 1
        for grid, cards in self._grids:
            for place, card in enumerate(cards):
                last_alone = columns == 2 and place == len(cards) - 1 and place % 2 == 0
                grid.addWidget(card, place // columns, place % columns, 1, 2 if last_alone else 1)
            grid.setColumnStretch(1, 1 if columns == 2 else 0)
            grid.setColumnStretch(0, 1)


def _legend(group: Comparison) -> str:
    parts = [group.conditions, tr("Ratios are against the original as measured in the same run.")]
    if any(cell.best for each in group.rows for cell in each.cells.values()):
        parts.append(tr("Green marks the best value, unless noise hides which that is."))
    if any(cell.uncertain for each in group.rows for cell in each.cells.values()):
        parts.append(tr("≈\u00a0means within the noise: the difference to the original may be chance."))
    return " ".join(parts)


def _verdict(run: Row) -> QWidget:
    """What it gained and lost; what lies behind that is on its own page."""
    box = QWidget()
    layout = QVBoxLayout(box)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(3)
    layout.addWidget(ElidedLabel(run.name, "strong", mode=Qt.TextElideMode.ElideMiddle))
    for sentence in split_verdict(run.verdict)[0]:
        layout.addWidget(label(typeset(sentence), wrap=True))
    return box


def _verdict_card(verdicts: list[QWidget]) -> Card:
    card = Card(tr("In words"), spacing=14)
    for verdict in verdicts:
        card.body.addWidget(verdict)
    return card
