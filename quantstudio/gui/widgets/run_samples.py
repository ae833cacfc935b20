"""What the model writes at each evaluation of its training, kept like a trace: steps on the left, text on the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import QHBoxLayout, QListWidget, QTextEdit

from quantstudio.core.protocol import Sample
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.widgets.basics import Card, label

STEPS_WIDTH, HEIGHT = 116, 190


class SamplesCard(Card):
    """Follows the latest step until the person picks another; picking the last one follows again."""

    def __init__(self) -> None:
        super().__init__("What it writes", spacing=10)
        about = label("The same prompts, continued by the model at each evaluation.", "caption", wrap=True)
        self.body.addWidget(about)
        self.steps = QListWidget()
        self.steps.setFixedSize(STEPS_WIDTH, HEIGHT)
        self.steps.setAccessibleName(tr("Steps with samples"))
        self.steps.setToolTip(tr("Arrow keys move through the steps; the last one keeps following the training."))
        self.text = QTextEdit()
        self.text.setReadOnly(True)
        self.text.setFixedHeight(HEIGHT)
        self.text.setTabChangesFocus(True)
        self.text.setAccessibleName(tr("What the model wrote at this step"))
        beside = QHBoxLayout()
        beside.setSpacing(12)
        beside.addWidget(self.steps)
        beside.addWidget(self.text, 1)
        self.body.addLayout(beside)
        self._samples: dict[int, list[Sample]] = {}
        self._seen: tuple[int, int] = (0, 0)
        self._follows = True
        self._filling = False
        self.steps.currentRowChanged.connect(self._on_row)

    def new_run(self) -> None:
        """Start over with another run."""
        self._samples, self._seen, self._follows = {}, (0, 0), True
        self._fill([])

    def show_samples(self, samples: Sequence[Sample] | Iterable[Sample]) -> None:
        """Show these; cheap when nothing has come since."""
        found = list(samples)
        self.setVisible(bool(found))
        seen = (len(found), id(found[-1]) if found else 0)
        if seen == self._seen:
            return
        self._seen = seen
        self._samples = by_step(found)
        self._fill(list(self._samples))

    def current_step(self) -> int | None:
        """The step whose text is shown."""
        steps, place = list(self._samples), self.steps.currentRow()
        return steps[place] if 0 <= place < len(steps) else None

    def changeEvent(self, event: object) -> None:  # noqa: N802 - Qt's name
        super().changeEvent(event)  # type: ignore[arg-type]
        if not self._filling and self._samples:
            self._write()

    def _fill(self, steps: list[int]) -> None:
        chosen = self.current_step_text()
        self._filling = True
        self.steps.clear()
        self.steps.addItems([step_words(step) for step in steps])
        self._filling = False
        place = len(steps) - 1
        if not self._follows and chosen:
            kept = self.steps.findItems(chosen, Qt.MatchFlag.MatchExactly)
            place = self.steps.row(kept[0]) if kept else place
        self.steps.setCurrentRow(place)

    def current_step_text(self) -> str:
        """The chosen line of the list."""
        item = self.steps.currentItem()
        return item.text() if item else ""

    def _on_row(self, place: int) -> None:
        if self._filling:
            return
        self._follows = place in (-1, self.steps.count() - 1)
        self._write()

    def _write(self) -> None:
        step = self.current_step()
        tokens = active_tokens()
        prompt, answer = QTextCharFormat(), QTextCharFormat()
        prompt.setForeground(QColor(tokens.muted))
        answer.setForeground(QColor(tokens.text))
        prompt.setFontWeight(QFont.Weight.DemiBold)
        self.text.clear()
        cursor = QTextCursor(self.text.document())
        for place, sample in enumerate(self._samples.get(step, []) if step is not None else []):
            cursor.insertText("\n\n" if place else "", answer)
            cursor.insertText(sample.prompt, prompt)
            cursor.insertText(sample.text, answer)
        self.text.moveCursor(QTextCursor.MoveOperation.Start)


def by_step(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    """Samples by step in rising order; where a step was done again, the later text of a prompt counts."""
    found: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        found.setdefault(sample.step, {})[sample.prompt] = sample
    return {step: list(found[step].values()) for step in sorted(found)}


def step_words(step: int) -> str:
    """`Step 1,200`; step 0 is before the training."""
    return tr("Before") if step == 0 else f"{tr('Step')} {step:,}"
