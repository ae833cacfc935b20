"""What a model would need on this machine, task by task: a verdict, memory, disk, time, and what would fit instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import QComboBox, QGridLayout, QPushButton, QVBoxLayout, QWidget

from quantstudio.core.fit import Need, Task, needs
from quantstudio.core.hub import ModelDetails
from quantstudio.core.humanize import human_bytes
from quantstudio.core.machine import Machine, read_machine
from quantstudio.core.schemes import SCHEMES, AnyScheme
from quantstudio.gui.background import Latest
from quantstudio.gui.hub_texts import TASK_TIPS, TASKS, need_fit, range_words, time_words
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import GAP, Card, badge, button, label, restyle, row, wrapped

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
USUAL_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class _Answer:
    machine: Machine
    needs: list[Need]


class NeedsPanel(Card):
    """`smaller_wanted`: the person wants a model of at most so many parameters."""

    smaller_wanted = Signal(object)

    def __init__(self) -> None:
        super().__init__("On this machine")
        self._details: ModelDetails | None = None
        self._folder = Path()
        self._latest = Latest(self)
        self._latest.found.connect(self._show)
        self.needs: list[Need] = []
        self.scheme = _box("Quantized as", "The scheme that the figures below are for.")
        for scheme in SCHEMES:
            self.scheme.addItem(scheme().weight_spec().label, scheme)
        self.context = _box("Context of the chat", "How many tokens of conversation are kept in memory.")
        for choice in (self.scheme, self.context):
            choice.currentIndexChanged.connect(lambda _: self._ask())
        self.rows: dict[Task, _Row] = {}
        self._lay_out()

    def show_details(self, details: ModelDetails, runs_folder: Path) -> None:
        """Work it out for this model."""
        self._details, self._folder = details, runs_folder
        lengths = [length for length in CONTEXTS if length <= details.context_length] or [CONTEXTS[0]]
        if details.context_length and details.context_length not in lengths:
            lengths.append(details.context_length)
        with QSignalBlocker(self.context):
            self.context.clear()
            for length in lengths:
                self.context.addItem(f"{length:,} {tr('tokens')}", length)
            self.context.setCurrentIndex(max(0, self.context.findData(USUAL_CONTEXT)))
        self._ask()

    def wait(self) -> None:
        """Finish what is being worked out, before the window goes."""
        self._latest.wait()

    def _ask(self) -> None:
        if self._details is None or not self.context.count():
            return
        details, folder = self._details, self._folder
        scheme, context = self.scheme.currentData()(), int(self.context.currentData())
        self._latest.ask(lambda: _work_out(details, folder, scheme, context))

    def _show(self, answer: _Answer) -> None:
        self.needs = answer.needs
        found = {need.task: need for need in answer.needs}
        for task, shown in self.rows.items():
            shown.show_need(found.get(task), answer.machine)

    def _lay_out(self) -> None:
        top = row(label("Quantized as", "muted"), self.scheme, None)
        top.insertWidget(2, self.context)
        top.insertWidget(2, label("Chat with", "muted"))
        self.body.addLayout(top)
        grid = QGridLayout()
        grid.setHorizontalSpacing(14)
        grid.setVerticalSpacing(4)
        grid.setColumnStretch(0, 1)
        for place, title in enumerate(("", "", "Memory", "Disk", "Time or speed")):
            side = Qt.AlignmentFlag.AlignRight if place > 1 else Qt.AlignmentFlag.AlignLeft
            grid.addWidget(label(title, "caption"), 0, place, side)
        for number, task in enumerate(Task):
            self.rows[task] = _Row(task, grid, 1 + 2 * number, self.smaller_wanted.emit)
        self.body.addLayout(grid)
        note = "Estimates, with the range in which they usually lie. Each run measures what it really took."
        self.body.addWidget(label(note, "caption", wrap=True))


class _Row:
    """One task in the grid, and below it a sentence where something stands in the way."""

    def __init__(self, task: Task, grid: QGridLayout, number: int, smaller: Callable[[int], None]) -> None:
        self.title, self.verdict = label(TASKS[task]), badge("")
        self.title.setToolTip(wrapped(tr(TASK_TIPS[task])))
        self.figures = [label("–") for _ in range(3)]
        self.sentence = label("", "caption", wrap=True)
        self.smaller: QPushButton = button(
            "Find a smaller one",
            self._ask,
            icon="search",
            variant="ghost",
            tooltip="Search the Hub for models that fit.",
        )
        self._ask_for, self._parameters = smaller, 0
        grid.addWidget(self.title, number, 0)
        grid.addWidget(self.verdict, number, 1)
        for place, figure in enumerate(self.figures, start=2):
            grid.addWidget(figure, number, place, Qt.AlignmentFlag.AlignRight)
        self.below = QWidget()
        layout = QVBoxLayout(self.below)
        layout.setContentsMargins(0, 0, 0, GAP)
        layout.setSpacing(0)
        layout.addWidget(self.sentence)
        layout.addLayout(row(self.smaller, None))
        grid.addWidget(self.below, number + 1, 0, 1, 5)
        self.below.hide()

    def show_need(self, need: Need | None, machine: Machine) -> None:
        """Show it; a dash for a task that does not apply (a quantized model is not quantized again)."""
        if need is None:
            self.verdict.setText("–")
            restyle(self.verdict, "level", "")
            for figure in self.figures:
                figure.setText("–")
            self.below.hide()
            return
        fit = need_fit(need, machine)
        self.verdict.setText(tr(fit.short))
        self.verdict.setToolTip(wrapped(tr(fit.sentence)))
        self.verdict.setAccessibleName(f"{tr(TASKS[need.task])}: {tr(fit.sentence)}")
        restyle(self.verdict, "level", fit.level)
        texts = (range_words(need.memory), human_bytes(need.disk) if need.disk else "–", time_words(need))
        for figure, text in zip(self.figures, texts, strict=True):
            figure.setText(text)
        self.sentence.setText(tr(fit.sentence))
        self._parameters = need.instead.parameters if need.instead else 0
        self.smaller.setVisible(bool(self._parameters))
        self.below.setVisible(fit.level != "success")

    def _ask(self) -> None:
        self._ask_for(self._parameters)


def _work_out(details: ModelDetails, folder: Path, scheme: AnyScheme, context: int) -> _Answer:
    machine = read_machine(folder)
    known = details.model_info()
    if known is None:
        return _Answer(machine, [])
    missing = details.download_bytes
    return _Answer(machine, needs(known, machine, folder, scheme=scheme, context=context, missing_bytes=missing))


def _box(name: str, tip: str) -> QComboBox:
    made = QComboBox()
    made.setAccessibleName(tr(name))
    made.setToolTip(tr(tip))
    return made
