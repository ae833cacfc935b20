"""Light and dark, made from one set of design tokens.

Qt's own colour scheme switch does nothing without a desktop behind it, so both palettes are ours: a `QPalette` for
what Qt paints by itself and a stylesheet (in `stylesheet`) for the rest. Nothing else in the window names a colour.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QGuiApplication, QPalette
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QWidget


@dataclass(frozen=True, slots=True)
class Tokens:
    """The colours of one theme, as `#rrggbb`. Text colours have a contrast of at least 4.5 on `window` and `card`."""

    name: str
    dark: bool
    window: str
    sidebar: str
    card: str
    field: str
    """Background of text boxes and lists inside a card."""
    hover: str
    pressed: str
    border: str
    border_strong: str
    """Outline of controls; contrast of 3 against `card` is not needed for decoration, but is kept near it."""
    text: str
    muted: str
    disabled: str
    accent: str
    accent_hover: str
    accent_pressed: str
    on_accent: str
    accent_soft: str
    """Background behind accent-coloured text: the chosen row, the chosen page."""
    success: str
    success_soft: str
    warning: str
    warning_soft: str
    danger: str
    danger_soft: str
    series: tuple[str, ...]
    """Colours of data, in order: the first is the original, told apart by lightness too."""


LIGHT = Tokens(
    name="light",
    dark=False,
    window="#f5f6f8",
    sidebar="#eceef2",
    card="#ffffff",
    field="#ffffff",
    hover="#f0f2f6",
    pressed="#e4e7ee",
    border="#e1e4ea",
    border_strong="#c3c9d4",
    text="#1a1d24",
    muted="#596273",
    disabled="#9aa2b1",
    accent="#3f56d9",
    accent_hover="#3449c4",
    accent_pressed="#2b3da8",
    on_accent="#ffffff",
    accent_soft="#e8ebfc",
    success="#1b7a45",
    success_soft="#e2f4e9",
    warning="#8f5a00",
    warning_soft="#fdf1d8",
    danger="#c02b32",
    danger_soft="#fde8e8",
    series=("#8a93a5", "#3f56d9", "#0f9488", "#d9702b", "#a63fc4", "#c02b60", "#5d8a1c", "#1787c2"),
)

DARK = Tokens(
    name="dark",
    dark=True,
    window="#16181d",
    sidebar="#111317",
    card="#1e2127",
    field="#17191e",
    hover="#282c34",
    pressed="#31363f",
    border="#2d313a",
    border_strong="#474d5a",
    text="#e8eaef",
    muted="#a0a8b8",
    disabled="#626a79",
    accent="#8696ff",
    accent_hover="#9aa8ff",
    accent_pressed="#b1bcff",
    on_accent="#10131f",
    accent_soft="#272d4d",
    success="#5cc98a",
    success_soft="#17301f",
    warning="#e6b34d",
    warning_soft="#362a10",
    danger="#ff8085",
    danger_soft="#3b1c1f",
    series=("#8d96a8", "#8696ff", "#35c2b2", "#f0955a", "#cf82ec", "#f2759f", "#a3cf5b", "#5bb8ef"),
)

THEMES = {tokens.name: tokens for tokens in (LIGHT, DARK)}


SYSTEM = "system"
"""The setting that follows the desktop."""

FONT_FAMILIES = ["Inter", "SF Pro Text", "Segoe UI", "Cantarell", "Noto Sans", "DejaVu Sans"]
FONT_POINTS = 10
_THEME, _ICON, _ICON_ROLE = "quantstudioTheme", "iconName", "iconRole"


def tokens_for(setting: str) -> Tokens:
    """The theme that a setting (`light`, `dark` or `system`) means on this desktop now."""
    if setting in THEMES:
        return THEMES[setting]
    return DARK if QGuiApplication.styleHints().colorScheme() is Qt.ColorScheme.Dark else LIGHT


def active_tokens() -> Tokens:
    """The theme that is on; light before any was applied."""
    app = QApplication.instance()
    name = app.property(_THEME) if app else None
    return THEMES.get(str(name), LIGHT)


def apply_theme(app: QApplication, tokens: Tokens) -> None:
    """Dress the whole application: palette, stylesheet, and the icons set through `set_icon`."""
    from quantstudio.gui.stylesheet import stylesheet

    app.setProperty(_THEME, tokens.name)
    app.setPalette(palette(tokens))
    app.setStyleSheet(stylesheet(tokens))
    for widget in app.allWidgets():
        if widget.property(_ICON):
            _tint(widget, tokens)


def set_style(app: QApplication) -> None:
    """The same widgets on every desktop, and a readable sans serif at 10 points. Once, before any window."""
    app.setStyle("Fusion")
    font = QFont(app.font())
    font.setFamilies([*FONT_FAMILIES, font.family()])
    font.setPointSize(FONT_POINTS)
    app.setFont(font)


def palette(tokens: Tokens) -> QPalette:
    """What Qt paints by itself, in this theme's colours."""
    role = QPalette.ColorRole
    colours = {
        role.Window: tokens.window,
        role.WindowText: tokens.text,
        role.Base: tokens.field,
        role.AlternateBase: tokens.window,
        role.Text: tokens.text,
        role.PlaceholderText: tokens.muted,
        role.Button: tokens.card,
        role.ButtonText: tokens.text,
        role.BrightText: tokens.danger,
        role.Highlight: tokens.accent,
        role.HighlightedText: tokens.on_accent,
        role.Link: tokens.accent,
        role.LinkVisited: tokens.accent,
        role.ToolTipBase: tokens.card,
        role.ToolTipText: tokens.text,
        role.Light: tokens.card,
        role.Midlight: tokens.hover,
        role.Mid: tokens.border_strong,
        role.Dark: tokens.border_strong,
        role.Shadow: tokens.border,
        role.Accent: tokens.accent,
    }
    found = QPalette()
    for name, colour in colours.items():
        found.setColor(name, QColor(colour))
    for name in (role.WindowText, role.Text, role.ButtonText):
        found.setColor(QPalette.ColorGroup.Disabled, name, QColor(tokens.disabled))
    return found


def set_icon(widget: QAbstractButton | QLabel, name: str, role: str = "text") -> None:
    """Give a button or label an icon in a token's colour (`text`, `muted`, `accent` …), kept right by theme changes."""
    widget.setProperty(_ICON, name)
    widget.setProperty(_ICON_ROLE, role)
    _tint(widget, active_tokens())


def _tint(widget: QWidget, tokens: Tokens) -> None:
    from quantstudio.gui.icons import icon, pixmap

    name, role = str(widget.property(_ICON)), str(widget.property(_ICON_ROLE))
    colour = asdict(tokens)[role]
    if isinstance(widget, QLabel):
        widget.setPixmap(pixmap(name, colour, max(16, widget.minimumWidth())))
    elif isinstance(widget, QAbstractButton):
        on = tokens.accent if widget.isCheckable() else ""
        widget.setIcon(icon(name, colour, on=on, disabled=tokens.disabled))
