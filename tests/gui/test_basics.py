"""The small parts: texts that fit, break and elide."""

import re

import pytest
from PySide6.QtWidgets import QDialog, QVBoxLayout, QWidget

from quantstudio.gui.theme import apply_theme
from quantstudio.gui.tokens import LIGHT
from quantstudio.gui.widgets.basics import (
    MARGIN,
    Banner,
    ElidedLabel,
    EmptyState,
    breakable,
    button,
    label,
    page_layout,
    typeset,
    wrapped,
)
from quantstudio.gui.widgets.grow import grow_to_fit, resize_around

LONG = "Add a folder with config.json and .safetensors files, or drop one here. Models that other tools downloaded " * 2


@pytest.fixture(autouse=True)
def _dressed(qapp):
    apply_theme(qapp, LIGHT)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("95 % sure", 1),
        ("16.8 MB → 5 kB", 3),
        ("34.10 → 35.53", 1),
        ("93.7 tok/s in 80 ms", 2),
        ("3 models", 0),
        ("64 Bs", 0),
        ("a % b", 0),
    ],
)
def test_units_stay_with_their_numbers(text, units):
    set_apart = typeset(text)
    assert set_apart.count("\u00a0") == units
    assert set_apart.replace("\u00a0", " ") == text


def test_an_empty_page_shows_its_whole_text(qtbot):
    empty = EmptyState("models", "Nothing here", LONG)
    qtbot.addWidget(empty)
    empty.resize(800, 600)
    empty.show()
    assert empty.text.height() >= empty.text.heightForWidth(empty.text.width())


def test_a_banner_in_a_narrow_place_shows_long_layer_names_whole(qtbot):
    holder = QWidget()
    qtbot.addWidget(holder)
    banner = Banner()
    layout = QVBoxLayout(holder)
    layout.addWidget(banner)
    layout.addStretch(1)
    name = "model.layers.0–63.self_attn.q_proj, model.layers.0–63.self_attn.k_proj: in groups of 160."
    banner.say(name, "warning")
    holder.resize(220, 400)
    holder.show()
    assert banner.text() == banner.accessibleName() == name
    label = banner._text
    widths = [label.fontMetrics().horizontalAdvance(part) for part in re.split("[ \u200b]", label.text())]
    assert max(widths) < label.width(), "Qt cuts off what it cannot break"
    assert label.height() >= label.heightForWidth(label.width())
    banner.say("")
    assert not banner.isVisible()


def test_breaks_are_put_into_names_and_not_between_words():
    assert breakable("a.b c. d 1.5") == "a.\u200bb c. d 1.5"


def test_a_long_line_is_elided_and_told_by_the_tooltip(qtbot):
    line = ElidedLabel(LONG)
    qtbot.addWidget(line)
    line.resize(120, 20)
    line.show()
    assert line.text().endswith("…")
    assert line.toolTip() == line.accessibleName() == line.whole_text() == LONG
    line.setText("short")
    assert (line.text(), line.toolTip()) == ("short", "")


def test_long_tooltips_break_into_lines_and_markup_is_shown_as_it_is():
    assert wrapped("<b>") == "&lt;b&gt;"
    assert wrapped("a" * 100).startswith("<p")


def test_a_button_is_named_without_its_mnemonic(qtbot):
    pressed = []
    made = button("&Open", lambda: pressed.append(1), tooltip="Open a file.")
    qtbot.addWidget(made)
    assert (made.accessibleName(), made.toolTip()) == ("Open", "Open a file.")
    made.click()
    assert pressed == [1]


def test_a_page_does_not_spread_over_a_huge_screen(qtbot):
    page, inside = QWidget(), QWidget()
    qtbot.addWidget(page)
    page_layout(page, 1000).addWidget(inside)
    page.resize(3840, 2160)
    page.show()
    assert inside.width() == 1000
    page.resize(800, 600)
    assert inside.width() >= 800 - 2 * MARGIN - 1, "but takes what a small one has"


def test_a_dialog_grows_around_its_middle_and_stays_on_the_screen(qtbot):
    dialog = QDialog()
    qtbot.addWidget(dialog)
    room = dialog.screen().availableGeometry()
    dialog.resize(200, 100)
    dialog.show()
    dialog.move(room.center().x() - 100, room.center().y() - 50)
    middle = dialog.geometry().center()
    resize_around(dialog, 400, 300)
    assert (dialog.geometry().center() - middle).manhattanLength() <= 2, "half a pixel each way may be lost"
    dialog.move(room.right() - 300, room.bottom() - 200)
    resize_around(dialog, 500, 600)
    assert room.contains(dialog.frameGeometry())
    resize_around(dialog, room.width() + 500, room.height() + 500)
    assert room.contains(dialog.frameGeometry())


def test_a_text_that_comes_makes_a_dialog_grow_downwards(qtbot):
    dialog = QDialog()
    qtbot.addWidget(dialog)
    layout = QVBoxLayout(dialog)
    text = label("", wrap=True)
    layout.addWidget(text)
    room = dialog.screen().availableGeometry()
    dialog.resize(200, 60)
    dialog.show()
    dialog.move(room.left() + 50, room.top() + 50)
    text.setText(LONG)
    grow_to_fit(dialog)
    assert (dialog.y(), dialog.height() > 60) == (room.top() + 50, True)
    dialog.move(room.left() + 50, room.bottom() - 80)
    text.setText(LONG * 2)
    grow_to_fit(dialog)
    assert room.contains(dialog.frameGeometry())
