"""What the pages share, and how one page asks for another.

Pages know this object and never each other: a page that wants a run shown calls `open_run`, and the window, which
alone knows all pages, brings the right one forward. So pages can be built late, tested alone and replaced.

A page is `class XPage(QWidget)`, constructed as `XPage(context)`. What it is asked to show arrives through:
`QuantizePage.show_model(model)`, `RunPage.show_run(run_id)`, `ComparePage.show_runs(run_ids)`,
`ChatPage.show_model(model)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Signal

if TYPE_CHECKING:
    from quantstudio.client.download_queue import DownloadQueue
    from quantstudio.client.library_scan import LibraryScan
    from quantstudio.client.run_queue import RunQueue
    from quantstudio.core.recipe import Recipe
    from quantstudio.core.settings import Settings
    from quantstudio.gui.tokens import Tokens


class AppContext(QObject):
    """Settings, queue, library and the wishes of pages.

    `tokens` are the colours of the theme that is on; whoever paints by hand or draws charts reads them and listens
    to `theme_changed`.
    """

    models_wanted = Signal()
    quantize_wanted = Signal(str)
    recipe_wanted = Signal(object)
    run_wanted = Signal(str)
    compare_wanted = Signal(list)
    chat_wanted = Signal(str)
    settings_changed = Signal()
    theme_changed = Signal()
    closing = Signal()
    """The window is about to go: end what would hold it up, such as a chat."""

    def __init__(self, settings: Settings, queue: RunQueue, library: LibraryScan, tokens: Tokens) -> None:
        super().__init__()
        self.settings = settings
        self.queue = queue
        self.library = library
        self.tokens = tokens
        self._downloads: DownloadQueue | None = None

    @property
    def downloads(self) -> DownloadQueue:
        """The downloads of this window; made when first asked for, so that the start does not wait for its types."""
        if self._downloads is None:
            from quantstudio.client.download_queue import DownloadQueue
            from quantstudio.core.paths import downloads_file

            self._downloads = DownloadQueue(self, kept=downloads_file())
            for signal in (self._downloads.done, self._downloads.removed):
                signal.connect(lambda _: self.library.refresh(self.settings))
            self.closing.connect(self._downloads.shutdown)
        return self._downloads

    def has_kept_downloads(self) -> bool:
        """Whether the window before has left downloads, without making their queue."""
        from quantstudio.core.paths import downloads_file

        return downloads_file().is_file()

    def open_models(self) -> None:
        """Show the list of models."""
        self.models_wanted.emit()

    def open_quantize(self, model: str = "") -> None:
        """Show the Quantize page, with `model` (a folder or 'starter') picked unless it is empty."""
        self.quantize_wanted.emit(str(model))

    def open_recipe(self, recipe: Recipe) -> None:
        """Show the Quantize page with this recipe in its form."""
        self.recipe_wanted.emit(recipe)

    def open_run(self, run_id: str = "") -> None:
        """Show a run, live or from history; the latest when `run_id` is empty."""
        self.run_wanted.emit(run_id)

    def open_compare(self, run_ids: list[str] | None = None) -> None:
        """Show these finished runs side by side."""
        self.compare_wanted.emit(list(run_ids or []))

    def open_chat(self, model: str = "") -> None:
        """Show the Chat page with this model folder."""
        self.chat_wanted.emit(str(model))

    def change_settings(self, settings: Settings) -> None:
        """Take over changed settings and tell every page."""
        self.settings = settings
        self.settings_changed.emit()

    def change_tokens(self, tokens: Tokens) -> None:
        """Take over another theme's colours and tell whoever paints by hand."""
        self.tokens = tokens
        self.theme_changed.emit()
