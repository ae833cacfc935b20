"""What is known of one model, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.core.safety import Finding, Level
from quantstudio.gui.language import tr
from quantstudio.gui.model_texts import KINDS, Fit, details, history
from quantstudio.gui.widgets.basics import Banner, Card, ElidedLabel, badge, button, label, row, wrapped

FIRST = "Choose how the weights are rounded, and see what it will cost."
AGAIN = "Start from the original again, with this model's recipe to change as you like."


class ModelDetails(Card):
    """A card about the model that is marked in the list. Its owner connects the buttons."""

    def __init__(self) -> None:
        super().__init__()
        self.model: FoundModel | None = None
        self.name = ElidedLabel("", "heading", mode=Qt.TextElideMode.ElideMiddle)
        self.kind = badge("", "accent")
        self.fit = Banner()
        self.facts = QWidget()
        self._grid = QGridLayout(self.facts)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(12)
        self._grid.setVerticalSpacing(6)
        self._grid.setColumnStretch(1, 1)
        self.path = ElidedLabel("", "caption", mode=Qt.TextElideMode.ElideMiddle)
        head = QVBoxLayout()
        head.setSpacing(6)
        head.addWidget(self.name)
        head.addLayout(row(self.kind, None))
        self.body.addLayout(head)
        self.findings = Banner()
        self.body.addWidget(self.fit)
        self.body.addWidget(self.findings)
        self.body.addWidget(self.facts)
        self.body.addWidget(self.path)
        self.body.addStretch(1)

    def show_model(self, model: FoundModel, fit: Fit | None) -> None:
        """Show this model."""
        self.model = model
        self.name.setText(model.name)
        self.kind.setText(tr(KINDS[model.kind]))
        self.path.setText(str(model.path))
        self.path.setAccessibleName(f"{tr('Folder')}: {model.path}")
        self.path.setToolTip(str(model.path))
        if model.info is None:
            self.fit.say(model.error, "error")
        else:
            self.fit.say(fit.sentence if fit else "", fit.level if fit else "info")
        self._show_facts([*(details(model) if model.info else []), *history(model)])

    def show_findings(self, findings: Sequence[Finding]) -> None:
        """Show what a look at the folder, before any loader touches it, has found."""
        blocked = any(finding.level is Level.BLOCK for finding in findings)
        self.findings.say("\n".join(finding.text for finding in findings), "error" if blocked else "info")

    def _show_facts(self, facts: list[tuple[str, str]]) -> None:
        while self._grid.count():
            item = self._grid.takeAt(0)
            if item is not None and (old := item.widget()):
                old.hide()
                old.deleteLater()
        for number, (name, value) in enumerate(facts):
            self._grid.addWidget(label(name, "muted"), number, 0, Qt.AlignmentFlag.AlignTop)
            self._grid.addWidget(_value(tr(name), value), number, 1)
        self.facts.setVisible(bool(facts))


class ModelActions(QWidget):
    """The buttons under the details. `deeds`: name of a button → what it does."""

    def __init__(self, deeds: Mapping[str, Callable[[], None]]) -> None:
        super().__init__()
        self.quantize = button(
            "Quantize this model",
            deeds["quantize"],
            icon="quantize",
            variant="primary",
            tooltip=FIRST,
        )
        self.repair = button(
            "Repair",
            deeds["repair"],
            icon="download",
            variant="primary",
            tooltip="Download what is missing or damaged; what is right is kept.",
        )
        self.compare = button(
            "Compare", deeds["compare"], icon="compare", tooltip="See what its run has measured, beside the original."
        )
        self.chat = button("Chat", deeds["chat"], icon="chat", tooltip="Talk to this model.")
        self.folder = button("Folder", deeds["folder"], icon="folder", tooltip="Show the files of this model.")
        tip = "Compare every byte with its checksum, where one is known."
        self.verify = button("Verify", deeds["verify"], icon="check", tooltip=tip)
        tip = "Delete the model's files from this machine. You are asked first."
        self.delete = button("Delete…", deeds["delete"], icon="trash", variant="danger", tooltip=tip)
        self.remove = button(
            "Remove from list", deeds["remove"], icon="trash", tooltip="Take the folder off the list. Its files stay."
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(8)
        layout.addWidget(self.quantize)
        layout.addWidget(self.repair)
        layout.addWidget(self.compare)
        layout.addLayout(row(self.chat, self.folder))
        layout.addLayout(row(self.verify, self.delete))
        layout.addWidget(self.remove)

    def show_model(self, model: FoundModel, *, damaged: bool) -> None:
        """Offer what can be done with this model. `damaged`: a comparison with its checksums has failed."""
        usable = model.info is not None
        repairable = model.repairable or (damaged and model.kind is ModelKind.CACHE)
        made_here = model.kind is ModelKind.RUN
        self.quantize.setVisible(not (repairable and not usable))
        self.quantize.setEnabled(made_here or (usable and not (model.info and model.info.quantized)))
        self.quantize.setText(tr("Quantize again…") if made_here else tr("Quantize this model"))
        self.quantize.setToolTip(wrapped(tr(AGAIN if made_here else FIRST)))
        self.compare.setVisible(made_here)
        self.repair.setVisible(repairable)
        self.repair.setText(tr("Finish the download") if model.partial_bytes else tr("Repair"))
        self.chat.setEnabled(usable)
        self.verify.setEnabled(usable or not model.partial_bytes)
        self.delete.setVisible(model.kind in (ModelKind.CACHE, ModelKind.RUN))
        self.remove.setVisible(model.kind is ModelKind.FOLDER)


def _value(name: str, text: str) -> QLabel:
    made = label(text, wrap=True)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    made.setAccessibleName(f"{name}: {text}")
    return made
