"""Runs: at work, waiting and finished, each with where it stands or what came out.

Messages never repaint anything here. One timer looks at the chosen run ten times a second while something lives and
the page is on screen; history is read from the run folders and replayed through the same reducer. A run that another
process carries out (a terminal, the search for the best) is read again every second: it can be watched, not stopped.
"""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QModelIndex, Qt, QTimer, QUrl
from PySide6.QtGui import QDesktopServices, QHideEvent, QKeySequence, QShortcut, QShowEvent
from PySide6.QtWidgets import QDialog, QFrame, QHBoxLayout, QMessageBox, QStackedWidget, QVBoxLayout, QWidget

from quantstudio.core.contest_file import read_contest
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.protocol import Message
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import load_recipe
from quantstudio.core.run_state import replay
from quantstudio.core.run_store import MODEL, RECIPE, RunHeader, delete_run, list_runs, read_header, read_messages
from quantstudio.gui.background import Latest
from quantstudio.gui.context import AppContext
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import MARGIN, SPACE, Banner, EmptyState, button, label
from quantstudio.gui.widgets.contest_view import contest_window
from quantstudio.gui.widgets.run_detail import RunDetail
from quantstudio.gui.widgets.run_list import RunList, listed_runs

LOOK_MS = 100
OTHERS_MS = 1000
"""How often what is at work in another process, such as a terminal's, is read again from its folder."""
LIST_WIDTH = 268


