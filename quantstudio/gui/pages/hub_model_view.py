"""The page of one model of the Hub: what it is, what it would need here, layers, files, licence, and Download."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt, QUrl, Signal
from PySide6.QtWidgets import QMessageBox, QProgressBar, QStackedWidget, QTabBar, QVBoxLayout, QWidget

from quantstudio.client.download_queue import Download, DownloadStatus
from quantstudio.client.hub_call import ask_hub
from quantstudio.client.job_call import JobCall
from quantstudio.core.estimate import COMPANION_BYTES
from quantstudio.core.hub import Access, ModelDetails, ModelSummary
from quantstudio.core.humanize import human_bytes
from quantstudio.core.job_environment import hub_endpoint
from quantstudio.core.jobs import DetailsJob, DownloadJob
from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.core.machine import free_disk
from quantstudio.core.paths import hub_cache
from quantstudio.core.protocol import Error
from quantstudio.gui.context import AppContext
from quantstudio.gui.hub_texts import error_words
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import GAP, MARGIN, Banner, ElidedLabel, badge, button, row
from quantstudio.gui.widgets.hub_facts import AboutTab, FilesTab, FitTab, LayersTab, LicenceTab
from quantstudio.gui.widgets.stranger_text import open_web

ACCESS_WORDS = {
    Access.SIGN_IN: "Its owner gives this model only to people who are signed in and have accepted its licence.",
    Access.ASK: "You are signed in, but may not download this model yet: accept its licence on its page, and look "
    "again. Some owners answer after days.",
}


class HubModelView(QWidget):
    """`smaller_wanted`: author and the most parameters that would fit."""

    back_wanted = Signal()
    sign_in_wanted = Signal()
    download_started = Signal(str)
    smaller_wanted = Signal(str, object)

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.call = JobCall(self)
        self.summary = ModelSummary(id="")
        self.details: ModelDetails | None = None
        self.about, self.fit, self.layers = AboutTab(), FitTab(), LayersTab()
        self.files, self.licence = FilesTab(), LicenceTab()
        self._make_head()
        self._lay_out()
        self._connect()

    def show_model(self, summary: ModelSummary) -> None:
        """Look at this model."""
        self.summary, self.details = summary, None
        self.name.setText(summary.id)
        self.gated.setVisible(summary.gated or summary.private)
        self.tabs.setCurrentIndex(0)
        for tab in self._tabs.values():
            tab.clear()
        self.about.show_summary(summary)
        self.look_again()

    def look_again(self) -> None:
        """Ask the Hub about the model that is shown, as after signing in."""
        self.banner.say("")
        ask_hub(self.call, DetailsJob(model=self.summary.id))
        self._offer()

    def download(self) -> None:
        """Start the download, after asking where pickles have to be converted."""
        details = self.details
        if details is None or (details.pickle_only and not self._may_convert()):
            return
        job = DownloadJob(
            model=self.summary.id, allow_pickles=details.pickle_only, output_bytes=self._output_bytes(details)
        )
        self.context.downloads.add(job)
        self.download_started.emit(self.summary.id)

    def quantize(self) -> None:
        """Open the Quantize page with this model."""
        self.context.open_quantize(self.summary.id)

    def here(self) -> FoundModel | None:
        """This model on this machine, whole; None when it is not."""
        found = (model for model in self.context.library.models if model.kind is ModelKind.CACHE and model.info)
        return next((model for model in found if model.name == self.summary.id), None)

    def _take(self, details: ModelDetails) -> None:
        self.details = details
        self.summary = details.summary
        for tab in self._tabs.values():
            tab.show_details(details)
        self.fit.panel.show_details(details, self.context.settings.runs_path)
        self._say(details)
        self._offer()

    def _say(self, details: ModelDetails) -> None:
        if details.access in ACCESS_WORDS:
            self.banner.say(tr(ACCESS_WORDS[details.access]), "warning")
        elif details.pickle_only:
            self.banner.say(details.problem, "warning")
        elif details.problem:
            self.banner.say(details.problem, "error")
        elif short := self._no_room(details):
            self.banner.say(short, "error")
        else:
            self.banner.say(" ".join(details.notes), "info")

    def _fail(self, error: Error) -> None:
        self.banner.say(error_words(error), "error")
        self._offer()

    def _no_room(self, details: ModelDetails) -> str:
        """Why the disk cannot take the download and what is to be made from it; empty when it can."""
        if not details.download_bytes:
            return ""
        wanted, free = details.download_bytes + self._output_bytes(details), free_disk(hub_cache())
        if wanted <= free:
            return ""
        text = tr("There is no room for it on the disk: download and result take")
        return f"{text} {human_bytes(wanted)}; {human_bytes(free)} {tr('are free')}."

    def _output_bytes(self, details: ModelDetails) -> int:
        """Room for a first result, where runs lie on the same disk as the download."""
        smallest = min((scheme.nbytes for scheme in details.schemes), default=0)
        same = _device(hub_cache()) == _device(self.context.settings.runs_path)
        return smallest + COMPANION_BYTES if smallest and same else 0

    def _offer(self) -> None:
        """The buttons that make sense now."""
        details, queued = self.details, self.context.downloads.download(self.summary.id)
        active = queued is not None and queued.status.active
        here = self.here() is not None and not (details and details.download_bytes)
        access = details.access if details else Access.OPEN
        unusable = bool(details and details.problem and not details.pickle_only)
        self.sign_in_button.setVisible(access is Access.SIGN_IN)
        self.again_button.setVisible(access is Access.ASK or (details is None and not self.call.busy))
        self.quantize_button.setVisible(here and not unusable)
        self.quantize_button.setEnabled(not self.summary.quantized)
        allowed = access not in ACCESS_WORDS and not unusable
        self.download_button.setVisible(not here and allowed)
        self.download_button.setEnabled(bool(details) and not active and not (details and self._no_room(details)))
        self.download_button.setText(self._download_words(active=active, paused=_is_paused(queued)))
        self.bar.setVisible(self.call.busy)

    def _download_words(self, *, active: bool, paused: bool) -> str:
        if active:
            return tr("Downloading …")
        if self.details is None:
            return tr("Download")
        words = tr("Go on downloading") if paused else tr("Download")
        return f"{words} ({human_bytes(self.details.download_bytes)})"

    def _may_convert(self) -> bool:
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("QuantStudio")
        box.setText(tr("This model's weights exist only as pickle files."))
        box.setInformativeText(
            tr(
                "Such files can hold programs. They are read in a safe mode that refuses programs, and converted to "
                "safetensors. Do it only if you trust the model's owner."
            )
        )
        convert = box.addButton(tr("Download and convert"), QMessageBox.ButtonRole.AcceptRole)
        leave = box.addButton(tr("Leave it"), QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(leave)
        box.setEscapeButton(leave)
        box.exec()
        return box.clickedButton() is convert

    def _connect(self) -> None:
        self.call.answered.connect(self._take)
        self.call.failed.connect(self._fail)
        self.call.changed.connect(self._offer)
        self.tabs.currentChanged.connect(self._stack.setCurrentIndex)
        self.fit.panel.smaller_wanted.connect(
            lambda parameters: self.smaller_wanted.emit(self.summary.id.partition("/")[0], parameters)
        )
        self.about.model_wanted.connect(lambda model: self.show_model(ModelSummary(id=model)))
        self.context.library.found.connect(lambda _: self._offer())
        self.context.downloads.changed.connect(lambda model: self._offer() if model == self.summary.id else None)
        self.context.downloads.removed.connect(lambda _: self._offer())
        self.context.closing.connect(self.call.shutdown)
        self.context.closing.connect(self.fit.panel.wait)

    def _make_head(self) -> None:
        self.back = button("Back", self._go_back, icon="back", variant="ghost", tooltip="Back to the results.")
        self.name = ElidedLabel("", "heading", mode=Qt.TextElideMode.ElideMiddle)
        self.gated = badge("Gated")
        self.gated.setToolTip(tr("Its owner wants you to sign in and accept a licence first."))
        self.bar = QProgressBar()
        self.bar.setRange(0, 0)
        self.bar.setMaximumWidth(100)
        self.bar.setAccessibleName(tr("Looking at the model"))
        self.page_button = button(
            "Open on the Hub",
            self._open_page,
            icon="open",
            tooltip="Its page in your browser; licences are accepted there.",
        )
        self.sign_in_button = button(
            "Sign in…", self.sign_in_wanted.emit, icon="key", variant="primary", tooltip="With a token of the Hub."
        )
        self.again_button = button("Look again", self.look_again, icon="refresh", tooltip="Ask the Hub once more.")
        self.download_button = button(
            "Download", self.download, icon="download", variant="primary", tooltip="Fetch it, whole and verified."
        )
        self.quantize_button = button(
            "Quantize this model", self.quantize, icon="quantize", variant="primary", tooltip="It is on this machine."
        )
        self.banner = Banner()

    def _lay_out(self) -> None:
        self._tabs: dict[str, AboutTab | FitTab | LayersTab | FilesTab | LicenceTab] = {
            "About": self.about,
            "Size and fit": self.fit,
            "Layers": self.layers,
            "Files": self.files,
            "Licence": self.licence,
        }
        self.tabs = QTabBar()
        self.tabs.setDrawBase(False)
        self.tabs.setExpanding(False)
        self.tabs.setAccessibleName(tr("About this model"))
        self._stack = QStackedWidget()
        for title, tab in self._tabs.items():
            self.tabs.addTab(tr(title))
            self._stack.addWidget(tab)
        head = row(self.back, self.name, self.gated, self.bar, self.page_button, self.sign_in_button)
        for action in (self.again_button, self.download_button, self.quantize_button):
            head.addWidget(action)
        head.setStretch(1, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 4, 0, MARGIN)
        layout.setSpacing(GAP)
        layout.addLayout(head)
        layout.addWidget(self.banner)
        layout.addWidget(self.tabs)
        layout.addWidget(self._stack, 1)

    def _go_back(self) -> None:
        self.call.drop()
        self.back_wanted.emit()

    def _open_page(self) -> None:
        open_web(
            QUrl(self.details.page if self.details and self.details.page else f"{hub_endpoint()}/{self.summary.id}")
        )


def _is_paused(queued: Download | None) -> bool:
    return queued is not None and queued.status in (DownloadStatus.PAUSED, DownloadStatus.INTERRUPTED)


def _device(folder: Path) -> int:
    """The disk of a folder that need not exist yet; -1 when it cannot be asked."""
    here = next((place for place in (folder, *folder.parents) if place.exists()), None)
    try:
        return here.stat().st_dev if here else -1
    except OSError:
        return -1
