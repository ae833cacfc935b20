"""The window: six pages, keys, closing with runs at work, and a start that loads nothing heavy."""

import gc
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLineEdit,
    QMessageBox,
    QPlainTextEdit,
    QProgressBar,
    QScrollBar,
    QTabBar,
    QWidget,
)

from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import OutputSection, Recipe
from quantstudio.core.run_state import Status
from quantstudio.core.settings import Settings
from quantstudio.gui import demo
from quantstudio.gui.demo import start_demo
from quantstudio.gui.main_window import MainWindow
from quantstudio.gui.pages.catalogue import PAGES, PageId
from quantstudio.gui.theme import apply_theme
from quantstudio.gui.tokens import LIGHT

ROOT = Path(__file__).parents[2]
LONG = Recipe(output=OutputSection(name="Long"))


@pytest.fixture
def open_window(make_context, qapp, qtbot):
    def make(way="good", argument=""):
        window = MainWindow(make_context(way, argument))
        qtbot.addWidget(window, before_close_func=lambda it: it.context.queue.shutdown())
        window.show()
        return window

    return make


@pytest.fixture
def window(open_window):
    return open_window()


def test_only_the_first_page_is_made_at_the_start(window):
    assert window.stack.count() == 1
    assert window.sidebar.buttons[PageId.MODELS].isChecked()


@pytest.mark.parametrize("modifier", [Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.AltModifier])
def test_every_page_opens_by_key_and_by_mouse(window, qtbot, modifier):
    window.activateWindow()
    for number, page in reversed(list(enumerate(PAGES, start=1))):
        qtbot.keyClick(window, Qt.Key(Qt.Key.Key_0.value + number), modifier)
        assert window.stack.currentWidget() is window.page(page.id)
        assert window.sidebar.buttons[page.id].isChecked()
    for page in PAGES:
        qtbot.mouseClick(window.sidebar.buttons[page.id], Qt.MouseButton.LeftButton)
        assert window.stack.currentWidget() is window.page(page.id)


CONTROLS = (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QComboBox,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
)


def is_inner(widget):
    """A part that Qt puts into another control, which carries the name and the tooltip."""
    parent = widget.parent()
    while isinstance(parent, QWidget):
        if isinstance(parent, (QAbstractSpinBox, QComboBox, QLineEdit, QAbstractItemView, QPlainTextEdit, QTabBar)):
            return True
        parent = parent.parent()
    return isinstance(widget, QScrollBar)


@pytest.mark.parametrize("page", [page.id for page in PAGES])
def test_every_control_is_named_explained_and_reached_by_key(window, page):
    window.show_page(page)
    controls = [each for each in window.findChildren(QWidget) if isinstance(each, CONTROLS) and not is_inner(each)]
    assert len(controls) > 6
    nameless = [each for each in controls if not each.accessibleName() and not isinstance(each, QProgressBar)]
    mute = [each for each in controls if not each.toolTip() and not isinstance(each, QProgressBar)]
    unreachable = [
        each
        for each in controls
        if not isinstance(each, QProgressBar) and not each.focusPolicy() & Qt.FocusPolicy.TabFocus
    ]
    assert [describe(each) for each in nameless] == []
    assert [describe(each) for each in mute] == []
    assert [describe(each) for each in unreachable] == []


def describe(widget):
    text = widget.text() if isinstance(widget, (QAbstractButton, QLineEdit)) else ""
    return f"{type(widget).__name__} {widget.objectName()} {text} in {type(widget.parent()).__name__}"


@pytest.mark.parametrize("page", [page.id for page in PAGES])
def test_every_page_fits_a_small_screen(window, page):
    window.resize(1024, 700)
    window.show_page(page)
    QApplication.processEvents()
    assert (window.width(), window.height()) == (1024, 700), "the page forces the window to grow"


def test_pages_lead_to_each_other(window, qtbot):
    window.context.open_quantize("starter")
    assert window.stack.currentWidget() is window.page(PageId.QUANTIZE)
    recipe = preset_recipe(Preset.CLOSEST)
    window.context.open_recipe(recipe)
    assert window.page(PageId.QUANTIZE).form.values()["scheme.kind"] == "w8a16"
    for ask, page in (
        (window.context.open_run, PageId.RUN),
        (window.context.open_compare, PageId.COMPARE),
        (window.context.open_chat, PageId.CHAT),
        (window.context.open_models, PageId.MODELS),
    ):
        ask()
        assert window.stack.currentWidget() is window.page(page)


def test_the_navigation_shows_the_run_at_work(open_window, qtbot):
    window = open_window("slow", 60)
    activity = window.sidebar.activity
    assert not activity.isVisible()
    run_id = window.context.queue.add(LONG, window.context.settings.runs_path)
    qtbot.waitUntil(lambda: activity.isVisible() and ", A," in activity.accessibleName(), timeout=5000)
    assert activity.accessibleName().startswith("Long, ")
    assert activity.height() >= activity.layout().minimumSize().height(), "its lines are not cut"
    qtbot.mouseClick(activity, Qt.MouseButton.LeftButton)
    assert window.stack.currentWidget() is window.page(PageId.RUN)
    with qtbot.waitSignal(window.context.queue.finished, timeout=5000):
        window.context.queue.cancel(run_id)
    qtbot.waitUntil(lambda: not activity.isVisible(), timeout=2000)


