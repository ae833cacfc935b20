"""On this machine: every model with its facts, and what keeps order: verify, repair, delete, open, add folders."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QModelIndex, Qt, QUrl, Signal
from PySide6.QtGui import QDesktopServices, QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import (
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QLineEdit,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from quantstudio.core.errors import QuantStudioError
from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.core.recipe_io import load_recipe
from quantstudio.core.run_store import RECIPE
from quantstudio.core.safety import Finding, check_folder
from quantstudio.core.settings import save_settings
from quantstudio.gui.background import Latest
from quantstudio.gui.context import AppContext
from quantstudio.gui.language import tr
from quantstudio.gui.model_texts import Fit, fits
from quantstudio.gui.pages.library_keeper import Keeper
from quantstudio.gui.widgets.basics import (
    GAP,
    MARGIN,
    SPACE,
    Banner,
    Card,
    EmptyState,
    button,
    column,
    restyle,
    row,
)
from quantstudio.gui.widgets.model_details import ModelActions, ModelDetails
from quantstudio.gui.widgets.model_list import MODEL_ROLE, ModelItems, ModelList

DETAILS_WIDTH = 300


class LibraryView(QWidget):
    """A list of models, and details of the one that is marked.

    `repair_wanted`: a model of the Hub is to be downloaded again; `find_wanted`: the person looks for one there.
    """

    repair_wanted = Signal(str)
    find_wanted = Signal()

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.items = ModelItems()
        self.list = ModelList(self.items)
        self.banner = Banner()
        self.details = ModelDetails()
        self.deeds = ModelActions(
            {
                "quantize": self.quantize,
                "compare": self.compare,
                "chat": self.chat,
                "folder": self.open_folder,
                "verify": self.verify,
                "repair": self.repair,
                "delete": self.delete,
                "remove": self.remove_from_list,
            }
        )
        self.keeper = Keeper(context, self)
        self.filter = QLineEdit()
        self._wanted = ""
        self._looked = False
        self._fits, self._findings = Latest(self), Latest(self)
        self._lay_out()
        self._connect()
        self._show_models(context.library.models)

    def marked(self) -> FoundModel | None:
        """The model that is marked in the list."""
        model = self.list.currentIndex().data(MODEL_ROLE)
        return model if isinstance(model, FoundModel) else None

    def quantize(self) -> None:
        """Open the Quantize page with the marked model; one made here is made again, from its original."""
        model = self.marked()
        if model and model.kind is ModelKind.RUN:
            self._quantize_again(model)
        elif model and model.info and not model.info.quantized:
            self.context.open_quantize(model.id)

    def compare(self) -> None:
        """Show what the run of the marked model has measured."""
        if (model := self.marked()) and model.kind is ModelKind.RUN:
            self.context.open_compare([model.path.parent.name])

    def chat(self) -> None:
        """Open the Chat page with the marked model."""
        if model := self.marked():
            self.context.open_chat(model.id)

    def open_folder(self) -> None:
        """Show the marked model's files."""
        if model := self.marked():
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(model.path)))

    def verify(self) -> None:
        """Compare every byte of the marked model."""
        if model := self.marked():
            self.keeper.verify(model)

    def repair(self) -> None:
        """Fetch what is missing or damaged of the marked model."""
        if model := self.marked():
            self.repair_wanted.emit(model.name)

    def delete(self) -> None:
        """Delete the marked model, after asking."""
        if model := self.marked():
            self.keeper.delete(model)

    def ask_for_folder(self) -> None:
        """Add a folder through a dialog."""
        if chosen := QFileDialog.getExistingDirectory(self, tr("Add a model folder")):
            self.add_folders([Path(chosen)])

    def add_folders(self, folders: list[Path]) -> None:
        """Put folders on the list and keep them in the settings."""
        known = set(self.context.settings.model_folders)
        new = [str(folder) for folder in folders if str(folder) not in known]
        self._wanted = str(folders[0])
        if new:
            self._keep_folders((*self.context.settings.model_folders, *new))
        else:
            self._mark(self._wanted)

    def remove_from_list(self) -> None:
        """Take the marked model's folder off the list; its files stay."""
        model = self.marked()
        if model is None:
            return
        place = model.path
        folders = self.context.settings.model_folders
        self._keep_folders(tuple(folder for folder in folders if not _lists(folder, place)))

    def refresh(self) -> None:
        """Look at the disk again."""
        self.context.library.refresh(self.context.settings)

    def drag_enter(self, event: QDragEnterEvent) -> None:
        """Something is held over the page."""
        if _folders(event):
            event.acceptProposedAction()
            restyle(self._card, "role", "drop")

    def drag_leave(self) -> None:
        """It is gone again."""
        restyle(self._card, "role", "card")

    def drop(self, event: QDropEvent) -> None:
        """It was let go."""
        restyle(self._card, "role", "card")
        self.add_folders(_folders(event))
        event.acceptProposedAction()

    def _quantize_again(self, model: FoundModel) -> None:
        try:
            self.context.open_recipe(load_recipe(model.path.parent / RECIPE))
        except QuantStudioError as error:
            self.banner.say(str(error), "error")

    def _keep_folders(self, folders: tuple[str, ...]) -> None:
        changed = self.context.settings.model_copy(update={"model_folders": folders})
        try:
            save_settings(changed)
            self.banner.say("")
        except QuantStudioError as error:
            self.banner.say(str(error), "error")
        self.context.change_settings(changed)

    def _lay_out(self) -> None:
        self.add_button = button(
            "Add folder…",
            self.ask_for_folder,
            icon="plus",
            tooltip="Add a model folder, or a folder that holds several. Folders can also be dropped on this page.",
        )
        self.refresh_button = button("Refresh", self.refresh, icon="refresh", tooltip="Look at the disk again.")
        self.filter.setPlaceholderText(tr("Filter models"))
        self.filter.setAccessibleName(tr("Filter models"))
        self.filter.setToolTip(tr("Show only models whose name, architecture or folder holds this text."))
        self.filter.setClearButtonEnabled(True)
        self.empty = EmptyState(
            "models",
            "No model to show",
            "Add a folder with config.json and .safetensors files, or drop one here. Models that other tools "
            "downloaded into the Hugging Face cache appear by themselves.",
            button("Find one on the Hub", self.find_wanted.emit, icon="search", variant="primary"),
        )
        self._card = Card(spacing=GAP)
        self._card.body.setContentsMargins(8, 8, 8, 8)
        self._stack = QStackedWidget()
        self._stack.addWidget(self.list)
        self._stack.addWidget(self.empty)
        top = row(self.filter, self.refresh_button, self.add_button)
        top.setStretch(0, 1)
        self._card.body.addLayout(top)
        self._card.body.addWidget(self._stack, 1)
        body = QHBoxLayout()
        body.setSpacing(SPACE)
        body.addWidget(self._card, 1)
        body.addWidget(self._side())
        body.setContentsMargins(0, 0, 0, MARGIN)
        layout = column(self.banner, spacing=GAP)
        layout.setContentsMargins(0, 4, 0, 0)
        self.setLayout(layout)
        layout.addLayout(body, 1)

    def _side(self) -> QFrame:
        self.side = QFrame()
        self.side.setFixedWidth(DETAILS_WIDTH)
        layout = QVBoxLayout(self.side)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(12)
        scroll = QScrollArea()
        scroll.setWidget(self.details)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        layout.addWidget(scroll, 1)
        layout.addWidget(self.keeper.bar)
        layout.addWidget(self.deeds)
        return self.side

    def _connect(self) -> None:
        library = self.context.library
        library.found.connect(self._take_models)
        library.failed.connect(lambda text: self.banner.say(text, "error"))
        self.list.selectionModel().currentChanged.connect(lambda *_: self._show_marked())
        self.list.activated.connect(lambda _: self.quantize())
        self.filter.textChanged.connect(self._filter)
        self._fits.found.connect(self._show_fits)
        self._findings.found.connect(self._show_findings)
        self.keeper.said.connect(self.banner.say)
        self.keeper.changed.connect(self._show_marked)
        for end in (self._fits.wait, self._findings.wait, self.keeper.shutdown):
            self.context.closing.connect(end)

    def _take_models(self, models: list[FoundModel]) -> None:
        self._looked = True
        self._show_models(models)

    def _show_models(self, models: list[FoundModel]) -> None:
        before = self._wanted or (model.id if (model := self.marked()) else "")
        self.items.set_models(models)
        self._mark(before)
        runs_folder = self.context.settings.runs_path
        self._fits.ask(lambda: fits(models, runs_folder))

    def _show_fits(self, found: dict[str, Fit]) -> None:
        self.items.set_fits(found)
        self._show_marked()

    def _filter(self, text: str) -> None:
        before = model.id if (model := self.marked()) else ""
        self.items.set_filter(text)
        self._mark(before)

    def _mark(self, model_id: str) -> None:
        row = max(0, self.items.row_of(model_id))
        if model_id == self._wanted and self.items.row_of(model_id) >= 0:
            self._wanted = ""
        self.list.setCurrentIndex(self.items.index(row) if self.items.rowCount() else QModelIndex())
        nothing = self._looked and not self.items.rowCount()
        self._stack.setCurrentWidget(self.empty if nothing else self.list)
        self._show_marked()

    def _show_marked(self) -> None:
        model = self.marked()
        self.side.setVisible(model is not None)
        if model:
            self.details.show_model(model, self.items.fit_of(model.id))
            self.deeds.show_model(model, damaged=model.id in self.keeper.damaged)
            self.details.show_findings(())
            self._findings.ask(lambda: (model.id, look_before_loading(model)))

    def _show_findings(self, answer: tuple[str, list[Finding]]) -> None:
        model_id, findings = answer
        if (model := self.marked()) and model.id == model_id and not model.error:
            self.details.show_findings(findings)


def look_before_loading(model: FoundModel) -> list[Finding]:
    """What is remarkable about a stranger's folder; nothing for what came with the program or was made here."""
    if model.kind in (ModelKind.STARTER, ModelKind.RUN) or not model.path.is_dir():
        return []
    return check_folder(model.path)


def _lists(folder: str, model: Path) -> bool:
    """Whether a folder in the settings is what put this model on the list: itself or the folder around it."""
    place = Path(folder).expanduser().absolute()
    return place in (model, model.parent)


def _folders(event: QDropEvent) -> list[Path]:
    paths = [Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()]
    return [path for path in paths if path.is_dir()]
