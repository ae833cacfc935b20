"""A scroll bar that stands in the margin, so that nothing moves sideways when it comes and goes."""

from __future__ import annotations

from PySide6.QtCore import QMargins, QObject
from PySide6.QtWidgets import QLayout, QScrollArea


def keep_margin(area: QScrollArea, layout: QLayout, margins: QMargins) -> None:
    """Give `layout`, which lies in `area`, these margins, less the scroll bar's width on the right while it shows."""
    _Keeper(area, layout, margins)


class _Keeper(QObject):
    """Belongs to the layout, and so stops listening to the scroll bar when the layout goes."""

    def __init__(self, area: QScrollArea, layout: QLayout, margins: QMargins) -> None:
        super().__init__(layout)
        self._bar, self._layout, self._margins = area.verticalScrollBar(), layout, margins
        self._fit(0, self._bar.maximum())
        self._bar.rangeChanged.connect(self._fit)

    def _fit(self, _: int, highest: int) -> None:
        full = self._margins
        taken = min(self._bar.sizeHint().width(), full.right()) if highest else 0
        wanted = QMargins(full.left(), full.top(), full.right() - taken, full.bottom())
        if self._layout.contentsMargins() != wanted:
            self._layout.setContentsMargins(wanted)
