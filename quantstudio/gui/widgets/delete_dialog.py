"""Asks what of a downloaded model is to be deleted: everything, or one of its revisions, each with what it frees."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtWidgets import QButtonGroup, QDialog, QRadioButton, QVBoxLayout, QWidget

from quantstudio.core.cache import Revision
from quantstudio.core.humanize import human_bytes, plural
from quantstudio.core.library import FoundModel
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import MARGIN, SPACE, button, label, row

WIDTH = 440


class DeleteDialog(QDialog):
    """Accepted: delete `revision()`, which is empty for everything."""

    def __init__(self, model: FoundModel, revisions: Sequence[Revision], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(tr("Delete a model"))
        self.setFixedWidth(WIDTH)
        self.choices: dict[str, QRadioButton] = {}
        layout = QVBoxLayout(self)
        layout.setContentsMargins(MARGIN, MARGIN, MARGIN, MARGIN)
        layout.setSpacing(SPACE)
        layout.addWidget(label(f"{tr('Delete')} {model.name}?", "heading", wrap=True))
        if model.made:
            text = f"{plural(len(model.made), 'run')} {tr('were made from it; they stay.')}"
            layout.addWidget(label(text, "muted", wrap=True))
        self._group = QButtonGroup(self)
        self._choice(layout, "", f"{tr('Everything')}: {tr('frees')} {human_bytes(model.nbytes)}")
        if len(revisions) > 1:
            for revision in revisions:
                text = f"{tr('Only revision')} {revision.commit[:12]}: {tr('frees')} {human_bytes(revision.freed)}"
                self._choice(layout, revision.commit, text)
        self.choices[""].setChecked(True)
        self.keep = button("Keep", self.reject, tooltip="Delete nothing.")
        self.delete = button("Delete", self.accept, variant="danger", icon="trash", tooltip="This cannot be undone.")
        self.keep.setDefault(True)
        layout.addLayout(row(None, self.keep, self.delete))

    def revision(self) -> str:
        """The chosen revision's commit; empty for everything."""
        return next(commit for commit, choice in self.choices.items() if choice.isChecked())

    def _choice(self, layout: QVBoxLayout, commit: str, text: str) -> None:
        made = QRadioButton(text)
        made.setToolTip(tr("Files that another revision shares stay.") if commit else tr("All revisions."))
        made.setAccessibleName(text)
        self._group.addButton(made)
        self.choices[commit] = made
        layout.addWidget(made)
