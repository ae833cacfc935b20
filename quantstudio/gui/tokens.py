"""The colours of the window: one set of names, a light and a dark set of values. Nothing else names a colour."""

from __future__ import annotations

from dataclasses import dataclass


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
