"""The small parts that every page is made of, so that pages look alike without trying.

Functions rather than classes where a plain Qt widget with a role will do; the stylesheet knows the roles.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QFontMetrics, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from quantstudio.gui.icons import ICON_SIZE
from quantstudio.gui.language import tr
from quantstudio.gui.theme import set_icon

GAP = 8
"""Between things that belong together."""
SPACE = 16
"""Between cards, and inside them."""
MARGIN = 24
"""Around a page."""
WHOLE_WIDTH = (1 << 24) - 1
"""No limit: the largest width that Qt knows."""
EMPTY_WIDTH = 420
_LEVELS = {
    "info": ("info", "accent"),
    "success": ("check", "success"),
    "warning": ("warning", "warning"),
    "error": ("error", "danger"),
}
"""Level of a banner → its icon and the icon's colour."""


def label(text: str = "", role: str = "", *, wrap: bool = False) -> QLabel:
    """A text in the look of `role`: title, heading, strong, muted, caption, number, problem. Never rich text."""
    made = QLabel(tr(text))
    made.setTextFormat(Qt.TextFormat.PlainText)
    if role:
        made.setProperty("role", role)
    if wrap:
        made.setWordWrap(True)
        made.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
    return made


def button(
    text: str, clicked: Callable[[], object], *, icon: str = "", variant: str = "", tooltip: str = ""
) -> QPushButton:
    """A push button. `variant`: primary (one per page), ghost, danger, or empty; `tooltip` defaults to the text."""
    text, tooltip = tr(text), tr(tooltip)
    made = QPushButton(text)
    made.setProperty("variant", variant)
    made.setToolTip(wrapped(tooltip or text.replace("&", "")))
    made.setAccessibleName(text.replace("&", ""))
    made.setAccessibleDescription(tooltip)
    made.setCursor(Qt.CursorShape.PointingHandCursor)
    if icon:
        role = {"primary": "on_accent", "danger": "danger"}.get(variant, "text")
        set_icon(made, icon, role)
        made.setIconSize(QSize(ICON_SIZE, ICON_SIZE))
    made.clicked.connect(lambda: clicked())
    return made


def wrapped(text: str) -> str:
    """A tooltip's text so that Qt breaks it into lines; plain tooltips run on in one."""
    return f"<p style='white-space: normal'>{html.escape(text)}</p>" if len(text) > 60 else html.escape(text)


def breakable(text: str) -> str:
    """The text with places to break in long dotted names (not in numbers), which Qt would cut off otherwise."""
    return re.sub(r"(?<=\w)([._/])(?=[^\W\d])", "\\1\u200b", text)


def typeset(text: str) -> str:
    """The text with units that stay in the line of their numbers, and arrows that do not begin a line."""
    return re.sub(r"(?<=\d) (?=(?:%|[kMGT]?B|m?s|min|tok/s|nats)(?!\w))", "\u00a0", text).replace(" →", "\u00a0→")


def icon_label(name: str, role: str = "muted", size: int = ICON_SIZE) -> QLabel:
    """An icon by itself, for decoration: screen readers skip it."""
    made = QLabel()
    made.setFixedSize(size, size)
    set_icon(made, name, role)
    return made


def row(*parts: QWidget | None, spacing: int = GAP) -> QHBoxLayout:
    """Widgets side by side; None is a stretch (a None at the end costs nothing)."""
    layout = QHBoxLayout()
    _fill(layout, parts, spacing)
    return layout


def column(*parts: QWidget | None, spacing: int = GAP) -> QVBoxLayout:
    """Widgets one below the other; None is a stretch."""
    layout = QVBoxLayout()
    _fill(layout, parts, spacing)
    return layout


def _fill(layout: QHBoxLayout | QVBoxLayout, parts: tuple[QWidget | None, ...], spacing: int) -> None:
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    for part in parts:
        if part is None:
            layout.addStretch(1)
        else:
            layout.addWidget(part)


def page_layout(page: QWidget, widest: int) -> QVBoxLayout:
    """The layout of a page: margins, and content that stays on the left and no wider than `widest` on huge screens."""
    inside = QWidget()
    inside.setMaximumWidth(widest)
    outer = QHBoxLayout(page)
    outer.setContentsMargins(MARGIN, 20, MARGIN, 0)
    outer.addWidget(inside, 1000)
    outer.addStretch(1)
    layout = QVBoxLayout(inside)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(SPACE)
    return layout


