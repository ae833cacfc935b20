"""The six pages: their names, icons and shortcuts, and how each is made when it is first asked for.

A page's module is imported when the page is opened, so the window is there before charts or tables are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from PySide6.QtWidgets import QWidget

from quantstudio.gui.context import AppContext


class PageId(StrEnum):
    """Stable ids of the pages, in the order of the navigation."""

    MODELS = "models"
    QUANTIZE = "quantize"
    RUN = "run"
    COMPARE = "compare"
    CHAT = "chat"
    SETTINGS = "settings"


@dataclass(frozen=True, slots=True)
class PageEntry:
    """A page in the navigation. Its icon has the name of its id."""

    id: PageId
    title: str
    tooltip: str
    make: Callable[[AppContext], QWidget]


def _models(context: AppContext) -> QWidget:
    from quantstudio.gui.pages.models_page import ModelsPage

    return ModelsPage(context)


def _quantize(context: AppContext) -> QWidget:
    from quantstudio.gui.pages.quantize_page import QuantizePage

    return QuantizePage(context)


def _run(context: AppContext) -> QWidget:
    from quantstudio.gui.pages.run_page import RunPage

    return RunPage(context)


def _compare(context: AppContext) -> QWidget:
    from quantstudio.gui.pages.compare_page import ComparePage

    return ComparePage(context)


def _chat(context: AppContext) -> QWidget:
    from quantstudio.gui.pages.chat_page import ChatPage

    return ChatPage(context)


def _settings(context: AppContext) -> QWidget:
    from quantstudio.gui.pages.settings_page import SettingsPage

    return SettingsPage(context)


PAGES = (
    PageEntry(PageId.MODELS, "Models", "The models on this machine", _models),
    PageEntry(PageId.QUANTIZE, "Quantize", "Make a model smaller and faster", _quantize),
    PageEntry(PageId.RUN, "Run", "Runs at work, waiting and finished", _run),
    PageEntry(PageId.COMPARE, "Compare", "Finished runs side by side", _compare),
    PageEntry(PageId.CHAT, "Chat", "Talk to a model", _chat),
    PageEntry(PageId.SETTINGS, "Settings", "Folders, device, theme and language", _settings),
)
