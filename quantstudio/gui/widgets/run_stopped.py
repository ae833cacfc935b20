"""A run that was cancelled: what is left of it, and how to go on."""

from __future__ import annotations

from PySide6.QtCore import Signal

from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import Card, button, icon_label, label, row

RESUME = "Go on where it stopped, with the same result as if it had not been stopped."
_KEPT = "What it had finished is kept. Resume goes on from there; Run again starts a new run."
_NOTHING = "Nothing of it is kept but its log. Run again loads its recipe into the form."


class StoppedCard(Card):
    """Shown for cancelled runs."""

    resume_asked = Signal()
    again_asked = Signal()
    folder_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.text = label("", "muted", wrap=True)
        self.resume = button("Resume", self.resume_asked.emit, icon="play", variant="primary", tooltip=RESUME)
        self.again = button(
            "Run again…",
            self.again_asked.emit,
            icon="refresh",
            tooltip="Load this run's recipe into the form, to change or repeat it.",
        )
        self.folder = button(
            "Open folder",
            self.folder_asked.emit,
            icon="folder",
            tooltip="Show the run's files, among them its log, in the file manager.",
        )
        self.body.addLayout(row(icon_label("stop", "muted"), label("Cancelled", "heading"), None))
        self.body.addWidget(self.text)
        self.body.addLayout(row(self.resume, self.again, self.folder, None))

    def show_stopped(self, *, resumable: bool) -> None:
        """Show it, with Resume where there is something to go on from."""
        self.resume.setVisible(resumable)
        self.text.setText(tr(_KEPT if resumable else _NOTHING))
