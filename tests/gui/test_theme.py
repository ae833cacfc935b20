"""Both themes are readable, whole, and worn at once by everything."""

import pytest
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QLabel

from quantstudio.core.paths import resources
from quantstudio.gui.icons import pixmap
from quantstudio.gui.pages.catalogue import PAGES
from quantstudio.gui.stylesheet import stylesheet
from quantstudio.gui.theme import active_tokens, apply_theme, tokens_for
from quantstudio.gui.tokens import DARK, LIGHT, THEMES
from quantstudio.gui.widgets.basics import button


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in QColor(colour).getRgbF()[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture
def worn(qapp):
    """Puts the light theme back after a test that changes it."""
    yield qapp
    apply_theme(qapp, LIGHT)


@pytest.mark.parametrize("tokens", THEMES.values(), ids=THEMES)
def test_text_is_readable_wherever_it_stands(tokens):
    pairs = [(text, ground) for text in (tokens.text, tokens.muted) for ground in (tokens.window, tokens.card)]
    pairs += [(tokens.muted, tokens.sidebar), (tokens.muted, tokens.hover), (tokens.text, tokens.field)]
    pairs += [(tokens.on_accent, each) for each in (tokens.accent, tokens.accent_hover, tokens.accent_pressed)]
    pairs += [(tokens.accent, tokens.accent_soft), (tokens.danger, tokens.card), (tokens.warning, tokens.card)]
    for name in ("success", "warning", "danger"):
        soft = {"success": tokens.success_soft, "warning": tokens.warning_soft, "danger": tokens.danger_soft}[name]
        strong = {"success": tokens.success, "warning": tokens.warning, "danger": tokens.danger}[name]
        pairs += [(strong, soft), (tokens.text, soft)]
    weak = {pair: round(contrast(*pair), 2) for pair in pairs if contrast(*pair) < 4.5}
    assert not weak


@pytest.mark.parametrize("tokens", THEMES.values(), ids=THEMES)
def test_curves_stand_out_from_their_ground(tokens):
    weak = {
        colour: round(contrast(colour, tokens.card), 2) for colour in tokens.series if contrast(colour, tokens.card) < 3
    }
    assert not weak


@pytest.mark.parametrize("tokens", THEMES.values(), ids=THEMES)
def test_the_stylesheet_names_no_file_that_is_not_there(tokens):
    sheet = stylesheet(tokens)
    files = [part.split(")")[0] for part in sheet.split("url(")[1:]]
    assert files
    assert [file for file in files if not (resources() / "icons" / file.rsplit("/", 1)[-1]).is_file()] == []


def test_a_theme_is_worn_by_palette_stylesheet_and_icons(worn, qtbot):
    made = button("Add", lambda: None, icon="plus")
    qtbot.addWidget(made)
    apply_theme(worn, LIGHT)
    light = made.icon().pixmap(18, 18).toImage()
    apply_theme(worn, DARK)
    assert worn.palette().color(QPalette.ColorRole.Window) == QColor(DARK.window)
    assert DARK.card in worn.styleSheet()
    assert active_tokens() is DARK
    assert made.icon().pixmap(18, 18).toImage() != light


def test_the_window_is_really_painted_in_the_theme(worn, qtbot):
    apply_theme(worn, DARK)
    shown = QLabel("text")
    shown.setProperty("role", "page")
    qtbot.addWidget(shown)
    shown.resize(40, 40)
    shown.show()
    assert shown.grab().toImage().pixelColor(39, 39).lightness() < 80


def test_a_named_theme_wins_over_the_desktop(qapp):
    assert tokens_for("dark") is DARK
    assert tokens_for("light") is LIGHT
    assert tokens_for("system") in (LIGHT, DARK)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.id)
def test_every_page_has_an_icon_that_draws_in_any_colour(qapp, page):
    picture = pixmap(page.id, "#ff0000", 24).toImage()
    drawn = [picture.pixelColor(x, y) for x in range(24) for y in range(24) if picture.pixelColor(x, y).alpha() > 200]
    assert len(drawn) > 20
    assert all(colour.red() > 180 and colour.green() == colour.blue() == 0 for colour in drawn)
