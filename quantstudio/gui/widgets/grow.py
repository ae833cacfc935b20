"""Dialogs grow with what they have to say: texts that wrap would be cut off in one that keeps its size.

One that becomes another (a question, then its answer) grows around its middle; one in which a text has come grows
downwards, so that nothing moves under the mouse. Both stay on the screen, with their buttons.
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
        before = dialog.frameGeometry()
        _resize(dialog, dialog.width(), needed)
        _place(dialog, dialog.frameGeometry(), before.x(), before.y())


def resize_around(dialog: QDialog, width: int, height: int) -> None:
    """Give the dialog this size, as far as the screen has it; one that is shown keeps its middle."""
    middle = dialog.frameGeometry().center()
    _resize(dialog, width, height)
    box = dialog.frameGeometry()
    box.moveCenter(middle)
    _place(dialog, box, box.x(), box.y())


def _resize(dialog: QDialog, width: int, height: int) -> None:
    around = dialog.frameGeometry().size() - dialog.size()
    dialog.resize(QSize(width, height).boundedTo(dialog.screen().availableSize() - around))


def _place(dialog: QDialog, box: QRect, x: int, y: int) -> None:
    """At `x`, `y`, or as near to it as the whole of `box` is on the screen."""
    if dialog.isVisible():
        room = dialog.screen().availableGeometry()
        left = max(room.left(), min(x, room.right() + 1 - box.width()))
        top = max(room.top(), min(y, room.bottom() + 1 - box.height()))
        if (left, top) != (dialog.x(), dialog.y()):
            dialog.move(left, top)
