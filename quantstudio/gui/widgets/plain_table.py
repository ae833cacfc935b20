"""A table of facts: read, sorted by nothing, selected for copying."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from quantstudio.gui.language import tr


class PlainTable(QTableWidget):
    """Columns by title; a title that starts with `>` stands on the right, as numbers do."""

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        super().__init__(0, len(columns))
        self._right = [column.startswith(">") for column in columns]
        self.setHorizontalHeaderLabels([tr(column.lstrip(">")) for column in columns])
        for place, right in enumerate(self._right):
            side = Qt.AlignmentFlag.AlignRight if right else Qt.AlignmentFlag.AlignLeft
            if (item := self.horizontalHeaderItem(place)) is not None:
                item.setTextAlignment(side | Qt.AlignmentFlag.AlignVCenter)
        self.setAccessibleName(tr(name))
        self.setToolTip(tr(name))
        self.setProperty("role", "plain")
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setTabKeyNavigation(False)  # Tab leaves the table; arrows move in it
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(30)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        for place in range(len(columns)):
            stretch = QHeaderView.ResizeMode.Stretch if place == 0 else QHeaderView.ResizeMode.ResizeToContents
            header.setSectionResizeMode(place, stretch)

    def show_rows(self, rows: Sequence[Sequence[str]], tips: Sequence[str] = ()) -> None:
        """Show these rows; `tips` are tooltips of whole rows."""
        self.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for place, text in enumerate(row):
                item = QTableWidgetItem(text)
                side = Qt.AlignmentFlag.AlignRight if self._right[place] else Qt.AlignmentFlag.AlignLeft
                item.setTextAlignment(side | Qt.AlignmentFlag.AlignVCenter)
                item.setToolTip(tips[number] if number < len(tips) and tips[number] else text)
                self.setItem(number, place, item)