def restyle(widget: QWidget, name: str, value: object) -> None:
    """Change a property that the stylesheet looks at, and have it look again."""
    if widget.property(name) != value:
        widget.setProperty(name, value)
        widget.style().unpolish(widget)
        widget.style().polish(widget)


class Card(QFrame):
    """A rounded panel. `body` is its layout; a heading is optional."""

    def __init__(self, heading: str = "", *, spacing: int = 12) -> None:
        super().__init__()
        self.setProperty("role", "card")
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
        self.body.setSpacing(spacing)
        if heading:
            self.body.addWidget(label(heading, "heading"))


class PageHeader(QWidget):
    """A page's title and one line about it, with room for its actions on the right."""

    def __init__(self, title: str, subtitle: str, *actions: QWidget) -> None:
        super().__init__()
        self.subtitle = ElidedLabel(tr(subtitle), "muted")
        texts = column(label(title, "title"), self.subtitle, spacing=2)
        layout = row(spacing=GAP)
        layout.addLayout(texts, 1)
        for action in actions:
            layout.addWidget(action, 0, Qt.AlignmentFlag.AlignVCenter)
        self.setLayout(layout)


class ElidedLabel(QLabel):
    """One line that ends in … where there is no room; the whole text is in the tooltip then, or what else there is."""

    def __init__(self, text: str = "", role: str = "", *, mode: Qt.TextElideMode = Qt.TextElideMode.ElideRight) -> None:
        super().__init__()
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setProperty("role", role)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._whole, self._detail, self._mode = text, "", mode
        self.setText(text)

    def setText(self, text: str) -> None:  # noqa: N802 - Qt's name
        self._whole = text
        self.setAccessibleName(text)
        self._fit()

    def set_detail(self, text: str) -> None:
        """What a person reads who points at it, in place of the whole text."""
        self._detail = text
        self.setAccessibleDescription(text)

    def whole_text(self) -> str:
        """The text without …"""
        return self._whole

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        self._fit()  # the font may have come from the stylesheet since
        super().paintEvent(event)

    def _fit(self) -> None:
        shown = QFontMetrics(self.font()).elidedText(self._whole, self._mode, max(0, self.width()))
        if shown != self.text():
            super().setText(shown)
        whole = self._whole if shown != self._whole else ""
        tip = "".join(f"<p>{html.escape(line)}</p>" for line in self._detail.split("\n") if line) or whole
        if tip != self.toolTip():
            self.setToolTip(tip)


class EmptyState(QWidget):
    """What a page says while it has nothing to show: what would be here, and the button that brings it."""

    def __init__(self, icon: str, title: str, text: str, *actions: QWidget) -> None:
        super().__init__()
        self.title = label(title, "heading")
        self.text = label(text, "muted", wrap=True)
        for part in (self.title, self.text):
            part.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.text.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Preferred)
        self.text.setFixedWidth(EMPTY_WIDTH)
        inner = QVBoxLayout(self)
        inner.setSpacing(GAP)
        inner.addStretch(2)
        inner.addWidget(icon_label(icon, "muted", 40), 0, Qt.AlignmentFlag.AlignCenter)
        inner.addSpacing(GAP)
        inner.addWidget(self.title)
        inner.addLayout(row(None, self.text, None))  # an aligned widget would not get the height of its lines
        inner.addSpacing(GAP)
        if actions:
            inner.addLayout(row(None, *actions, None))
        inner.addStretch(3)


class Banner(QFrame):
    """A coloured strip with an icon: something to know (`info`, `success`, `warning`, `error`)."""

    def __init__(self, text: str = "", level: str = "info") -> None:
        super().__init__()
        self._icon = icon_label("info")
        self._text = label(wrap=True)
        self._text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(12, 10, 12, 10)
        layout.setSpacing(10)
        layout.addWidget(self._icon, 0, Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self._text, 1)
        self.say(text, level)

    def say(self, text: str, level: str = "info") -> None:
        """Show this; nothing and no strip when `text` is empty."""
        self._said = text
        self._text.setText(breakable(text))
        self.setAccessibleName(text)
        restyle(self, "role", level)
        set_icon(self._icon, *_LEVELS[level])
        self.setVisible(bool(text))

    def text(self) -> str:
        """What it says."""
        return self._said


def badge(text: str, level: str = "") -> QLabel:
    """A small rounded tag. `level`: accent, success, warning, error, or empty for grey."""
    made = label(text, "badge")
    made.setProperty("level", level)
    made.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
    return made
