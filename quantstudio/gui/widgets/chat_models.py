"""The box in which the model to talk to is chosen: quantized models first, then the originals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import QComboBox, QSizePolicy

from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.core.recipe import STARTER
from quantstudio.core.run_store import MODEL, read_header
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import wrapped

WIDTH = 300
_ORDER = (ModelKind.RUN, ModelKind.STARTER, ModelKind.FOLDER, ModelKind.CACHE)


class ModelBox(QComboBox):
    """`picked` carries the model's id when a person chooses another one."""

    picked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumWidth(160)
        self.setMaximumWidth(WIDTH)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setAccessibleName(tr("Model to talk to"))
        self.setToolTip(tr("Model to talk to. Quantized models of finished runs stand first."))
        self.fill([])
        self.activated.connect(lambda _: self.picked.emit(self.model_id()))

    def fill(self, models: Iterable[FoundModel]) -> None:
        """Offer these models, and keep the choice. Models that cannot be read are left out."""
        chosen = str(self.currentData() or "")
        usable = [model for model in models if not model.error]
        usable.sort(key=lambda model: _ORDER.index(model.kind))
        with QSignalBlocker(self):
            self.clear()
            previous: ModelKind | None = None
            for model in usable:
                if previous is not None and model.kind is not previous:
                    self.insertSeparator(self.count())
                previous = model.kind
                self._add(_title(model), model.id, str(model.path))
            if self.findData(STARTER) < 0:
                self._add(tr("Starter model"), STARTER, tr("The model in the box."))
            if chosen:
                self.choose(chosen)

    def choose(self, model: str) -> None:
        """Choose a model by id or folder; one that is not offered is added."""
        if self.findData(model) < 0:
            with QSignalBlocker(self):
                self._add(_name_of(model), model, model)
        self.setCurrentIndex(self.findData(model))

    def model_id(self) -> str:
        """The chosen model, as a recipe would name it."""
        return str(self.currentData() or STARTER)

    def _add(self, title: str, model: str, tip: str) -> None:
        self.addItem(title, model)
        self.setItemData(self.count() - 1, wrapped(tip), Qt.ItemDataRole.ToolTipRole)


def _title(model: FoundModel) -> str:
    return tr("Starter model") if model.kind is ModelKind.STARTER else model.name


def _name_of(model: str) -> str:
    path = Path(model)
    if path.name == MODEL:
        return read_header(path.parent).name
    return path.name or model
