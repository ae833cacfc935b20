"""The window: navigation on the left, one page on the right. It only navigates; what pages do is theirs.

Pages are made when they are first shown. Closing asks when runs are at work, because a run cannot go on without the
window: it is then cancelled in good order before the window goes, so that no half model stays behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from PySide6.QtCore import QSettings, QSize, Qt, QTimer
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QHBoxLayout, QMainWindow, QMessageBox, QStackedWidget, QVBoxLayout, QWidget

from quantstudio.core.paths import data_home
from quantstudio.core.run_store import run_title
from quantstudio.gui.context import AppContext
from quantstudio.gui.icons import icon
from quantstudio.gui.language import tr
from quantstudio.gui.pages.catalogue import PAGES, PageId
from quantstudio.gui.widgets.basics import GAP, MARGIN, Banner, column
from quantstudio.gui.widgets.sidebar import Sidebar

if TYPE_CHECKING:
    from quantstudio.core.recipe import Recipe
    from quantstudio.gui.pages.chat_page import ChatPage
    from quantstudio.gui.pages.compare_page import ComparePage
    from quantstudio.gui.pages.quantize_page import QuantizePage
    from quantstudio.gui.pages.run_page import RunPage

SMALLEST, USUAL = QSize(960, 640), QSize(1240, 820)
POLL_MS = 250
"""How often the navigation looks at the queue while something runs."""


class MainWindow(QMainWindow):
    """Navigation and pages."""

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self._entries = {page.id: page for page in PAGES}
        self._pages: dict[PageId, QWidget] = {}
        self._closing = False
        self.setWindowTitle("QuantStudio")
        self.setWindowIcon(icon("quantstudio", context.tokens.accent, size=64))
        self.setMinimumSize(SMALLEST)
        self.sidebar = Sidebar(PAGES)
        self.banner = Banner()
        self.stack = QStackedWidget()
        self._lay_out()
        self._connect()
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self._look_at_queue)
        self._restore_geometry()
        self.show_notice(context.settings.notice)
        self.show_page(PageId.MODELS)
        self._look_at_queue()

    def page(self, page: PageId) -> QWidget:
        """The page, made now if it was never shown."""
        if page not in self._pages:
            made = self._entries[page].make(self.context)
            made.setProperty("role", "page")
            made.setAccessibleName(tr(self._entries[page].title))
            self._pages[page] = made
            self.stack.addWidget(made)
        return self._pages[page]

    def show_page(self, page: PageId) -> None:
        """Bring a page forward."""
        shown = self.page(page)
        self.stack.setCurrentWidget(shown)
        self.sidebar.show_page(page)
        shown.setFocus(Qt.FocusReason.OtherFocusReason)

    def show_notice(self, text: str, level: str = "warning") -> None:
        """Say something above the pages; an empty text takes it away."""
        self.banner.say(text, level)
        self._notice_row.setContentsMargins(MARGIN, GAP if text else 0, MARGIN, 0)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        if self._active_runs() and not self._closing and not self._may_cancel_runs():
            event.ignore()
        elif self._active_runs():
            self._cancel_runs()
            event.ignore()
        else:
            self._save_geometry()
            self.context.closing.emit()
            self.context.queue.shutdown()
            self.context.library.shutdown()
            event.accept()

    def _lay_out(self) -> None:
        right = QWidget()
        inner = QVBoxLayout(right)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(0)
        self._notice_row = column(self.banner)
        inner.addLayout(self._notice_row)
        inner.addWidget(self.stack, 1)
        whole = QWidget()
        whole.setProperty("role", "page")
        layout = QHBoxLayout(whole)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.sidebar)
        layout.addWidget(right, 1)
        self.setCentralWidget(whole)

    def _connect(self) -> None:
        self.sidebar.picked.connect(lambda page: self.show_page(PageId(page)))
        for number, page in enumerate(PAGES, start=1):
            for modifier in ("Ctrl", "Alt"):
                shortcut = QShortcut(QKeySequence(f"{modifier}+{number}"), self)
                shortcut.activated.connect(lambda page=page: self.show_page(page.id))
        QShortcut(QKeySequence.StandardKey.Quit, self).activated.connect(self.close)
        context = self.context
        context.models_wanted.connect(lambda: self.show_page(PageId.MODELS))
        context.quantize_wanted.connect(self._open_quantize)
        context.recipe_wanted.connect(self._open_recipe)
        context.run_wanted.connect(self._open_run)
        context.compare_wanted.connect(self._open_compare)
        context.chat_wanted.connect(self._open_chat)
        context.queue.added.connect(lambda _: self._look_at_queue())
        context.queue.finished.connect(lambda _: self._look_at_queue())

    def _open_quantize(self, model: str) -> None:
        self.show_page(PageId.QUANTIZE)
        if model:
            cast("QuantizePage", self.page(PageId.QUANTIZE)).show_model(model)

    def _open_recipe(self, recipe: Recipe) -> None:
        self.show_page(PageId.QUANTIZE)
        cast("QuantizePage", self.page(PageId.QUANTIZE)).show_recipe(recipe)

    def _open_run(self, run_id: str) -> None:
        self.show_page(PageId.RUN)
        if run_id:
            cast("RunPage", self.page(PageId.RUN)).show_run(run_id)

    def _open_compare(self, run_ids: list[str]) -> None:
        self.show_page(PageId.COMPARE)
        if run_ids:
            cast("ComparePage", self.page(PageId.COMPARE)).show_runs(run_ids)

    def _open_chat(self, model: str) -> None:
        self.show_page(PageId.CHAT)
        if model:
            cast("ChatPage", self.page(PageId.CHAT)).show_model(model)

    def _active_runs(self) -> list[str]:
        queue = self.context.queue
        return [run_id for run_id, state in queue.runs if not state.status.final or run_id == queue.active]

    def _look_at_queue(self) -> None:
        active = self._active_runs()
        state = self.context.queue.state(active[0]) if active else None
        if state is None:
            self._poll.stop()
            self.sidebar.activity.say("", "", 0)
            if self._closing:
                self.close()
            return
        self._poll.start()
        phase = state.phases[-1].title if state.phases else tr("Starting")
        waiting = f" · {len(active) - 1} {tr('waiting')}" if len(active) > 1 else ""
        recipe = self.context.queue.recipe(active[0])
        name = run_title(recipe) if recipe else active[0]
        self.sidebar.activity.say(name, phase + waiting, state.fraction)

    def _may_cancel_runs(self) -> bool:
        count = len(self._active_runs())
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("QuantStudio")
        box.setText(tr("A run is still at work.") if count == 1 else f"{count} {tr('runs are at work or waiting.')}")
        box.setInformativeText(tr("Runs cannot go on without the window. What is finished stays."))
        cancel = box.addButton(tr("Cancel and close"), QMessageBox.ButtonRole.DestructiveRole)
        stay = box.addButton(tr("Keep working"), QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(stay)
        box.setEscapeButton(stay)
        box.exec()
        return box.clickedButton() is cancel

    def _cancel_runs(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.show_notice(tr("Cancelling, then closing…"), "info")
        self.stack.setDisabled(True)
        for run_id in reversed(self._active_runs()):  # those that wait first, or each would start in turn
            self.context.queue.cancel(run_id)

    def _restore_geometry(self) -> None:
        geometry = _window_settings().value("geometry")
        if geometry is None or not self.restoreGeometry(geometry):
            screen = self.screen().availableSize()
            self.resize(USUAL.boundedTo(screen))

    def _save_geometry(self) -> None:
        _window_settings().setValue("geometry", self.saveGeometry())


def _window_settings() -> QSettings:
    return QSettings(str(data_home() / "window.ini"), QSettings.Format.IniFormat)
