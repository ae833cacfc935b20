"""The Models page: what is on this machine, what the Hub has, and what is on its way from there.

The views for the Hub are made when they are first opened, and only then is the Hub asked for anything. Downloads that
the window before has left are counted on their tab from the start; that takes a look at the disk.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from PySide6.QtCore import QTimer
from PySide6.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent
from PySide6.QtWidgets import QStackedWidget, QTabBar, QWidget

from quantstudio.gui.context import AppContext
from quantstudio.gui.language import tr
from quantstudio.gui.pages.library_view import LibraryView
from quantstudio.gui.widgets.basics import WHOLE_WIDTH, PageHeader, page_layout

if TYPE_CHECKING:
    from quantstudio.gui.pages.downloads_view import DownloadsView
    from quantstudio.gui.pages.find_view import FindView

WIDEST = 1400


class Tab(IntEnum):
    """The three views, in order."""

    LIBRARY = 0
    FIND = 1
    DOWNLOADS = 2


_TITLES = {Tab.LIBRARY: "On this machine", Tab.FIND: "Find on the Hub", Tab.DOWNLOADS: "Downloads"}
_TIPS = {
    Tab.LIBRARY: "Models on this machine: in the box, in your folders, downloaded, made here.",
    Tab.FIND: "Search the Hugging Face Hub, and see what a model needs before you download it.",
    Tab.DOWNLOADS: "Models on their way to this machine.",
}


class ModelsPage(QWidget):
    """Three views under tabs. Folders may be dropped anywhere on it."""

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.library = LibraryView(context)
        self._find: FindView | None = None
        self._downloads: DownloadsView | None = None
        self.tabs = QTabBar()
        self.stack = QStackedWidget()
        self.setAcceptDrops(True)
        self._lay_out()
        self.tabs.currentChanged.connect(lambda place: self.show_tab(Tab(place)))
        self.library.repair_wanted.connect(self.start_download)
        self.library.find_wanted.connect(lambda: self.show_tab(Tab.FIND))
        if context.has_kept_downloads():
            QTimer.singleShot(0, self, self._count)  # after the first paint

    @property
    def find_view(self) -> FindView:
        """The view that searches the Hub, made now if it was never shown."""
        if self._find is None:
            from quantstudio.gui.pages.find_view import FindView

            self._find = FindView(self.context)
            self._find.download_started.connect(lambda _: self.show_tab(Tab.DOWNLOADS))
            self.stack.addWidget(self._find)
        return self._find

    @property
    def downloads_view(self) -> DownloadsView:
        """The view of downloads, made now if it was never shown."""
        if self._downloads is None:
            from quantstudio.gui.pages.downloads_view import DownloadsView

            self._downloads = DownloadsView(self.context)
            self._downloads.sign_in_wanted.connect(lambda: self.find_view.sign_in())
            self._downloads.find_wanted.connect(lambda: self.show_tab(Tab.FIND))
            self.stack.addWidget(self._downloads)
            queue = self.context.downloads
            for signal in (queue.added, queue.changed, queue.removed):
                signal.connect(lambda _: self._count())
            self._count()
        return self._downloads

    def show_tab(self, tab: Tab) -> None:
        """Bring a view forward."""
        match tab:
            case Tab.LIBRARY:
                view: QWidget = self.library
            case Tab.FIND:
                view = self.find_view
            case Tab.DOWNLOADS:
                view = self.downloads_view
        self.stack.setCurrentWidget(view)
        if self.tabs.currentIndex() != tab:
            self.tabs.setCurrentIndex(tab)

    def start_download(self, model: str) -> None:
        """Download a model, or what is missing of it, and show how far that is."""
        from quantstudio.core.jobs import DownloadJob

        self.show_tab(Tab.DOWNLOADS)
        self.context.downloads.add(DownloadJob(model=model))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802 - Qt's name
        self.library.drag_enter(event)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: N802
        self.library.drag_leave()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        self.show_tab(Tab.LIBRARY)
        self.library.drop(event)

    def _count(self) -> None:
        downloads = self.context.downloads.downloads
        active = sum(download.status.active for download in downloads)
        stopped = sum(download.status.resumable for download in downloads)
        count = f" ({active})" if active else f" ({stopped} {tr('not finished')})" if stopped else ""
        self.tabs.setTabText(Tab.DOWNLOADS, tr(_TITLES[Tab.DOWNLOADS]) + count)

    def _lay_out(self) -> None:
        for tab in Tab:
            self.tabs.addTab(tr(_TITLES[tab]))
            self.tabs.setTabToolTip(tab, tr(_TIPS[tab]))
        self.tabs.setDrawBase(False)
        self.tabs.setExpanding(False)
        self.tabs.setAccessibleName(tr("Models"))
        self.stack.addWidget(self.library)
        layout = page_layout(self, WHOLE_WIDTH)
        layout.setSpacing(8)
        layout.addWidget(PageHeader("Models", "Pick one to make it smaller and faster."))
        layout.addWidget(self.tabs)
        layout.addWidget(self.stack, 1)