class RunPage(QWidget):
    """The list on the left, the chosen run on the right."""

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.headers: list[RunHeader] = []
        self.run_id = ""
        self._followed, self._read_before = "", 0
        self.list, self.detail, self.banner = RunList(), RunDetail(), Banner()
        self.loader = Latest(self)
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK_MS)
        self._others = QTimer(self)
        self._others.setInterval(OTHERS_MS)
        self._stack = QStackedWidget()
        self._lay_out()
        self._connect()
        self.reload()

    def show_run(self, run_id: str) -> None:
        """Bring this run forward; the first of the list when there is none of that id."""
        self.reload()
        if not self.list.choose(run_id) and self.list.runs().runs:
            self.list.choose(self.list.runs().runs[0].id)

    def reload(self) -> None:
        """Read the run folders again."""
        self.headers = list_runs(self.context.settings.runs_path)
        self._update_list()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        super().showEvent(event)
        self.reload()
        self._look()
        if self._is_elsewhere(self.run_id):
            self._read()
        self._others.start()

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802
        super().hideEvent(event)
        self._timer.stop()
        self._others.stop()

    def _lay_out(self) -> None:
        start = button(
            tr("Quantize a model"),
            self.context.open_quantize,
            icon="quantize",
            variant="primary",
            tooltip=tr("Go to the form that starts a run."),
        )
        text = tr("A run makes a model smaller and measures what it gained and lost. It appears here while it works.")
        side = QFrame()
        side.setFixedWidth(LIST_WIDTH)
        left = QVBoxLayout(side)
        left.setContentsMargins(MARGIN, MARGIN, 0, SPACE)
        left.setSpacing(12)
        left.addWidget(label(tr("Runs"), "title"))
        left.addWidget(self.list, 1)
        right = QVBoxLayout()
        right.setContentsMargins(0, 0, 0, 0)
        right.setSpacing(0)
        right.addWidget(self.banner)
        right.addWidget(self.detail, 1)
        both = QWidget()
        layout = QHBoxLayout(both)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(side)
        layout.addLayout(right, 1)
        self._stack.addWidget(EmptyState("run", tr("No runs yet"), text, start))
        self._stack.addWidget(both)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(self._stack)

    def _connect(self) -> None:
        queue, detail = self.context.queue, self.detail
        self._timer.timeout.connect(self._look)
        self._others.timeout.connect(self._look_at_others)
        queue.added.connect(lambda _: self.reload())
        queue.finished.connect(self._on_finished)
        queue.changed.connect(lambda _: self._wake())
        self.context.settings_changed.connect(self.reload)
        self.context.theme_changed.connect(self.update)
        self.context.closing.connect(self.loader.wait)
        self.list.selectionModel().currentChanged.connect(self._on_chosen)
        self.loader.found.connect(lambda found: self._on_loaded(*found))
        detail.cancel_asked.connect(lambda: queue.cancel(self.run_id))
        detail.kill_asked.connect(lambda: queue.kill(self.run_id))
        detail.delete_asked.connect(self.delete)
        for card in (detail.result_card, detail.error_card, detail.stopped_card):
            card.again_asked.connect(self.run_again)
            card.folder_asked.connect(self.open_folder)
        for stopped in (detail.error_card, detail.stopped_card):
            stopped.resume_asked.connect(self.resume)
        detail.result_card.contest_asked.connect(self.open_contest)
        detail.result_card.compare_asked.connect(lambda: self.context.open_compare([self.run_id]))
        detail.result_card.chat_asked.connect(lambda: self.context.open_chat(str(self.folder() / MODEL)))
        QShortcut(QKeySequence.StandardKey.Delete, self.list).activated.connect(self.delete)

    def folder(self) -> Path:
        """Folder of the chosen run."""
        return self.context.queue.folder(self.run_id) or self.context.settings.runs_path / self.run_id

    def open_folder(self) -> None:
        """Show the run's files in the system's file manager."""
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.folder())))

    def open_contest(self) -> QDialog | None:
        """Show the search in which the chosen run took part; the dialog, None when it cannot be read."""
        try:
            dialog, view = contest_window(read_contest(self.folder()), self)
        except QuantStudioError as error:
            self.banner.say(str(error), "warning")
            return None
        view.run_asked.connect(self.show_run)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.show()
        return dialog

    def run_again(self) -> None:
        """Put the chosen run's recipe into the form."""
        try:
            recipe: Recipe = self.context.queue.recipe(self.run_id) or load_recipe(self.folder() / RECIPE)
        except QuantStudioError as error:
            self.banner.say(str(error), "warning")
            return
        self.context.open_recipe(recipe)

    def resume(self) -> None:
        """Let the chosen run go on where it stopped."""
        try:
            self.context.queue.resume(self.folder())
        except QuantStudioError as error:
            self.banner.say(str(error), "error")
            return
        self._look()

    def delete(self) -> None:
        """Delete the chosen run after asking."""
        run = next((run for run in self.list.runs().runs if run.id == self.run_id), None)
        if run is None or not run.status.final or not self._may_delete(run.name):
            return
        try:
            delete_run(self.folder())
        except QuantStudioError as error:
            self.banner.say(str(error), "error")
            return
        self.run_id = ""
        self.reload()

    def _may_delete(self, name: str) -> bool:
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("QuantStudio")
        box.setText(f"{tr('Delete')} “{name}”?")
        box.setInformativeText(tr("Its measurements and its quantized model are deleted from the disk."))
        yes = box.addButton(tr("Delete"), QMessageBox.ButtonRole.DestructiveRole)
        no = box.addButton(tr("Keep"), QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(no)
        box.setEscapeButton(no)
        box.exec()
        return box.clickedButton() is yes

    def _wake(self) -> None:
        if self.isVisible() and not self._timer.isActive():
            self._timer.start()

    def _look(self) -> None:
        """What the timer does: one look at everything on screen."""
        self._update_list()
        if self.context.queue.state(self.run_id) is not None:
            self._follow_live()
        alive = any(not state.status.final for _, state in self.context.queue.runs)
        if not alive:
            self._timer.stop()
        elif self.isVisible() and not self._timer.isActive():
            self._timer.start()

    def _follow_live(self) -> None:
        state = self.context.queue.state(self.run_id)
        if state is None:
            return
        if state is self.detail.state:
            self.detail.refresh(self._header(self.run_id))
        else:  # chosen just now, or it began: the queue gives a run its worker's state when it starts
            self.detail.show_run(self._header(self.run_id), state)

    def _look_at_others(self) -> None:
        """What other processes do with the runs: a chosen one is read again, and once more after its end."""
        followed = self._is_elsewhere(self.run_id)
        self.reload()
        if followed:
            self._read()

    def _is_elsewhere(self, run_id: str) -> bool:
        header = next((header for header in self.headers if header.id == run_id), None)
        return header is not None and not header.status.final and self.context.queue.state(run_id) is None

    def _header(self, run_id: str) -> RunHeader:
        found = next((header for header in self.headers if header.id == run_id), None)
        return found or RunHeader(name=run_id, created=0.0, id=run_id)

    def _update_list(self) -> None:
        lines = listed_runs(self.context.queue.runs, self.headers)
        self._stack.setCurrentIndex(1 if lines else 0)
        self.list.runs().set_runs(lines)
        if lines and not self.list.choose(self.run_id):
            self.list.choose(lines[0].id)

    def _on_finished(self, run_id: str) -> None:
        self.reload()
        self._look()

    def _on_chosen(self, index: QModelIndex, _: QModelIndex) -> None:
        chosen = self.list.current_id()
        if not chosen or chosen == self.run_id:
            return
        self.run_id = chosen
        self.banner.say("")
        if self.context.queue.state(chosen) is not None:
            self._follow_live()
        else:
            self._read()

    def _read(self) -> None:
        folder = self.folder()
        self.loader.ask(lambda: (folder.name, read_header(folder), read_messages(folder)))

    def _on_loaded(self, run_id: str, header: RunHeader, messages: list[Message]) -> None:
        if run_id != self.run_id or self.context.queue.state(run_id) is not None:
            return
        if self._followed == run_id and len(messages) >= self._read_before:
            for message in messages[self._read_before :]:
                self.detail.state.apply(message)
            self.detail.refresh(header)
        else:
            state = replay(messages)
            if not messages:
                state.status = header.status
            self.detail.show_run(header, state, elsewhere=self._is_elsewhere(run_id))
            self.banner.say(header.damaged, "warning")
        self._followed, self._read_before = run_id if self._is_elsewhere(run_id) else "", len(messages)
