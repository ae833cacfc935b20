"""The Settings page: made from the settings, kept as they are changed, worn at once."""

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFileDialog

from quantstudio.core.errors import DiskProblem
from quantstudio.core.fieldspec import model_specs
from quantstudio.core.result import RunCosts
from quantstudio.core.settings import Settings, load_settings
from quantstudio.gui.app import make_context as make_real_context
from quantstudio.gui.pages import settings_page
from quantstudio.gui.pages.settings_page import SECTIONS, SettingsPage
from quantstudio.gui.theme import active_tokens, apply_theme
from quantstudio.gui.tokens import DARK, LIGHT


@pytest.fixture
def page(context, qtbot):
    made = SettingsPage(context)
    qtbot.addWidget(made)
    made.resize(840, 700)
    made.show()
    return made


def test_every_setting_is_on_the_page_once_with_its_help(page):
    shown = [name for _, names in SECTIONS for name in names]
    specs = {spec.path: spec for spec in model_specs(Settings)}
    assert sorted(shown) == sorted(specs)
    for name, row in page.rows.items():
        assert row.isVisible()
        assert row.editor.control.accessibleName() == specs[name].title
        assert row.editor.control.accessibleDescription() == specs[name].help


def test_a_change_is_kept_without_a_save_button(page, qtbot):
    with qtbot.waitSignal(page.context.settings_changed, timeout=3000):
        page.rows["threads"].editor.box.setValue(3)
    assert load_settings().threads == page.context.settings.threads == 3


def test_a_change_just_before_closing_is_kept(page):
    page.rows["threads"].editor.box.setValue(2)
    page.context.closing.emit()
    assert load_settings().threads == 2


def test_folders_come_from_dialogs(page, qtbot, tmp_path, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    for name in ("runs_folder", "model_folders"):
        with qtbot.waitSignal(page.context.settings_changed, timeout=3000):
            page.rows[name].editor._browse()
    assert load_settings().runs_folder == str(tmp_path)
    assert load_settings().model_folders == (str(tmp_path),)


def test_what_another_page_changed_is_shown(page):
    page.context.change_settings(page.context.settings.model_copy(update={"model_folders": ("/a", "/b")}))
    assert page.rows["model_folders"].editor.value() == ["/a", "/b"]


def test_settings_that_cannot_be_saved_still_apply_and_say_so(page, monkeypatch):
    def refuse(_):
        raise DiskProblem("The disk is full.")

    monkeypatch.setattr(settings_page, "save_settings", refuse)
    page.rows["threads"].editor.box.setValue(5)
    page.save()
    assert page.banner.text() == "The disk is full."
    assert page.context.settings.threads == 5


def test_the_theme_changes_at_once(home, qapp, qtbot):
    apply_theme(qapp, LIGHT)
    context = make_real_context(qapp, Settings(theme="light"))
    page = SettingsPage(context)
    qtbot.addWidget(page)
    page.show()
    combo = page.rows["theme"].editor.combo
    with qtbot.waitSignal(context.theme_changed, timeout=1000):
        combo.setFocus()
        qtbot.keyClick(combo, Qt.Key.Key_End)
    assert active_tokens() is DARK is context.tokens
    assert load_settings().theme == "dark"
    context.library.shutdown()
    apply_theme(qapp, LIGHT)


def test_how_good_estimates_are_is_told_from_the_runs(context, home, qtbot, make_run):
    page = SettingsPage(context)
    qtbot.addWidget(page)
    page.show()
    card = page.estimates
    qtbot.waitUntil(lambda: "No run has finished" in card.sentence.text(), timeout=5000)
    assert not card.table.isVisible()
    figures = {"formula_memory": 10**9, "formula_seconds": 10.0, "predicted_memory": 10**9, "predicted_seconds": 10.0}
    costs = RunCosts(**figures, measured_memory=8 * 10**8, measured_seconds=20.0)
    make_run(context.settings.runs_path, "int4", costs=costs)
    context.queue.finished.emit("any")
    qtbot.waitUntil(card.table.isVisible, timeout=5000)
    assert card.table.item(0, 2).text() == "800 MB"
    card.table.setFocus()
    qtbot.keyClick(card.table, Qt.Key.Key_Tab)
    assert not card.table.hasFocus(), "Tab does not go through every cell first"
    assert "off by 25\u00a0% in the middle" in card.sentence.text()
    assert "multiplied by 0.89 for memory and 1.41 for time" in card.sentence.text()
