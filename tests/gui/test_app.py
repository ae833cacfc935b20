"""The entry point and what ties the parts together."""

import sys

import pytest
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QMessageBox

from quantstudio.core.recipe import Recipe
from quantstudio.core.settings import Settings, save_settings
from quantstudio.gui import app as entry
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


def test_a_mistake_in_a_slot_is_shown_with_its_details_and_the_window_stays(qapp, capsys):
    seen = []

    def read():
        box = QApplication.activeModalWidget()
        assert isinstance(box, QMessageBox)
        seen.append(box.detailedText())
        box.accept()

    QTimer.singleShot(50, read)
    try:
        Recipe().nonsense  # noqa: B018
    except AttributeError as error:
        entry._tell_failure(type(error), error, error.__traceback__)
    assert "nonsense" in seen[0]
    assert "nonsense" in capsys.readouterr().err, "also where a log is kept"
