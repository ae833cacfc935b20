"""Light and dark, made from one set of design tokens.

Qt's own colour scheme switch does nothing without a desktop behind it, so both palettes are ours: a `QPalette` for
what Qt paints by itself and a stylesheet (in `stylesheet`) for the rest. Nothing else in the window names a colour.
"""

from __future__ import annotations

from dataclasses import asdict

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QGuiApplication, QPalette
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QWidget

from quantstudio.gui.stylesheet import stylesheet
from quantstudio.gui.tokens import DARK, LIGHT, THEMES, Tokens

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
