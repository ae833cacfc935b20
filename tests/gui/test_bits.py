"""Bits of each layer: measured in a worker, aimed at, edited by mouse and key, and written into the recipe."""

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QLabel

from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_precision import AverageBits, FileSize, LargestLoss, PerLayer
from quantstudio.core.run_state import Status
from quantstudio.core.sensitivity import LayerSensitivity, Option, Sensitivity, UniformLoss, allot, predict
from quantstudio.gui.pages.quantize_page import QuantizePage
from quantstudio.gui.tokens import DARK, LIGHT
from quantstudio.gui.widgets.bits_map import BitsMap, heat_colour
from quantstudio.gui.widgets.bits_model import HEAT, BitsModel, heats, place_of
from quantstudio.gui.widgets.bits_target import AVERAGE, LOSS, SIZE, STEPS, TargetBar

NAMES = [f"model.layers.{block}.mlp.{leaf}" for block in range(3) for leaf in ("up_proj", "down_proj")]


def layer(name, kl):
    options = [Option(bits=bits, nbytes=bits * 100_000, kl=kl * (9 - bits) ** 3) for bits in (2, 3, 4, 8)]
    return LayerSensitivity(name=name, weights=800_000, options=tuple(options))


@pytest.fixture
def measured():
    losses = {name: 1e-4 * (place + 1) for place, name in enumerate([*NAMES, "model.extra"])}
    layers = tuple(layer(name, losses[name]) for name in sorted(losses))  # as files have them
    about = {"model_name": "m", "scheme": "W4A16 g128", "method": "rtn", "measured_as": "each", "tokens": 100}
    return Sensitivity(layers=layers, other_bytes=5000, **about)


@pytest.fixture
def bits_map(measured, qtbot):
    shown = BitsMap()
    qtbot.addWidget(shown)
    shown.resize(500, 300)
    model = BitsModel(measured, shown)
    model.set_bits(dict.fromkeys(model.bits, 4))
    shown.show_bits(model)
    shown.show()
    return shown


def test_blocks_are_rows_and_names_are_columns(bits_map):
    model = bits_map.model()
    heads = [model.headerData(i, Qt.Orientation.Horizontal) for i in range(model.columnCount())]
    rows = [model.headerData(i, Qt.Orientation.Vertical) for i in range(model.rowCount())]
    assert heads == ["up", "down", "extra"], "in the order in which they work, not of the alphabet"
    assert rows == ["0", "1", "2", "other"]
    assert model.layer(model.index(1, 1)).name == "model.layers.1.mlp.down_proj"
    assert model.data(model.index(0, 2)) is None, "a block without such a layer has no cell there"


@pytest.mark.parametrize(
    ("name", "block", "leaf"),
    [("gpt_neox.layers.12.attention.dense", 12, "dense"), ("lm_head", -1, "lm_head"), ("h.0.attn.c_attn", 0, "c_attn")],
)
def test_any_family_has_a_place_for_its_layers(name, block, leaf):
    place = place_of(name)
    assert (place.block, place.leaf) == (block, leaf)


def test_warmth_goes_from_the_least_to_the_most_sensitive_layer(measured, bits_map):
    found = heats(measured.layers)
    assert found[NAMES[0]] == 0
    assert found["model.extra"] == 1
    assert [found[name] for name in NAMES] == sorted(found[name] for name in NAMES)
    assert bits_map.model().data(bits_map.model().index(0, 0), HEAT) == 0


