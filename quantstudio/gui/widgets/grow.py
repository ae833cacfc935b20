"""Dialogs grow with what they have to say: texts that wrap would be cut off in one that keeps its size.

They grow around their middle and stay on the screen: one that opens small and becomes large would otherwise end below
the screen's edge, with its buttons.
"""

from __future__ import annotations

from PySide6.QtCore import QRect, QSize
from PySide6.QtWidgets import QDialog


def grow_to_fit(dialog: QDialog) -> None:
    """Make the dialog as high as its texts need at this width; never smaller than it is."""
    layout = dialog.layout()
    if layout is None:
        return
    layout.activate()
    needed = max(layout.totalHeightForWidth(dialog.width()), layout.totalMinimumSize().height())
    if needed > dialog.height():
        resize_around(dialog, dialog.width(), needed)


def resize_around(dialog: QDialog, width: int, height: int) -> None:
    """Give the dialog this size, as far as the screen has it; one that is shown keeps its middle, on the screen."""
    room = dialog.screen().availableGeometry()
    frame = dialog.frameGeometry()
    around = frame.size() - dialog.size()
    size = QSize(width, height).boundedTo(room.size() - around)
    middle = frame.center()
    dialog.resize(size)
    if dialog.isVisible():
        box = QRect(frame.topLeft(), dialog.size() + around)
        box.moveCenter(middle)
        box.moveRight(min(box.right(), room.right()))
        box.moveBottom(min(box.bottom(), room.bottom()))
        box.moveLeft(max(box.left(), room.left()))
        box.moveTop(max(box.top(), room.top()))
        dialog.move(box.topLeft())
