"""As a new user, with mouse and keys alone: from the empty window to a model from "the Hub", quantized and measured.

`Hands` only clicks and types into the window's native surface: what is hit is decided by Qt from the place on the
screen, so a button that is covered, clipped, disabled or scrolled out of sight is not pressed, and the test fails.
"""

import os
import shutil

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QScrollArea

from quantstudio.client.download_queue import DownloadStatus
from quantstudio.core.paths import resources
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import MODEL, read_result
from quantstudio.core.settings import Settings
from quantstudio.gui.app import make_context
from quantstudio.gui.main_window import MainWindow
from quantstudio.gui.pages.catalogue import PageId
from quantstudio.gui.pages.models_page import Tab

LOOKS, BETWEEN_MS = 6000, 20
"""Two minutes of this process's own: the time in which it and its workers are stopped does not count."""
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
SHORT = {"quality_tokens": "1024", "window": "128", "prompt_tokens": "16", "decode_tokens": "8"}


class Hands:
    """A person at the window: sees what is shown, points, clicks, turns the wheel, types."""

    def __init__(self, window, qtbot):
        self.window, self.qtbot = window, qtbot

    def wait(self, seen):
        """Do nothing until `seen()`."""
        for _ in range(LOOKS):
            if seen():
                return
            self.qtbot.wait(BETWEEN_MS)
        raise AssertionError("it did not happen")

    def click(self, widget, place=None):
        """Click a widget (at `place` in it) where it is on the screen, when it can be seen and used."""
        self.wait(lambda: widget.isVisible() and widget.isEnabled())
        self._scroll_to(widget)
        at = widget.mapTo(self.window, place or widget.rect().center())
        hit = self.window.childAt(at)
        assert hit is widget or widget.isAncestorOf(hit), f"{widget} is covered by {hit}"
        QTest.mouseClick(self.window.windowHandle(), Qt.MouseButton.LeftButton, pos=at)

    def type_number(self, box, text):
        """Replace a number: a double click marks it, then keys."""
        self.click(box, QPoint(20, box.height() // 2))
        for key in (Qt.Key.Key_Home, Qt.Key.Key_End):
            shift = Qt.KeyboardModifier.ShiftModifier if key is Qt.Key.Key_End else Qt.KeyboardModifier.NoModifier
            QTest.keyClick(self.window.windowHandle(), key, shift)
        for letter in text:
            QTest.keyClick(self.window.windowHandle(), letter)
        QTest.keyClick(self.window.windowHandle(), Qt.Key.Key_Tab)

    def _scroll_to(self, widget):
        """Turn the wheel over the area that holds the widget until all of it is in sight."""
        area = widget.parentWidget()
        while area is not None and not isinstance(area, QScrollArea):
            area = area.parentWidget()
        if area is None or not area.widget().isAncestorOf(widget):
            return
        port = area.viewport()
        for _ in range(200):
            top = widget.mapTo(port, QPoint(0, 0)).y()
            if top >= 0 and top + widget.height() <= port.height():
                return
            middle = QPointF(port.rect().center().x(), 4)
            turn = QPoint(0, 120 if top < 0 else -120)
            where = port.mapToGlobal(middle.toPoint())
            none = (Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase)
            QApplication.sendEvent(port, QWheelEvent(middle, where, QPoint(), turn, *none, False))
        raise AssertionError(f"{widget} cannot be scrolled to")


@pytest.fixture
def window(hub, qapp, qtbot):
    """The real window with real workers; the Hub has one model, the starter model's files under another name."""
    (hub.root / "ada/lark").mkdir(parents=True)
    for name in FILES:
        shutil.copy(resources() / "starter" / name, hub.root / "ada/lark" / name)
    context = make_context(qapp, Settings(threads=1))  # a second one waits for the first by spinning
    made = MainWindow(context)
    qtbot.addWidget(made)
    made.resize(1240, 820)
    made.show()
    made.activateWindow()
    qtbot.waitUntil(made.isActiveWindow)
    context.library.refresh(context.settings)
    yield made
    made.close()


@pytest.fixture
def hands(window, qtbot):
    return Hands(window, qtbot)


@pytest.mark.parametrize("again", ["quantized", pytest.param("measured", marks=pytest.mark.benchmark)])
def test_from_the_empty_window_to_a_measured_model_and_again_without_a_network(window, hands, hub, monkeypatch, again):
    """The second time, with the network off, is measured as well in the slow variant."""
    download(window, hands)
    hands.click(window.page(PageId.MODELS).downloads_view.cards["ada/lark"].quantize)
    first = quantize(window, hands, keep_measuring=True)
    result = read_result(window.context.queue.folder(first))
    assert result.quantized.decode_tps.median > 0
    assert result.quality.kl.value >= 0
    assert result.quantization.sizes.total < result.quantization.original_sizes.total

    hub.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = mark(window, hands, lambda model: model.name == "ada/lark")
    hands.click(library.deeds.quantize)
    second = quantize(window, hands, keep_measuring=again == "measured")
    measured = read_result(window.context.queue.folder(second)).quantized
    assert (measured is not None) == (again == "measured")

    own = mark(window, hands, lambda model: model.path.parent.name == first)
    hands.click(own.deeds.compare)
    assert window.stack.currentWidget() is window.page(PageId.COMPARE)
    own = mark(window, hands, lambda model: model.path.parent.name == first)
    hands.click(own.deeds.quantize)
    page = window.page(PageId.QUANTIZE)
    hands.wait(lambda: page._checked and page.cost.recipe is not None)
    assert page.cost.recipe.model.id == "ada/lark", "from the original again"
    assert str(page.cost.recipe.measure.quality_tokens) == SHORT["quality_tokens"], "with the recipe it was made by"

    hands.click(window.sidebar.buttons[PageId.MODELS])
    found = {model.name: model for model in window.context.library.models}
    assert set(found["ada/lark"].made) == {first, second}
    assert found["ada/lark"].verified
    folder = os.environ.get("QUANTSTUDIO_PICTURES")
    if folder:
        window.grab().save(f"{folder}/new-user-{again}.png")


def download(window, hands):
    """Find the model, open its page, download it, and wait until it is here."""
    page = window.page(PageId.MODELS)
    hands.click(page.tabs, page.tabs.tabRect(Tab.FIND).center())
    results = page.find_view.list
    hands.wait(lambda: results.model().rowCount() == 1)
    hands.click(results.viewport(), results.visualRect(results.model().index(0)).center())
    hands.click(page.find_view.model_view.download_button)
    queue = window.context.downloads
    found = queue.download("ada/lark")
    hands.wait(lambda: not found.status.active)
    assert found.status is DownloadStatus.DONE, found.error


def mark(window, hands, wanted):
    """In the library, click the row of the model that is wanted."""
    hands.click(window.sidebar.buttons[PageId.MODELS])
    page = window.page(PageId.MODELS)
    hands.click(page.tabs, page.tabs.tabRect(Tab.LIBRARY).center())
    library = page.library
    ids = lambda: [model.id for model in window.context.library.models if wanted(model)]  # noqa: E731
    hands.wait(lambda: bool(ids()) and library.items.row_of(ids()[0]) >= 0)
    at = library.list.visualRect(library.items.index(library.items.row_of(ids()[0]))).center()
    hands.click(library.list.viewport(), at)
    assert library.marked().id == ids()[0]
    return library


def quantize(window, hands, *, keep_measuring):
    """On the Quantize page: make measuring short, or turn it off; start; wait for the run. Its id."""
    page = window.page(PageId.QUANTIZE)
    assert window.stack.currentWidget() is page
    hands.wait(lambda: page.cost.recipe is not None and page._checked)
    assert page.cost.recipe.model.id == "ada/lark"
    if keep_measuring:
        if not page.form.editor(f"measure.{next(iter(SHORT))}").control.isVisible():  # the form stays as it was left
            hands.click(page.form.section("measure").fold)
        for field, text in SHORT.items():
            hands.type_number(page.form.editor(f"measure.{field}").control, text)
    else:
        hands.click(page.form.editor("measure.enabled").control)
    hands.wait(lambda: page._checked)
    measure = page.cost.recipe.measure
    assert measure.enabled is keep_measuring
    if keep_measuring:
        assert {name: str(getattr(measure, name)) for name in SHORT} == SHORT
    before = {run_id for run_id, _ in window.context.queue.runs}
    hands.click(page.start_button)
    assert window.stack.currentWidget() is window.page(PageId.RUN)
    (run_id,) = {run_id for run_id, _ in window.context.queue.runs} - before
    hands.wait(lambda: window.context.queue.state(run_id).status.final)
    assert window.context.queue.state(run_id).status is Status.DONE, window.context.queue.state(run_id).error
    assert (window.context.queue.folder(run_id) / MODEL / "model.safetensors").is_file()
    hands.wait(lambda: any(run_id in model.made for model in window.context.library.models))
    return run_id