def answer_box(seen, words):
    """Press the button with these words in the box that is about to appear."""

    def press():
        box = QApplication.activeModalWidget()
        if not isinstance(box, QMessageBox):
            QTimer.singleShot(20, press)
            return
        seen.append(box.text())
        next(each for each in box.buttons() if each.text().replace("&", "") == words).click()

    QTimer.singleShot(20, press)


def test_closing_an_idle_window_asks_nothing(window):
    assert window.close()


def test_closing_with_runs_asks_and_can_be_taken_back(open_window, qtbot):
    window, seen = open_window("slow", 60), []
    window.context.queue.add(LONG, window.context.settings.runs_path)
    answer_box(seen, "Keep working")
    assert not window.close()
    assert seen == ["A run is still at work."]
    assert window.isVisible()
    assert [state.status.final for _, state in window.context.queue.runs] == [False]


def test_closing_with_runs_cancels_them_in_good_order_first(open_window, qtbot):
    window, seen = open_window("slow", 60), []
    queue = window.context.queue
    for _ in range(2):
        queue.add(LONG, window.context.settings.runs_path)
    qtbot.waitUntil(lambda: queue.runs[0][1].status is Status.RUNNING, timeout=5000)
    answer_box(seen, "Cancel and close")
    assert not window.close(), "the run is being cancelled first"
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=8000)
    assert seen == ["2 runs are at work or waiting."]
    assert [state.status for _, state in queue.runs] == [Status.CANCELLED, Status.CANCELLED]
    assert queue.active is None


def test_the_window_comes_back_where_it_was(open_window, qtbot):
    first = open_window()
    usual = first.height()
    first.resize(first.width(), 650)
    first.close()
    second = open_window()
    assert second.height() == 650 != usual


def test_a_problem_with_the_settings_is_said(make_context, qtbot):
    context = make_context()
    context.settings = Settings(notice="The settings were damaged.")
    window = MainWindow(context)
    qtbot.addWidget(window)
    window.show()
    assert window.banner.isVisible()
    assert window.banner.text() == "The settings were damaged."


def test_the_window_stays_awake_while_a_job_floods_it(open_window, qtbot):
    """20,000 messages a second: between two ticks of a timer the window may not work for 100 ms.

    Counted in processor time of the window's own thread, so that a busy machine cannot fail it.
    """
    window = open_window("flood", 30_000)
    run_id = window.context.queue.add(LONG, window.context.settings.runs_path)
    window.context.open_run(run_id)
    ticks = []
    timer = QTimer()
    timer.setInterval(5)
    timer.timeout.connect(lambda: ticks.append(time.thread_time()))
    QApplication.processEvents()
    gc.collect()
    gc.freeze()  # what hundreds of other tests left in this process is not the window's to walk through
    timer.start()
    with qtbot.waitSignal(window.context.queue.finished, timeout=30_000):
        pass
    timer.stop()
    gc.unfreeze()
    state = window.context.queue.state(run_id)
    assert state.status is Status.DONE
    assert state.messages > 30_000
    longest = max(after - before for before, after in itertools.pairwise(ticks))
    assert longest < 0.1


def test_the_demo_runs_both_recipes_and_ends_with_their_comparison(make_context, qtbot):
    context = make_context("good")
    said = []
    with qtbot.waitSignal(context.compare_wanted, timeout=15_000) as wanted:
        run_ids = start_demo(context, said.append)
    assert wanted.args == [run_ids]
    qtbot.waitUntil(lambda: bool(said), timeout=15_000)
    # This worker only plays its part and leaves no result: the window says so instead of showing a path.
    assert said[0].startswith("The chart of the demo could not be written. The run demo-w4a16")
    assert [context.queue.recipe(run_id).scheme.kind for run_id in run_ids] == ["w4a16", "w8a16"]


def test_the_demo_ends_with_the_path_of_its_chart(make_run, tmp_path, capsys):
    sentence = demo._save_chart([tmp_path / make_run(tmp_path, kind) for kind in ("int4", "int8")])
    chart = Path(sentence.removeprefix("The demo is done. Its chart: "))
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert f"Chart: {chart}" in capsys.readouterr().out


def test_the_window_is_painted_without_heavy_libraries(home):
    """How long it takes is told by tests/benchmarks/window_start.py."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "QT_QPA_PLATFORM": "offscreen"}
    command = [sys.executable, ROOT / "tests" / "firstpaint.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["painted"]


@pytest.fixture(autouse=True)
def _dressed(qapp):
    if not qapp.styleSheet():
        apply_theme(qapp, LIGHT)
