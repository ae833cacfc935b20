"""The downloads of this window: a card for each, in the order in which they were asked for."""

from __future__ import annotations

from PySide6.QtCore import QUrl, Signal
from PySide6.QtWidgets import QFrame, QMessageBox, QScrollArea, QStackedWidget, QVBoxLayout, QWidget

from quantstudio.client.download_queue import DownloadStatus
from quantstudio.core.humanize import human_bytes
from quantstudio.core.job_environment import hub_endpoint
from quantstudio.gui.context import AppContext
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import MARGIN, Banner, EmptyState, button, row
from quantstudio.gui.widgets.download_card import DownloadCard
from quantstudio.gui.widgets.stranger_text import open_web


class DownloadsView(QWidget):
    """`find_wanted`: the person wants to look for a model; `sign_in_wanted`: to tell the Hub who they are."""

    find_wanted = Signal()
    sign_in_wanted = Signal()

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.queue = context.downloads
        self.cards: dict[str, DownloadCard] = {}
        self._lay_out()
        for download in self.queue.downloads:
            self._show(download.model)
        for signal in (self.queue.added, self.queue.changed):
            signal.connect(self._show)
        self.queue.removed.connect(self._take_off)
        self._offer()

    def _show(self, model: str) -> None:
        download = self.queue.download(model)
        if download is None:
            return
        if model not in self.cards:
            self._add_card(model)
        self.cards[model].show_download(download)
        self._stack.setCurrentIndex(1)
        self._offer()

    def _add_card(self, model: str) -> None:
        card = self.cards[model] = DownloadCard(model)
        card.pause_asked.connect(lambda: self.queue.pause(model))
        card.resume_asked.connect(lambda: self.queue.resume(model))
        card.cancel_asked.connect(lambda: self._cancel(model))
        card.quantize_asked.connect(lambda: self.context.open_quantize(model))
        card.sign_in_asked.connect(self.sign_in_wanted)
        card.page_asked.connect(lambda: open_web(QUrl(f"{hub_endpoint()}/{model}")))
        self._column.insertWidget(self._column.count() - 1, card)

    def _take_off(self, model: str) -> None:
        if card := self.cards.pop(model, None):
            card.hide()
            card.deleteLater()
        self._stack.setCurrentIndex(1 if self.cards else 0)
        self._offer()

    def _offer(self) -> None:
        """Say what the window before has left, for as long as it waits for a word."""
        count = sum(download.status is DownloadStatus.INTERRUPTED for download in self.queue.downloads)
        text = tr("One download was not finished when the window was closed. What was fetched is kept.")
        if count > 1:
            text = f"{count} {tr('downloads were not finished when the window was closed. What was fetched is kept.')}"
        self.left.say(text if count else "", "info")
        self.resume_all.setVisible(count > 1)

    def _cancel(self, model: str) -> None:
        download = self.queue.download(model)
        if download is None:
            return
        loses = download.state.done if download.status is not DownloadStatus.DONE else 0
        if not loses or self._may_delete(model, loses):
            self.queue.give_up(model)

    def _may_delete(self, model: str, nbytes: int) -> bool:
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("QuantStudio")
        box.setText(f"{tr('Stop downloading')} {model}?")
        box.setInformativeText(f"{human_bytes(nbytes)} {tr('that were fetched are deleted. Pausing keeps them.')}")
        stop = box.addButton(tr("Stop and delete"), QMessageBox.ButtonRole.DestructiveRole)
        stay = box.addButton(tr("Go on"), QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(stay)
        box.setEscapeButton(stay)
        box.exec()
        return box.clickedButton() is stop

    def _lay_out(self) -> None:
        find = button("Find a model", self.find_wanted.emit, icon="search", variant="primary")
        text = "Models that you download from the Hub appear here. You can go on working meanwhile."
        self.empty = EmptyState("download", "No downloads", text, find)
        self.left = Banner()
        self.resume_all = button(
            "Resume all",
            self.queue.resume_interrupted,
            icon="play",
            variant="primary",
            tooltip="Go on with all of them, one after the other.",
        )
        top = row(self.left, self.resume_all)
        top.setStretch(0, 1)
        inside = QWidget()
        self._column = QVBoxLayout(inside)
        self._column.setContentsMargins(0, 8, 8, MARGIN)
        self._column.setSpacing(12)
        self._column.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidget(inside)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        self._stack = QStackedWidget()
        self._stack.addWidget(self.empty)
        self._stack.addWidget(scroll)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.addLayout(top)
        layout.addWidget(self._stack, 1)
