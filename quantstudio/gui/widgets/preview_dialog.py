"""What the model will learn from: numbers, licence, warnings, and the text as it sees it. Read by a worker.

Closing the dialog ends the worker. What cannot be read is said with the nearest fix, and the dialog stays.
"""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QListWidget, QProgressBar, QVBoxLayout, QWidget

from quantstudio.client.job_call import JobCall
from quantstudio.core.data_preview import DataPreview
from quantstudio.core.jobs import PreviewDataJob
from quantstudio.core.protocol import Error
from quantstudio.core.result import DataSummary
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import GAP, SPACE, Banner, ElidedLabel, button, label, row
from quantstudio.gui.widgets.grow import grow_to_fit, resize_around
from quantstudio.gui.widgets.preview_text import SequenceView, counts_wholly
from quantstudio.gui.widgets.run_words import detail_words

SIZE, SMALL, LIST_WIDTH = (820, 620), (620, 150), 150
_SPLITS = {"training": "Training", "calibration": "Calibration", "held_out": "Held-out"}
_ALL = "Every token of this piece counts. Coloured marks end a document or a turn."
_SOME = "What is highlighted counts for the loss; the rest is read but not learnt. Coloured marks end a turn."


class PreviewDialog(QDialog):
    """`look` starts a worker; closing ends it."""

    def __init__(self, call: JobCall, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._call = call
        self._call.setParent(self)
        self.preview: DataPreview | None = None
        self.setWindowTitle(tr("What the model will learn from"))
        resize_around(self, *SMALL)
        self.source = ElidedLabel("", "heading")
        self.licence = label("", "muted")
        self.waiting = label("Reading the text…", "muted")
        self.bar = QProgressBar()
        self.bar.setRange(0, 0)
        self.bar.setAccessibleName(tr("Reading the text…"))
        self.banners = QVBoxLayout()
        self.banners.setSpacing(GAP)
        self.numbers = QGridLayout()
        self.pieces, self.text = QListWidget(), SequenceView()
        self.legend = label("", "caption", wrap=True)
        self._body = QWidget()
        self._lay_out()
        self.pieces.currentRowChanged.connect(self._on_piece)
        call.answered.connect(self._show)
        call.failed.connect(self._fail)
        call.stopped.connect(self.reject)
        call.changed.connect(self._tell)

    def look(self, job: PreviewDataJob) -> None:
        """Read this text and show it."""
        self._body.hide()
        self._call.ask(job, DataPreview.model_validate)
        self.show()

    def done(self, result: int) -> None:
        self._call.drop()
        super().done(result)

    def _lay_out(self) -> None:
        self.pieces.setFixedWidth(LIST_WIDTH)
        self.pieces.setAccessibleName(tr("Pieces of text"))
        self.pieces.setToolTip(tr("Arrow keys move from piece to piece."))
        self.numbers.setHorizontalSpacing(28)
        self.numbers.setVerticalSpacing(2)
        beside = QHBoxLayout()
        beside.setSpacing(12)
        beside.addWidget(self.pieces)
        beside.addWidget(self.text, 1)
        inner = QVBoxLayout(self._body)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(12)
        inner.addWidget(self.source)
        inner.addLayout(self.numbers)
        inner.addWidget(self.licence)
        inner.addLayout(beside, 1)
        inner.addWidget(self.legend)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
        layout.setSpacing(12)
        layout.addLayout(self.banners)
        layout.addWidget(self.waiting)
        layout.addWidget(self.bar)
        layout.addWidget(self._body, 1)
        layout.addStretch()
        self.close_button = button("Close", self.accept, tooltip="Close this preview.")
        layout.addLayout(row(None, self.close_button))

    def _tell(self) -> None:
        state = self._call.state
        self.waiting.setVisible(state is not None)
        self.bar.setVisible(state is not None)
        if state is not None and (words := detail_words(state)):
            self.waiting.setText(f"{tr('Reading the text…')} {words}")

    def _fail(self, error: Error) -> None:
        words = " ".join(part for part in (error.what, error.why, error.hint) if part)
        self.banners.addWidget(Banner(words, "error"))
        grow_to_fit(self)

    def _show(self, preview: DataPreview) -> None:
        self.preview = preview
        for warning in preview.warnings:
            self.banners.addWidget(Banner(warning, "warning"))
        summary = preview.summary
        self.source.setText(summary.source)
        self.licence.setText(f"{tr('Licence:')} {summary.licence or tr('the source does not say')}")
        for place, (words, number, detail) in enumerate(numbers(summary)):
            cell = label(number, "number")
            cell.setAccessibleName(f"{tr(words)}: {number} {detail}")
            for line, part in enumerate((label(words, "caption"), cell, label(detail, "caption"))):
                self.numbers.addWidget(part, line, place)
        self.numbers.setColumnStretch(len(numbers(summary)), 1)
        counted: dict[str, int] = {}
        for sequence in preview.sequences:
            counted[sequence.split] = counted.get(sequence.split, 0) + 1
            self.pieces.addItem(f"{tr(_SPLITS[sequence.split])} {counted[sequence.split]}")
        self._body.show()
        resize_around(self, *SIZE)
        self.pieces.setCurrentRow(0)
        self.pieces.setFocus(Qt.FocusReason.OtherFocusReason)

    def _on_piece(self, place: int) -> None:
        if self.preview is None or not 0 <= place < len(self.preview.sequences):
            return
        sequence = self.preview.sequences[place]
        self.text.show_sequence(sequence)
        self.legend.setText(tr(_ALL if counts_wholly(sequence) else _SOME))


def numbers(summary: DataSummary) -> list[tuple[str, str, str]]:
    """(name, number, what it counts) of each split and of the whole."""
    length = f"{tr('pieces of')} {summary.sequence_length:,} {tr('tokens')}"
    left_out = f"{summary.left_out_tokens:,} {tr('tokens left out')}" if summary.left_out_tokens else ""
    return [
        ("Calibration", f"{summary.calibration_sequences:,}", length),
        ("Training", f"{summary.training_sequences:,}", f"{summary.training_loss_tokens:,} {tr('tokens count')}"),
        ("Held-out", f"{summary.held_out_sequences:,}", tr("to judge by")),
        ("Documents", f"{summary.documents:,}", left_out),
    ]