@pytest.mark.parametrize("tokens", [LIGHT, DARK])
def test_numbers_can_be_read_on_every_colour(tokens):
    def luminance(colour):
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour.getRgbF()[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    text = luminance(QColor(tokens.text))
    for heat in (0, 0.25, 0.5, 0.75, 1):
        tile = luminance(heat_colour(tokens, heat))
        assert (max(text, tile) + 0.05) / (min(text, tile) + 0.05) >= 4.5


def test_a_click_gives_the_next_bits_and_says_so(bits_map, qtbot):
    model = bits_map.model()
    index = model.index(1, 0)
    with qtbot.waitSignal(model.edited):
        qtbot.mouseClick(bits_map.viewport(), Qt.MouseButton.LeftButton, pos=bits_map.visualRect(index).center())
    assert model.bits[NAMES[2]] == 8
    assert sum(bits != 4 for bits in model.bits.values()) == 1


def test_keys_set_and_step_what_is_chosen(bits_map, qtbot):
    model = bits_map.model()
    bits_map.setCurrentIndex(model.index(0, 0))
    bits_map.selectColumn(1)
    qtbot.keyClicks(bits_map, "3")
    assert [model.bits[name] for name in NAMES] == [4, 3, 4, 3, 4, 3]
    qtbot.keyClicks(bits_map, "+")
    assert model.bits[NAMES[1]] == 4
    bits_map.setCurrentIndex(model.index(2, 0))
    qtbot.keyClick(bits_map, Qt.Key.Key_Minus)
    assert model.bits[NAMES[4]] == 3
    qtbot.keyClick(bits_map, Qt.Key.Key_Up)
    assert bits_map.currentIndex().row() == 1
    qtbot.keyClick(bits_map, Qt.Key.Key_Space)
    assert model.bits[NAMES[2]] == 8
    spoken = model.data(bits_map.currentIndex(), Qt.ItemDataRole.AccessibleTextRole)
    assert spoken.startswith("model.layers.1.mlp.up_proj: 8 bits")


@pytest.mark.parametrize(("kind", "cls"), [(AVERAGE, AverageBits), (SIZE, FileSize), (LOSS, LargestLoss)])
def test_the_slider_reaches_from_the_fewest_to_the_most_bits(measured, qtbot, kind, cls):
    bar = TargetBar()
    qtbot.addWidget(bar)
    bar.show_range(measured)
    bar.kind.setCurrentIndex(bar.kind.findData(kind))
    sizes = []
    for value in (0, STEPS // 2, STEPS):
        bar.slider.setValue(value)
        assert isinstance(bar.target(), cls)
        sizes.append(allot(measured, bar.target()).nbytes)
    assert sizes == sorted(sizes)
    assert sizes[-1] == predict(measured, dict.fromkeys([*NAMES, "model.extra"], 8)).nbytes
    assert sizes[0] == predict(measured, dict.fromkeys([*NAMES, "model.extra"], 2)).nbytes


def test_the_slider_follows_an_edit_without_undoing_it(measured, qtbot):
    bar = TargetBar()
    qtbot.addWidget(bar)
    bar.show_range(measured)
    with qtbot.assertNotEmitted(bar.moved):
        bar.show_allotment(predict(measured, dict.fromkeys(NAMES, 8) | {"model.extra": 2}))
    assert bar.target().average_bits == pytest.approx((6 * 8 + 2) / 7, abs=0.02)


@pytest.fixture
def open_dialog(make_context, qtbot):
    def make(argument="3", **values):
        page = QuantizePage(make_context("sensitivity", argument))
        qtbot.addWidget(page)
        page.show()
        page.form.set_values(values)
        qtbot.waitUntil(lambda: page._checked and page.tools.bits_button.isEnabled(), timeout=5000)
        page.tools.bits_button.click()
        return page, page.tools.last_bits

    return make


def measure(dialog, qtbot):
    dialog.measure_button.click()
    qtbot.waitUntil(lambda: dialog.sensitivity is not None, timeout=5000)


def test_measure_aim_edit_and_use(open_dialog, qtbot):
    page, dialog = open_dialog()
    assert dialog.why.isVisible()
    assert not dialog.use.isVisible()
    measure(dialog, qtbot)
    assert dialog.allotment().average_bits == 4, "it begins with what the recipe says"
    dialog.target.slider.setValue(STEPS // 4)
    aimed = dialog.allotment()
    assert dialog.numbers["bits"].text() == f"{aimed.average_bits:.2f}"
    assert 3 < aimed.average_bits < 4
    before = dialog.numbers["size"].text()
    dialog.map.selectAll()
    qtbot.keyClicks(dialog.map, "8")
    assert dialog.numbers["size"].text() != before
    assert dialog.target.value.text() == "8.00 bits"
    dialog.map.clearSelection()
    dialog.map.setCurrentIndex(dialog.model.index(0, 0))
    qtbot.keyClicks(dialog.map, "2")
    dialog.use.click()
    qtbot.waitUntil(lambda: page._checked, timeout=5000)
    precision = page.cost.recipe.precision
    assert isinstance(precision, PerLayer)
    assert precision.bits[0] == "model.layers.0.self_attn.q_proj=2"
    assert set(precision.bits[1:]) == {f"{line.split('=')[0]}=8" for line in precision.bits[1:]}


def test_a_warning_that_comes_with_the_measurement_leaves_the_map_its_room(open_dialog, measured, qtbot):
    _, dialog = open_dialog()
    better = UniformLoss(bits=4, group_size=128, nbytes=1000, kl=1e-6)  # so there is something to warn of
    dialog.show_sensitivity(measured.model_copy(update={"uniform": (better,)}))
    assert dialog.warning.isVisible()
    below = next(part for part in dialog.findChildren(QLabel) if part.text().startswith("Click a cell"))
    qtbot.waitUntil(lambda: dialog.map.geometry().bottom() < below.geometry().top(), timeout=2000)
    assert dialog.map.height() >= dialog.map.minimumHeight()


def test_a_measurement_is_kept_for_the_same_recipe_and_read_with_its_list(open_dialog, qtbot):
    page, dialog = open_dialog()
    measure(dialog, qtbot)
    dialog.map.selectAll()
    qtbot.keyClicks(dialog.map, "3")
    dialog.use.click()
    qtbot.waitUntil(lambda: page._checked, timeout=5000)
    page.tools.bits_button.click()
    again = page.tools.last_bits
    assert again.sensitivity is not None
    assert again.allotment().average_bits == 3
    again.close()
    page.form.set_values({"scheme.group_size": 64})
    qtbot.waitUntil(lambda: page._checked, timeout=5000)
    page.tools.bits_button.click()
    assert page.tools.last_bits.sensitivity is None, "other groups have to be measured anew"


def test_few_bits_are_warned_of(open_dialog, qtbot):
    _, dialog = open_dialog()
    measure(dialog, qtbot)
    dialog.target.slider.setValue(0)
    assert "fewer than this model bears" in dialog.warning.text()
    dialog.target.slider.setValue(STEPS)
    assert dialog.warning.text() == ""


def test_measuring_can_be_stopped_and_started_again(open_dialog, qtbot):
    page, dialog = open_dialog("3 wait")
    dialog.measure_button.click()
    qtbot.waitUntil(lambda: "12 of 42 layers" in dialog.waiting.text(), timeout=5000)
    page.start()
    assert "still at work" in page.banner.text()
    page.tools.bits_button.click()
    assert page.tools.last_bits is dialog, "what is at work is shown again"
    dialog.stop.click()
    qtbot.waitUntil(lambda: dialog.measure_button.isVisible(), timeout=5000)
    assert dialog.sensitivity is None


def test_nothing_is_measured_beside_a_run(open_dialog, qtbot):
    page, dialog = open_dialog("3 wait")
    queue = page.context.queue
    run_id = queue.add(Recipe(), page.context.settings.runs_path)
    qtbot.waitUntil(lambda: queue.state(run_id).status is Status.RUNNING, timeout=5000)
    dialog.measure_button.click()
    assert "A run is at work" in dialog.problem.text()
    assert not dialog._call.busy
    queue.cancel(queue.active)
    qtbot.waitUntil(lambda: queue.active is None, timeout=5000)


def test_the_dialog_grows_so_that_nothing_it_says_is_cut_off(open_dialog, qtbot):
    _, dialog = open_dialog("3 wait")
    dialog.resize(dialog.minimumSizeHint().width(), 120)
    dialog.measure_button.click()
    qtbot.waitUntil(lambda: "12 of 42 layers" in dialog.waiting.text(), timeout=5000)
    for text in (dialog.why, dialog.waiting):
        assert text.height() >= text.heightForWidth(text.width())
    dialog.stop.click()
    qtbot.waitUntil(lambda: not dialog._call.busy, timeout=5000)
