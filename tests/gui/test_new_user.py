"""As a new user, with the mouse alone: from the empty window to a downloaded model and a quantized run of it."""

import shutil

import pytest
from PySide6.QtCore import Qt

from quantstudio.client.download_queue import DownloadStatus
from quantstudio.core.paths import resources
from quantstudio.core.recipe import Recipe
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import MODEL
from quantstudio.core.settings import load_settings
from quantstudio.gui.app import make_context
from quantstudio.gui.main_window import MainWindow
from quantstudio.gui.pages.catalogue import PageId
from quantstudio.gui.pages.models_page import Tab

PATIENCE = 60_000
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture
def window(hub, qapp, qtbot):
    """The real window with real workers; the Hub has one model, the starter model's files under another name."""
    (hub.root / "ada/lark").mkdir(parents=True)
    for name in FILES:
        shutil.copy(resources() / "starter" / name, hub.root / "ada/lark" / name)
    context = make_context(qapp, load_settings())
    made = MainWindow(context)
    qtbot.addWidget(made)
    made.show()
    context.library.refresh(context.settings)
    yield made
    made.close()


def test_from_the_empty_window_to_a_quantized_run_and_again_without_a_network(window, hub, qtbot, monkeypatch):
    def click(button):
        qtbot.waitUntil(lambda: button.isVisible() and button.isEnabled(), timeout=PATIENCE)
        qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def click_tab(tab):
        place = page.tabs.tabRect(tab).center()
        qtbot.mouseClick(page.tabs, Qt.MouseButton.LeftButton, pos=place)

    page = window.page(PageId.MODELS)
    click_tab(Tab.FIND)
    results = page.find_view.list
    qtbot.waitUntil(lambda: results.model().rowCount() == 1, timeout=PATIENCE)
    row = results.visualRect(results.model().index(0)).center()
    qtbot.mouseClick(results.viewport(), Qt.MouseButton.LeftButton, pos=row)
    click(page.find_view.model_view.download_button)
    card = page.downloads_view.cards["ada/lark"]
    downloads = window.context.downloads
    qtbot.waitUntil(lambda: downloads.download("ada/lark").status is DownloadStatus.DONE, timeout=PATIENCE)

    hub.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    click(card.quantize)
    quantize = window.page(PageId.QUANTIZE)
    qtbot.waitUntil(lambda: quantize.cost.recipe is not None and quantize._checked, timeout=PATIENCE)
    assert quantize.cost.recipe.model.id == "ada/lark"
    measured_later = quantize.cost.recipe.measure.model_copy(update={"enabled": False})
    quantize.show_recipe(Recipe(model=quantize.cost.recipe.model, measure=measured_later))
    click(quantize.start_button)
    assert window.stack.currentWidget() is window.page(PageId.RUN)
    (run_id, _), *_ = window.context.queue.runs
    qtbot.waitUntil(lambda: window.context.queue.state(run_id).status.final, timeout=PATIENCE)
    assert window.context.queue.state(run_id).status is Status.DONE, window.context.queue.state(run_id).error
    assert (window.context.queue.folder(run_id) / MODEL / "model.safetensors").is_file()

    click(window.sidebar.buttons[PageId.MODELS])
    click_tab(Tab.LIBRARY)
    qtbot.waitUntil(lambda: any(model.made for model in window.context.library.models), timeout=PATIENCE)
    found = {model.name: model for model in window.context.library.models}
    assert found["ada/lark"].made == (run_id,)
    assert found["ada/lark"].verified
    assert page.library.items.row_of("ada/lark") >= 0
