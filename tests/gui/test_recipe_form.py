"""The form is the recipe: every field has an editor, a label, a tooltip and a name, and values go through it whole."""

import html
import re

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QAbstractButton, QApplication

from quantstudio.core.fieldspec import FieldKind, FieldSpec, defaults, field_specs, flat, nested
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import parse_recipe, recipe_from_dict
from quantstudio.gui.forms.editors import FloatEditor, IntEditor, LinesEditor, ModelEditor, editor_for
from quantstudio.gui.forms.recipe_form import RecipeForm
from quantstudio.gui.main_window import SMALLEST

PATHS = [spec.path for spec in field_specs()]
RICH = parse_recipe(
    """
    [model]
    id = "some/model"
    [scheme]
    kind = "w4a8"
    group_size = 96
    symmetric = false
    [layers]
    head = "same"
    keep = ["model.layers.0.*", "*.down_proj"]
    on_misfit = "smaller"
    [measure]
    trials = 9
    text = { kind = "file", path = "/tmp/a text.txt" }
    [output]
    name = "A run"
    [machine]
    seed = 2147483647
    """
)


@pytest.fixture
def form(qtbot):
    made = RecipeForm()
    qtbot.addWidget(made)
    made.resize(520, 900)
    made.show()
    return made


@pytest.fixture(scope="module")
def untouched(qapp):
    """A form that many tests only look at."""
    made = RecipeForm()
    yield made
    made.deleteLater()


def plain(tooltip):
    return html.unescape(re.sub(r"<[^>]+>", "", tooltip))


@pytest.mark.parametrize("path", PATHS)
def test_every_field_has_an_editor_that_is_named_labelled_and_explained(untouched, path):
    spec = next(spec for spec in field_specs() if spec.path == path)
    row = untouched.row(path)
    control = row.editor.control
    assert row.label.text() == spec.title
    assert row.label.buddy() is control
    assert plain(control.toolTip()) == spec.help == plain(row.label.toolTip())
    assert control.accessibleName() == spec.title
    assert control.accessibleDescription() == spec.help
    assert control.focusPolicy() & Qt.FocusPolicy.TabFocus


@pytest.mark.parametrize("path", PATHS)
def test_every_editor_gives_back_the_default(untouched, path):
    assert untouched.values()[path] == defaults()[path]


@pytest.mark.parametrize("recipe", [Recipe(), RICH, *(preset_recipe(preset) for preset in Preset)])
def test_a_recipe_goes_through_the_form_unchanged(form, recipe):
    form.set_values(flat(recipe.model_dump(mode="json")))
    assert recipe_from_dict(nested(form.values())) == recipe


def test_set_values_says_changed_once_and_only_if_something_changed(form, qtbot):
    said = []
    form.changed.connect(lambda: said.append(1))
    form.set_values(flat(RICH.model_dump(mode="json")))
    form.set_values(flat(RICH.model_dump(mode="json")))
    assert said == [1]


def test_fields_of_another_scheme_are_hidden(form):
    assert form.row("scheme.group_size").isVisible()
    form.set_values({"scheme.kind": "w8a16"})
    assert not form.row("scheme.group_size").isVisible()
    assert not form.section("scheme").fold.isVisible(), "W8A16 has no advanced field to unfold"


def test_advanced_fields_unfold_by_mouse_and_for_an_error(form, qtbot):
    trials, head = form.row("measure.trials"), form.row("layers.on_misfit")
    assert not trials.isVisible()
    qtbot.mouseClick(form.section("measure").fold, Qt.MouseButton.LeftButton)
    assert trials.isVisible()
    qtbot.mouseClick(form.section("measure").fold, Qt.MouseButton.LeftButton)
    assert not trials.isVisible()
    form.set_problems({"layers.on_misfit": ("Two layers do not fit.", "error")})
    assert head.isVisible()


def test_a_problem_stands_beside_its_field_and_goes_away(form):
    row = form.row("scheme.group_size")
    form.set_problems({"scheme.group_size": ("96 does not divide 2 layers.", "error")})
    assert row.problem.isVisible()
    assert row.problem.text() == "96 does not divide 2 layers."
    assert row.editor.control.accessibleDescription().startswith("96 does not divide 2 layers.")
    form.set_problems({})
    assert not row.problem.isVisible()
    assert row.editor.control.accessibleDescription() == row.spec.help


def test_typing_changes_the_value(form, qtbot):
    combo = form.editor("scheme.group_size").combo
    combo.lineEdit().selectAll()
    with qtbot.waitSignal(form.changed):
        qtbot.keyClicks(combo.lineEdit(), "224")
    assert form.values()["scheme.group_size"] == 224
    with qtbot.waitSignal(form.changed):
        qtbot.mouseClick(form.editor("measure.enabled").control, Qt.MouseButton.LeftButton)
    assert form.values()["measure.enabled"] is False


