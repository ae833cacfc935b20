"""The entry point and what ties the parts together."""

import sys
import threading

import pytest
import shiboken6
from PySide6.QtCore import QObject, QThread, QTimer
from PySide6.QtWidgets import QApplication, QMessageBox

from quantstudio.core.recipe import Recipe
from quantstudio.core.settings import Settings, save_settings
from quantstudio.gui import app as entry
from quantstudio.gui.failures import Failures
from quantstudio.gui.main_window import MainWindow
from quantstudio.gui.theme import apply_theme
from quantstudio.gui.tokens import DARK, LIGHT


@pytest.fixture
def real_context(home, qapp):
    made = entry.make_context(qapp, Settings(theme="light"))
    yield made
    made.queue.shutdown()
    made.library.shutdown()


def test_an_unknown_argument_is_refused_with_the_usage(capsys):
    assert entry.run_app(["--nonsense"]) == 2
    assert "usage" in capsys.readouterr().err


def test_run_app_wears_the_saved_theme_lists_the_models_and_ends_with_the_window(home, qapp, monkeypatch):
    save_settings(Settings(theme="dark"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    seen = []

    def look():
        window = next(each for each in qapp.topLevelWidgets() if isinstance(each, MainWindow))
        if not window.context.library.models:
            QTimer.singleShot(20, look)
            return
        seen.append((window.context.tokens, [model.id for model in window.context.library.models]))
        window.close()

    QTimer.singleShot(0, look)
    assert entry.run_app([]) == 0
    assert seen == [(DARK, ["starter"])]
    apply_theme(qapp, LIGHT)


def test_the_models_are_looked_at_again_when_a_run_ends_or_folders_change(real_context, qtbot):
    with qtbot.waitSignal(real_context.library.found, timeout=5000):
        real_context.queue.finished.emit("some-run")
    with qtbot.waitSignal(real_context.library.found, timeout=5000):
        real_context.change_settings(Settings(theme="light", model_folders=("/nowhere",)))
    assert "There is no folder /nowhere." in real_context.library.models[1].error


@pytest.fixture
def boxes(qapp, qtbot):
    """Details of the boxes that have opened, each closed at once."""
    seen = []

    def read():
        if isinstance(box := QApplication.activeModalWidget(), QMessageBox):
            assert QThread.currentThread() is qapp.thread()
            seen.append(box.detailedText())
            box.accept()

    timer = QTimer()
    timer.timeout.connect(read)
    timer.start(10)
    yield seen
    timer.stop()


def fail(failures):
    try:
        Recipe().nonsense  # noqa: B018
    except AttributeError as error:
        failures.take(type(error), error, error.__traceback__)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_mistake_is_shown_with_its_details_whichever_thread_it_happened_in(qtbot, boxes, capsys, in_thread):
    owner = QObject()
    failures = Failures(owner)
    if in_thread:
        thread = threading.Thread(target=fail, args=(failures,))
        thread.start()
        thread.join()
    else:
        fail(failures)
    assert boxes == [], "never on the spot: it may have been a paint event"
    qtbot.waitUntil(lambda: bool(boxes), timeout=5000)
    assert "nonsense" in boxes[0]
    assert "nonsense" in capsys.readouterr().err, "also where a log is kept"


def test_what_fails_at_every_look_is_told_once(qtbot, boxes, capsys):
    owner = QObject()
    failures = Failures(owner)
    for _ in range(3):
        fail(failures)
    qtbot.waitUntil(lambda: bool(boxes), timeout=5000)
    qtbot.wait(100)
    assert len(boxes) == 1
    assert capsys.readouterr().err.count("AttributeError:") == 3


def test_when_the_window_is_gone_a_mistake_only_goes_to_the_log(qapp, capsys):
    owner = QObject()
    failures = Failures(owner)
    shiboken6.delete(owner)
    fail(failures)
    assert "nonsense" in capsys.readouterr().err
