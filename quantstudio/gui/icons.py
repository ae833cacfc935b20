"""Our line icons, drawn in any colour.

The files in `resources/icons` use `currentColor`; it is replaced before drawing, so one file serves both themes and
every state.
"""

from __future__ import annotations

from functools import cache

from PySide6.QtCore import QByteArray, QRectF, QSize, Qt
from PySide6.QtGui import QGuiApplication, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from quantstudio.core.paths import resources

ICON_SIZE = 18
"""Edge of an icon in a button, in device-independent pixels."""


def icon(name: str, colour: str, *, on: str = "", disabled: str = "", size: int = ICON_SIZE) -> QIcon:
    """The icon in `colour`; in `on` when its button is checked and in `disabled` when its button is off."""
    found = QIcon(pixmap(name, colour, size))
    if on:
        found.addPixmap(pixmap(name, on, size), QIcon.Mode.Normal, QIcon.State.On)
    if disabled:
        found.addPixmap(pixmap(name, disabled, size), QIcon.Mode.Disabled)
    return found


def pixmap(name: str, colour: str, size: int = ICON_SIZE) -> QPixmap:
    """The icon as a picture of `size` device-independent pixels, sharp on the densest screen."""
    scale = max((screen.devicePixelRatio() for screen in QGuiApplication.screens()), default=1.0)
    picture = QPixmap(QSize(round(size * scale), round(size * scale)))
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    QSvgRenderer(QByteArray(_source(name).replace("currentColor", colour).encode())).render(
        painter, QRectF(picture.rect())
    )
    painter.end()
    picture.setDevicePixelRatio(scale)
    return picture


@cache
def _source(name: str) -> str:
    return (resources() / "icons" / f"{name}.svg").read_text(encoding="utf-8")
