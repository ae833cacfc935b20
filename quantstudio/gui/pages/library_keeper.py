"""Keeping order among the models on this machine: comparing them with their checksums, and deleting them."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QMessageBox, QProgressBar, QWidget

from quantstudio.client.hub_call import ask_hub
from quantstudio.client.job_call import JobCall
from quantstudio.core.cache import revisions
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.hub import RemoveResult, VerifyResult
from quantstudio.core.humanize import human_bytes, plural
from quantstudio.core.jobs import RemoveJob, VerifyJob
from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.core.paths import hub_cache
from quantstudio.core.protocol import Error
from quantstudio.core.run_store import delete_run
from quantstudio.gui.context import AppContext
from quantstudio.gui.hub_texts import error_words
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.delete_dialog import DeleteDialog

STEPS = 1000
MOST_NAMED = 4


class Keeper(QObject):
    """`said` carries words and their level; `changed`: what is known of damage has changed."""

    said = Signal(str, str)
    changed = Signal()

    def __init__(self, context: AppContext, parent: QWidget) -> None:
        super().__init__(parent)
        self.context = context
        self.damaged: set[str] = set()
        """Ids of models whose last comparison has failed."""
        self.bar = QProgressBar()
        self.bar.setRange(0, STEPS)
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName(tr("Comparing every byte"))
        self.bar.hide()
        self._model: FoundModel | None = None
        self.call = JobCall(self)
        self.call.answered.connect(self._take)
        self.call.failed.connect(self._fail)
        self.call.changed.connect(self._show_progress)

    def verify(self, model: FoundModel) -> None:
        """Compare every byte of a model with its checksum, in a worker."""
        if not self.call.busy:
            self._model = model
            self.said.emit(f"{tr('Comparing every byte of')} {model.name} …", "info")
            ask_hub(self.call, VerifyJob(model=model.id if model.kind is ModelKind.CACHE else str(model.path)))

    def delete(self, model: FoundModel) -> None:
        """Ask, then delete: a model of the cache in a worker, a model made here with its run."""
        if self.call.busy:
            return
        if model.kind is ModelKind.RUN:
            self._delete_run(model)
        elif model.kind is ModelKind.CACHE:
            self._delete_cached(model)

    def shutdown(self) -> None:
        """End what works. Call before the window is gone."""
        self.call.shutdown()

    def _delete_cached(self, model: FoundModel) -> None:
        dialog = DeleteDialog(model, revisions(hub_cache(), model.name), self._window())
        if dialog.exec():
            self._model = model
            ask_hub(self.call, RemoveJob(model=model.name, revision=dialog.revision()))
        dialog.deleteLater()

    def _delete_run(self, model: FoundModel) -> None:
        box = QMessageBox(self._window())
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("QuantStudio")
        box.setText(f"{tr('Delete')} “{model.name}”?")
        text = tr("The quantized model and the measurements of its run are deleted; this frees")
        box.setInformativeText(f"{text} {human_bytes(model.nbytes)}.")
        yes = box.addButton(tr("Delete"), QMessageBox.ButtonRole.DestructiveRole)
        no = box.addButton(tr("Keep"), QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(no)
        box.setEscapeButton(no)
        box.exec()
        if box.clickedButton() is not yes:
            return
        try:
            delete_run(model.path.parent)
            self.said.emit(f"{human_bytes(model.nbytes)} {tr('are free again.')}", "success")
        except QuantStudioError as error:
            self.said.emit(str(error), "error")
        self.context.library.refresh(self.context.settings)

    def _take(self, result: object) -> None:
        if isinstance(result, RemoveResult):
            gone = plural(len(result.revisions), "revision")
            text = f"{result.model}: {gone} {tr('deleted')}, {human_bytes(result.freed_bytes)} {tr('are free again.')}"
            self.said.emit(text, "success")
            self.damaged.discard(result.model)
        elif isinstance(result, VerifyResult):
            self._tell(result)
        self.context.library.refresh(self.context.settings)
        self.changed.emit()

    def _tell(self, result: VerifyResult) -> None:
        model_id = self._model.id if self._model else result.model
        if result.whole:
            self.damaged.discard(model_id)
            text = f"{result.model} {tr('is whole')}: {plural(result.files, 'file')}, {human_bytes(result.nbytes)}."
            if len(result.unchecked) == result.files:
                text += " " + tr("No checksums are known for it, so only its structure was checked.")
            self.said.emit(text, "success")
            return
        self.damaged.add(model_id)
        named = "; ".join(f"{problem.file}: {problem.problem}" for problem in result.problems[:MOST_NAMED])
        advice = ""
        if self._model and self._model.kind is ModelKind.CACHE:
            advice = tr("Repair downloads what is damaged; what is right is kept.")
        self.said.emit(f"{result.model} {tr('is damaged')}. {named} {advice}".strip(), "error")

    def _fail(self, error: Error) -> None:
        self.said.emit(error_words(error), "error")
        self.context.library.refresh(self.context.settings)

    def _show_progress(self) -> None:
        state = self.call.state
        self.bar.setVisible(self.call.busy)
        if state and state.progress and state.progress.total:
            self.bar.setValue(round(STEPS * state.progress.done / state.progress.total))
        elif not self.call.busy:
            self.bar.setValue(0)

    def _window(self) -> QWidget | None:
        parent = self.parent()
        return parent.window() if isinstance(parent, QWidget) else None
