"""Find on the Hub: filters, results page by page, and the page of one model. Every question is a worker's job."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QModelIndex, QTimer, Signal
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QStackedWidget, QVBoxLayout, QWidget

from quantstudio.client.hub_call import ask_hub
from quantstudio.client.job_call import JobCall
from quantstudio.core.hub import Account, ModelSummary, SearchPage, SearchQuery
from quantstudio.core.humanize import plural
from quantstudio.core.jobs import AccountJob, SearchJob
from quantstudio.core.library import ModelKind
from quantstudio.core.machine import Machine, read_machine
from quantstudio.core.protocol import Error
from quantstudio.gui.background import Latest
from quantstudio.gui.context import AppContext
from quantstudio.gui.hub_texts import error_words
from quantstudio.gui.language import tr
from quantstudio.gui.pages.hub_model_view import HubModelView
from quantstudio.gui.widgets.basics import GAP, MARGIN, Banner, Card, EmptyState, button, label, row
from quantstudio.gui.widgets.hub_filters import HubFilters
from quantstudio.gui.widgets.hub_list import SUMMARY_ROLE, HubItems, HubList
from quantstudio.gui.widgets.sign_in import SignInDialog

LIST, EMPTY, TROUBLE = range(3)
OFFLINE_TITLE, TROUBLE_TITLE = "The Hub is switched off", "The Hub did not answer"


class FindView(QWidget):
    """`download_started` carries the model's id."""

    download_started = Signal(str)

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.filters = HubFilters()
        self.items = HubItems()
        self.list = HubList(self.items)
        self.call, self.account_call = JobCall(self), JobCall(self)
        self.account = Account()
        self.model_view = HubModelView(context)
        self.query = SearchQuery()
        self.page = SearchPage()
        self._started = False
        self._machine: Machine | None = None
        self._machines = Latest(self)
        self._lay_out()
        self._connect()

    def search(self) -> None:
        """Ask for the first page of what the filters say."""
        self.query, self.page = self.filters.query(), SearchPage()
        self.items.clear()
        ask_hub(self.call, SearchJob(query=self.query))

    def more(self) -> None:
        """Ask for the next page."""
        if self.page.next_cursor and not self.call.busy:
            ask_hub(self.call, SearchJob(query=self.query.model_copy(update={"cursor": self.page.next_cursor})))

    def open_model(self, summary: ModelSummary) -> None:
        """Show one model's page."""
        self.model_view.show_model(summary)
        self._pages.setCurrentWidget(self.model_view)

    def sign_in(self) -> None:
        """Ask for a token, and look again at the model that is open."""
        dialog = SignInDialog(self.account, self)
        dialog.exec()
        self._show_account(dialog.account)
        if self._pages.currentWidget() is self.model_view:
            self.model_view.look_again()
        dialog.deleteLater()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        super().showEvent(event)
        if not self._started:
            self._started = True
            QTimer.singleShot(0, self, self._first_look)

    def _first_look(self) -> None:
        folder = self.context.settings.runs_path
        self._machines.ask(lambda: read_machine(folder))
        self.search()
        ask_hub(self.account_call, AccountJob())

    def _connect(self) -> None:
        self.filters.asked.connect(self.search)
        self.list.clicked.connect(self._open)
        self.list.activated.connect(self._open)
        self.call.changed.connect(self._show_busy)
        self.call.answered.connect(self._take_page)
        self.call.failed.connect(self._fail)
        self.call.stopped.connect(self._show_state)
        self.account_call.answered.connect(self._show_account)
        self.model_view.back_wanted.connect(lambda: self._pages.setCurrentIndex(0))
        self.model_view.sign_in_wanted.connect(self.sign_in)
        self.model_view.download_started.connect(self.download_started)
        self.model_view.smaller_wanted.connect(self._find_smaller)
        self._machines.found.connect(self._take_machine)
        self.context.library.found.connect(lambda _: self._tell_items())
        for end in (self.call.shutdown, self.account_call.shutdown, self._machines.wait):
            self.context.closing.connect(end)

    def _take_machine(self, machine: Machine) -> None:
        self._machine = machine
        self._tell_items()

    def _tell_items(self) -> None:
        models = self.context.library.models
        here = [model.name for model in models if model.kind is ModelKind.CACHE and model.info]
        self.items.set_surroundings(self._machine, here)

    def _open(self, index: QModelIndex) -> None:
        found = index.data(SUMMARY_ROLE)
        if isinstance(found, ModelSummary) and self._pages.currentIndex() == 0:
            self.open_model(found)

    def _find_smaller(self, author: str, parameters: int) -> None:
        self._pages.setCurrentIndex(0)
        self.filters.look_for_smaller(author, parameters)

    def _take_page(self, page: SearchPage) -> None:
        self.page = page
        self.items.append(page.models)
        self._show_state()

    def _fail(self, error: Error) -> None:
        self.page = SearchPage()
        if self.items.rowCount():
            self.banner.say(error_words(error), "error")
        else:
            self.trouble.title.setText(tr(OFFLINE_TITLE if error.kind == "offline" else TROUBLE_TITLE))
            note = tr("What is on this machine can be used without it.")
            self.trouble.text.setText(f"{error_words(error)}\n\n{note}")
            self._results.setCurrentIndex(TROUBLE)
        self._show_busy()

    def _show_state(self) -> None:
        shown = self.items.rowCount()
        self._results.setCurrentIndex(LIST if shown else EMPTY)
        self._show_busy()

    def _show_busy(self) -> None:
        busy, shown = self.call.busy, self.items.rowCount()
        if busy:
            self.banner.say("")
            self._results.setCurrentIndex(LIST)
        self.bar.setVisible(busy)
        self.cancel.setVisible(busy)
        self.more_button.setVisible(bool(self.page.next_cursor) and not busy)
        self.count.setText(tr("Asking the Hub …") if busy else plural(shown, "model") if shown else "")

    def _show_account(self, account: Account) -> None:
        self.account = account
        name = account.name
        self.sign_in_button.setText(f"{tr('Signed in as')} {name}" if name else tr("Sign in…"))

    def _lay_out(self) -> None:
        self.banner = Banner()
        self.bar = QProgressBar()
        self.bar.setRange(0, 0)
        self.bar.setMaximumWidth(160)
        self.bar.setAccessibleName(tr("Asking the Hub"))
        self.count = label("", "muted")
        self.cancel = button("Cancel", self.call.cancel, icon="cross", variant="ghost", tooltip="Stop this question.")
        self.more_button = button("Show more", self.more, icon="plus", tooltip="Ask for the next page of results.")
        tip = "Needed only for models that are gated or private. The token stays on this machine."
        self.sign_in_button = button("Sign in…", self.sign_in, icon="key", variant="ghost", tooltip=tip)
        self.trouble = EmptyState("warning", TROUBLE_TITLE, "", _again(self.search))
        self.empty = EmptyState("search", "No model fits", "Use fewer words, or take a filter away.")
        self._results = QStackedWidget()
        for widget in (self.list, self.empty, self.trouble):
            self._results.addWidget(widget)
        card = Card(spacing=GAP)
        card.body.setContentsMargins(8, 8, 8, 8)
        card.body.addWidget(self._results, 1)
        foot = row(self.count, self.bar, self.cancel, self.more_button, None, self.sign_in_button)
        card.body.addLayout(foot)
        search = QWidget()
        inner = QVBoxLayout(search)
        inner.setContentsMargins(0, 4, 0, MARGIN)
        inner.setSpacing(12)
        inner.addWidget(self.filters)
        inner.addWidget(self.banner)
        inner.addWidget(card, 1)
        self._pages = QStackedWidget()
        self._pages.addWidget(search)
        self._pages.addWidget(self.model_view)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._pages)
        self._show_busy()


def _again(search: Callable[[], None]) -> QWidget:
    return button("Try again", search, icon="refresh", variant="primary", tooltip="Ask the Hub once more.")
