"""What came out of a run, in a few large numbers and in sentences; or what went wrong and what to try."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QGridLayout, QVBoxLayout, QWidget

from quantstudio.core.comparison import Cell, Column, Comparison, compare
from quantstudio.core.protocol import Error
from quantstudio.core.result import RunResult
from quantstudio.core.verdict import split_verdict
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import GAP, Card, button, column, icon_label, label, row, typeset
from quantstudio.gui.widgets.flow import Flow
from quantstudio.gui.widgets.run_stopped import RESUME

TILE_WIDTH = 118
_TITLES = {"change": "Perplexity", "ttft": "Time to first token"}
"""Where a column's title says too little outside its table."""
_KEY_NUMBERS = ("size", "memory", "ttft", "decode_tps", "change", "top1")


class NumberTile(QFrame):
    """One number with its name above and its ratio to the original below."""

    def __init__(self, title: str, cell: Cell, help_text: str) -> None:
        super().__init__()
        self.setToolTip(tr(help_text))
        detail = tr("within the noise") if cell.uncertain else cell.detail
        self.setAccessibleName(f"{tr(title)}: {cell.text}, {detail}")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        for text, role in ((tr(title), "caption"), (cell.text, "number"), (detail, "caption")):
            made = label(text, role)
            made.setMinimumWidth(TILE_WIDTH)
            layout.addWidget(made)


class ResultCard(Card):
    """The numbers, what to do next, and the verdict: all that is looked for first is there without scrolling."""

    compare_asked = Signal()
    chat_asked = Signal()
    folder_asked = Signal()
    again_asked = Signal()
    contest_asked = Signal()

    def __init__(self) -> None:
        super().__init__(spacing=14)
        self._texts = QVBoxLayout()
        self._texts.setSpacing(6)
        self._tiles = QGridLayout()
        self._tiles.setHorizontalSpacing(24)
        self._tiles.setVerticalSpacing(16)
        self.body.addLayout(row(icon_label("check", "success"), label(tr("Done"), "heading"), None))
        self.body.addLayout(self._tiles)
        self.chat = button(
            tr("Chat with it"),
            self.chat_asked.emit,
            icon="chat",
            variant="primary",
            tooltip=tr("Talk to the quantized model."),
        )
        self.compare = button(
            tr("Compare"),
            self.compare_asked.emit,
            icon="compare",
            tooltip=tr("Put it side by side with the original and other runs."),
        )
        self.folder = button(
            tr("Open folder"),
            self.folder_asked.emit,
            icon="folder",
            tooltip=tr("Show the run's files, among them the model, in the file manager."),
        )
        self.again = button(
            tr("Run again…"),
            self.again_asked.emit,
            icon="refresh",
            tooltip=tr("Load this run's recipe into the form, to change or repeat it."),
        )
        self.contest = button(
            tr("Other ways…"),
            self.contest_asked.emit,
            icon="search",
            tooltip=tr("This run was one of several ways to the same size: show how they compare."),
        )
        self.contest.hide()
        self.body.addWidget(Flow(self.chat, self.compare, self.contest, self.folder, self.again))
        self.body.addLayout(self._texts)
        self._columns = 4
        self._made: list[NumberTile] = []

    def show_result(self, result: RunResult) -> None:
        """Show this result."""
        (group,) = compare([result])
        _clear(self._texts)
        gained, background = split_verdict(result.verdict)
        for sentence in gained:
            self._texts.addWidget(label(typeset(sentence), wrap=True))
        if background:
            self._texts.addSpacing(GAP)
            self._texts.addWidget(label("Behind these numbers", "strong"))
        for sentence in background:
            self._texts.addWidget(label(typeset(sentence), "muted", wrap=True))
        _clear(self._tiles)
        self._made = [
            NumberTile(_TITLES.get(head.id, head.title), cell, head.help)
            for head, cell in key_numbers(group)
            if cell.value is not None
        ]
        self._place_tiles()

    def resizeEvent(self, event: object) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)  # type: ignore[arg-type]
        columns = max(2, min(6, (self.width() - 32) // (TILE_WIDTH + 24)))
        if columns != self._columns:
            self._columns = columns
            self._place_tiles()

    def _place_tiles(self) -> None:
        rows = -(-len(self._made) // self._columns)
        columns = -(-len(self._made) // max(1, rows))  # rows of like length: three and three, not five and one
        for place, tile in enumerate(self._made):
            self._tiles.addWidget(tile, place // columns, place % columns, Qt.AlignmentFlag.AlignTop)
        for place in range(8):
            self._tiles.setColumnStretch(place, 1 if place == columns else 0)


def key_numbers(group: Comparison) -> list[tuple[Column, Cell]]:
    """Column and cell of the numbers that matter most, of the group's first run."""
    run = group.runs[0]
    return [(column, run.cells[column.id]) for column in group.columns if column.id in _KEY_NUMBERS]


class ErrorCard(Card):
    """What happened, why, and what to try."""

    resume_asked = Signal()
    again_asked = Signal()
    folder_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "error")
        self.what = label("", "strong", wrap=True)
        self.why = label("", wrap=True)
        self.hint = label("", wrap=True)
        for text in (self.what, self.why, self.hint):
            text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.resume = button("Resume", self.resume_asked.emit, icon="play", tooltip=RESUME)
        self.again = button(
            tr("Change and run again"),
            self.again_asked.emit,
            icon="refresh",
            tooltip=tr("Load this run's recipe into the form, to change or repeat it."),
        )
        self.folder = button(
            tr("Open folder"),
            self.folder_asked.emit,
            icon="folder",
            tooltip=tr("Show the run's files, among them its log, in the file manager."),
        )
        texts = column(self.what, self.why, self.hint, spacing=4)
        top = row()
        top.addWidget(icon_label("error", "danger"), 0, Qt.AlignmentFlag.AlignTop)
        top.addLayout(texts, 1)
        self.body.addLayout(top)
        self.body.addWidget(Flow(self.resume, self.again, self.folder))

    def show_error(self, error: Error, *, resumable: bool) -> None:
        """Show this error, with Resume where there is something to go on from."""
        self.resume.setVisible(resumable)
        self.what.setText(error.what)
        self.why.setText(error.why)
        self.hint.setText(error.hint)
        self.why.setVisible(bool(error.why))
        self.hint.setVisible(bool(error.hint))
        self.setAccessibleName(" ".join(part for part in (error.what, error.why, error.hint) if part))


def _clear(layout: QVBoxLayout | QGridLayout) -> None:
    while (item := layout.takeAt(0)) is not None:
        widget: QWidget | None = item.widget()
        if widget is not None:
            widget.deleteLater()