def test_the_wheel_scrolls_past_an_idle_control(form):
    combo = form.editor("scheme.kind").combo
    before = combo.currentIndex()
    centre = QPointF(combo.rect().center())
    wheel = QWheelEvent(
        centre,
        QPointF(combo.mapToGlobal(centre.toPoint())),
        QPoint(0, 0),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(combo, wheel)
    assert combo.currentIndex() == before


def test_lines_leave_out_empty_ones(qtbot):
    editor = form_editor(qtbot, LinesEditor, FieldKind.LINES)
    editor.text.setPlainText(" a \n\n b\n")
    assert editor.value() == ["a", "b"]


def test_number_editors_keep_the_limits(qtbot):
    whole = form_editor(qtbot, IntEditor, FieldKind.INT, minimum=5, maximum=100)
    whole.set_value(3)
    assert whole.value() == 5
    real = form_editor(qtbot, FloatEditor, FieldKind.FLOAT, minimum=0.0, maximum=1.0)
    real.set_value(0.125)
    assert real.value() == 0.125


def test_a_model_is_picked_by_its_words_and_kept_by_its_id(qtbot):
    editor = form_editor(qtbot, ModelEditor, FieldKind.TEXT)
    editor.set_choices([("starter", "Starter model"), ("/models/a", "a")])
    editor.set_value("/models/a")
    assert editor.combo.currentText() == "a"
    editor.combo.setEditText("Starter model")
    with qtbot.waitSignal(editor.changed):
        editor.line.editingFinished.emit()
    assert editor.value() == "starter"
    editor.combo.setEditText("/models/unknown")
    editor.line.editingFinished.emit()
    assert editor.value() == "/models/unknown"


def test_an_unknown_special_editor_is_an_error():
    with pytest.raises(KeyError):
        editor_for(FieldSpec(path="a", section="a", title="A", help="B", kind=FieldKind.TEXT, default="", editor="x"))


def form_editor(qtbot, cls, kind, **limits):
    editor = cls(FieldSpec(path="a.b", section="a", title="Title", help="Help.", kind=kind, default="", **limits))
    qtbot.addWidget(editor)
    return editor


def test_the_caption_of_a_choice_says_what_was_chosen(form):
    row = form.row("scheme.kind")
    assert row.caption.text().startswith("4-bit weights, 16-bit activations")
    form.set_values(flat(preset_recipe(Preset.CLOSEST).model_dump(mode="json")))
    assert row.caption.text().startswith("8-bit weights, 16-bit activations")


def test_text_to_learn_from_is_asked_for_only_where_it_is_read(form):
    data = form.section("data")
    assert not data.isVisible()
    for values in ({"method.kind": "gptq"}, {"method.kind": "rtn", "precision.kind": "average_bits"}):
        form.set_values(values)
        assert data.isVisible()
    form.set_values({"precision.kind": "uniform"})
    assert not data.isVisible()
    form.set_problems({"data.source.path": ("There is no file.", "error")})
    assert data.isVisible(), "a problem is never hidden"


def test_training_shows_three_choices_and_folds_the_rest(form):
    form.set_values({"method.kind": "qat"})
    shown = {path for path in PATHS if path.startswith("method.") and form.row(path).isVisible()}
    assert shown == {"method.kind", "method.preset", "method.train", "method.loss"}


def pick(form, qtbot, path, value):
    combo = form.editor(path).combo
    combo.setCurrentIndex(combo.findData(value))
    combo.activated.emit(combo.currentIndex())


def test_few_bits_suggest_small_groups_until_somebody_chooses(form, qtbot):
    pick(form, qtbot, "scheme.kind", "w3a16")
    assert form.values()["scheme.group_size"] == 32
    pick(form, qtbot, "scheme.kind", "w4a16")
    assert form.values()["scheme.group_size"] == 128
    form.editor("scheme.group_size").set_value(64)
    pick(form, qtbot, "scheme.kind", "w2a16")
    assert form.values()["scheme.group_size"] == 64


@pytest.mark.parametrize("value", [0.0005, 3.5, 0.01, 1000.0, 0.0])
def test_numbers_are_shown_as_they_are(qtbot, value):
    editor = form_editor(qtbot, FloatEditor, FieldKind.FLOAT, minimum=0.0, maximum=1e6)
    editor.set_value(value)
    assert editor.value() == value
    assert float(editor.box.text().replace(",", "")) == value
    assert not editor.box.text().endswith((".0", "."))


def test_every_option_fits_into_the_narrowest_window(form):
    for fold in form.findChildren(QAbstractButton):
        if fold.text().startswith("More options"):
            fold.click()
    narrowest = SMALLEST.width() - 550  # navigation, margins, scroll bar and the panel of costs
    assert form.minimumSizeHint().width() <= narrowest
