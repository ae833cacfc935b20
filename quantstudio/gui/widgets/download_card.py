"""One download: how far it is, in total and file by file, and what can be done with it."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QGridLayout, QLabel, QProgressBar, QWidget

from quantstudio.client.download_queue import Download, DownloadStatus
from quantstudio.core.hub import TransferStage
from quantstudio.core.humanize import human_bytes
from quantstudio.gui.hub_texts import error_words, transfer_words
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import Banner, Card, ElidedLabel, badge, button, label, restyle, row

STEPS = 1000
FILES_SHOWN = 4
_BADGES = {
    DownloadStatus.WAITING: ("Waiting", ""),
    DownloadStatus.RUNNING: ("Downloading", "accent"),
    DownloadStatus.PAUSING: ("Pausing", ""),
    DownloadStatus.PAUSED: ("Paused", "warning"),
    DownloadStatus.INTERRUPTED: ("Not finished", "warning"),
    DownloadStatus.DONE: ("Here", "success"),
    DownloadStatus.FAILED: ("Stopped", "error"),
}


class DownloadCard(Card):
    """Wishes are signals; the page knows the queue."""

    pause_asked = Signal()
    resume_asked = Signal()
    cancel_asked = Signal()
    quantize_asked = Signal()
    page_asked = Signal()
    sign_in_asked = Signal()

    def __init__(self, model: str) -> None:
        super().__init__(spacing=8)
        self.model = model
        self.name = ElidedLabel(model, "heading", mode=Qt.TextElideMode.ElideMiddle)
        self.status = badge("")
        self.total = _bar(tr("Whole download"))
        self.words = ElidedLabel("", "muted")
        self.problem = Banner()
        self.pause = button("Pause", self.pause_asked.emit, icon="pause", tooltip="Stop, and keep what was fetched.")
        self.resume = button(
            "Resume", self.resume_asked.emit, icon="play", tooltip="Go on where it stopped; nothing is fetched twice."
        )
        self.licence = button(
            "Its page",
            self.page_asked.emit,
            icon="open",
            tooltip="In your browser, to accept its licence.",
        )
        self.sign_in = button("Sign in…", self.sign_in_asked.emit, icon="key", tooltip="With a token of the Hub.")
        self.cancel = button(
            "Cancel", self.cancel_asked.emit, icon="cross", tooltip="Stop, and delete what was fetched so far."
        )
        self.quantize = button(
            "Quantize this model",
            self.quantize_asked.emit,
            icon="quantize",
            variant="primary",
            tooltip="The next step.",
        )
        self.files = QWidget()
        self._grid = QGridLayout(self.files)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(12)
        self._grid.setVerticalSpacing(4)
        self._grid.setColumnStretch(0, 2)
        self._grid.setColumnStretch(1, 3)
        self._lines: list[tuple[ElidedLabel, QProgressBar, QLabel]] = []
        self._lay_out()

    def show_download(self, download: Download) -> None:
        """Show how far it is."""
        words, level = _BADGES[download.status]
        self.status.setText(tr(words))
        restyle(self.status, "level", level)
        self.words.setText(tr(transfer_words(download)))
        self._show_total(download)
        self.problem.say(error_words(download.error) if download.error else "", "error")
        status = download.status
        self.pause.setVisible(status in (DownloadStatus.WAITING, DownloadStatus.RUNNING))
        self.resume.setVisible(status.resumable)
        self.resume.setText(tr("Try again") if status is DownloadStatus.FAILED else tr("Resume"))
        refused = download.error is not None and download.error.kind == "access_needed"
        self.licence.setVisible(refused)
        self.sign_in.setVisible(refused)
        self.cancel.setText(tr("Take off the list") if status is DownloadStatus.DONE else tr("Cancel"))
        tip = "The model stays." if status is DownloadStatus.DONE else "Stop, and delete what was fetched so far."
        self.cancel.setToolTip(tr(tip))
        self.quantize.setVisible(status is DownloadStatus.DONE)
        self._show_files(download)

    def _show_total(self, download: Download) -> None:
        state = download.state
        looking = download.status is DownloadStatus.RUNNING and state.stage is TransferStage.LOOKING
        self.total.setRange(0, 0 if looking and not state.done else STEPS)
        share = 1.0 if download.status is DownloadStatus.DONE else state.done / state.total if state.total else 0.0
        if self.total.maximum():
            self.total.setValue(round(share * STEPS))

    def _show_files(self, download: Download) -> None:
        """The files that were at work last; a download that is done needs them no more."""
        shown = list(download.files.items())[-FILES_SHOWN:] if download.status is not DownloadStatus.DONE else []
        while len(self._lines) < len(shown):
            self._add_line()
        for number, (name, bar, size) in enumerate(self._lines):
            used = number < len(shown)
            for part in (name, bar, size):
                part.setVisible(used)
            if used:
                file, (done, total) = shown[number]
                name.setText(file)
                bar.setValue(round(STEPS * done / total) if total else STEPS)
                bar.setAccessibleName(file)
                size.setText(f"{human_bytes(done)} {tr('of')} {human_bytes(total)}")
        self.files.setVisible(bool(shown))

    def _add_line(self) -> None:
        line = (ElidedLabel("", "caption", mode=Qt.TextElideMode.ElideMiddle), _bar(""), label("", "caption"))
        for place, part in enumerate(line):
            self._grid.addWidget(part, len(self._lines), place)
        self._lines.append(line)

    def _lay_out(self) -> None:
        top = row(
            self.name, self.status, self.pause, self.sign_in, self.resume, self.licence, self.quantize, self.cancel
        )
        top.setStretch(0, 1)
        self.body.addLayout(top)
        self.body.addWidget(self.total)
        self.body.addWidget(self.words)
        self.body.addWidget(self.files)
        self.body.addWidget(self.problem)


def _bar(name: str) -> QProgressBar:
    made = QProgressBar()
    made.setRange(0, STEPS)
    made.setTextVisible(False)
    made.setAccessibleName(name)
    return made
