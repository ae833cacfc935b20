"""The Quantize page: presets, what it costs, what is wrong, and the run that it starts."""

import shlex

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog

from quantstudio.core.errors import DiskProblem
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import MachineSection, ModelSection, Recipe
from quantstudio.core.recipe_io import load_recipe
from quantstudio.core.settings import Settings
from quantstudio.gui.pages.quantize_page import QuantizePage
from quantstudio.gui.widgets.preset_bar import preset_of
from quantstudio.gui.widgets.size_bar import part_bytes


@pytest.fixture
def open_page(make_context, qtbot):
    def make(way="slow", argument=0, settings=None):
        context = make_context(way, argument)
        if settings:
            context.settings = settings
        page = QuantizePage(context)
        qtbot.addWidget(page)
        page.resize(840, 700)
        page.show()
        settle(page, qtbot)
        return page

    return make


@pytest.fixture
def page(open_page):
    return open_page()


def settle(page, qtbot):
    """Wait until what the form says has been checked."""
    if page._debounce.isActive():
        qtbot.waitSignal(page._costs.found, timeout=5000).wait()


def change(page, qtbot, values):
    page.form.set_values(values)
    settle(page, qtbot)


def test_a_new_page_offers_the_recommended_recipe_with_its_price(page):
    assert page.cost.recipe == Recipe()
    assert page.presets.buttons[Preset.RECOMMENDED].isChecked()
    assert page.start_button.isEnabled()
    assert page.panel.output.text() == "1.01 MB"
    assert "% of the original (3.67 MB)" in page.panel.share.text()
    assert all(fact.text() != "–" for fact in page.panel.facts.values())


def test_what_is_shown_is_what_is_planned(page):
    plan = page.cost.estimate.plan
    assert sum(part_bytes(plan.sizes).values()) == plan.sizes.total == page.cost.estimate.output_bytes
    assert page.panel.facts["layers"].text() == f"{len(plan.quantized)} / {len(plan.layers)}"


@pytest.mark.parametrize("preset", Preset)
def test_a_preset_fills_the_form_and_keeps_the_rest(page, qtbot, preset):
    change(page, qtbot, {"measure.trials": 9, "scheme.kind": "w8a8"})
    qtbot.mouseClick(page.presets.buttons[preset], Qt.MouseButton.LeftButton)
    settle(page, qtbot)
    wanted = preset_recipe(preset)
    assert (page.cost.recipe.scheme, page.cost.recipe.layers) == (wanted.scheme, wanted.layers)
    assert page.cost.recipe.measure.trials == 9
    assert preset_of(page.cost.recipe) is preset
    assert page.presets.buttons[preset].isChecked()


def test_own_settings_are_no_preset(page, qtbot):
    change(page, qtbot, {"scheme.group_size": 64})
    assert not any(each.isChecked() for each in page.presets.buttons.values())
    assert "Your own settings" in page.presets.meaning.text()


def test_a_problem_stands_beside_its_field_and_stops_the_start(page, qtbot):
    change(page, qtbot, {"scheme.group_size": 96})
    row = page.form.row("scheme.group_size")
    assert row.problem.isVisible()
    assert "96" in row.problem.text()
    assert not page.start_button.isEnabled()
    assert page.hint.isVisible()
    change(page, qtbot, {"scheme.group_size": 128})
    assert not row.problem.isVisible()
    assert page.start_button.isEnabled()
    assert not page.hint.isVisible()


def test_nothing_starts_between_a_change_and_its_check(page, qtbot):
    page.form.set_values({"scheme.group_size": 0})
    assert not page.start_button.isEnabled()
    page.start()
    assert page.context.queue.runs == []
    settle(page, qtbot)


def test_start_puts_the_recipe_in_the_queue_and_opens_its_run(open_page, qtbot):
    page = open_page("good")
    change(page, qtbot, {"output.name": "Mine"})
    queue = page.context.queue
    with qtbot.waitSignals([queue.finished, page.context.run_wanted], timeout=10_000):
        qtbot.mouseClick(page.start_button, Qt.MouseButton.LeftButton)
    [(run_id, _)] = queue.runs
    assert queue.recipe(run_id) == page.cost.recipe
    assert queue.folder(run_id).parent == page.context.settings.runs_path


def test_a_run_that_cannot_be_made_says_why(page, qtbot, monkeypatch):
    def refuse(*_):
        raise DiskProblem("The disk is full.", hint="Free some space.")

    monkeypatch.setattr(page.context.queue, "add", refuse)
    page.start()
    assert page.banner.isVisible()
    assert page.banner.text() == "The disk is full. Free some space."


def test_the_command_does_the_same(page, qtbot):
    change(page, qtbot, {"scheme.kind": "w8a16", "output.name": "My run"})
    qtbot.mouseClick(page.copy_button, Qt.MouseButton.LeftButton)
    words = shlex.split(QGuiApplication.clipboard().text())
    assert words == ["quantstudio", "quantize", "starter", "--scheme.kind", "w8a16", "--output.name", "My run"]
    assert page.copy_button.text() == "Copied"
    qtbot.waitUntil(lambda: page.copy_button.text() == "Copy as command", timeout=3000)


def test_recipes_are_saved_and_opened(page, qtbot, tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(file), ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(file), ""))
    change(page, qtbot, {"scheme.kind": "w4a8", "layers.keep": ["*.down_proj"]})
    saved = page.cost.recipe
    qtbot.mouseClick(page.save_button, Qt.MouseButton.LeftButton)
    assert load_recipe(file) == saved
    change(page, qtbot, {"scheme.kind": "w8a8", "layers.keep": []})
    qtbot.mouseClick(page.open_button, Qt.MouseButton.LeftButton)
    settle(page, qtbot)
    assert page.cost.recipe == saved


def test_a_bad_recipe_file_is_said_and_changes_nothing(page, qtbot, tmp_path, monkeypatch):
    file = tmp_path / "bad.toml"
    file.write_text("[scheme]\nkind = 'w9'\n")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(file), ""))
    before = page.form.values()
    page.open_recipe()
    assert "w9" in page.banner.text()
    assert page.form.values() == before


def test_a_recipe_that_cannot_be_saved_is_said(page, tmp_path, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "no" / "x.toml"), ""))
    page.save_recipe()
    assert "cannot be saved" in page.banner.text()


def test_the_model_asked_for_is_picked(page, qtbot, tmp_path, make_model):
    folder = make_model(tmp_path / "other")
    page.show_model(str(folder))
    settle(page, qtbot)
    assert page.cost.info.path == folder


def test_new_recipes_start_with_the_machine_of_the_settings(open_page):
    page = open_page(settings=Settings(device="cpu", threads=1))
    assert page.cost.recipe.machine == MachineSection(device="cpu", threads=1)


def test_the_presets_differ_for_any_model():
    made = [preset_recipe(preset, ModelSection(id="x")) for preset in Preset]
    assert [preset_of(recipe) for recipe in made] == list(Preset)


def test_changed_settings_reach_the_form_unless_the_person_chose_otherwise(page, qtbot):
    change(page, qtbot, {"machine.threads": 7})
    page.context.change_settings(Settings(device="cpu", threads=1))
    settle(page, qtbot)
    assert page.cost.recipe.machine == MachineSection(device="cpu", threads=7)
