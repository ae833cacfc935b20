"""Search results of the Hub: an item model and a delegate that paints name, facts, size and badges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QFont, QPainter
from PySide6.QtWidgets import QAbstractItemView, QListView, QStyledItemDelegate, QStyleOptionViewItem

from quantstudio.core.hub import ModelSummary
from quantstudio.core.humanize import human_bytes, human_count
from quantstudio.core.machine import Machine
from quantstudio.gui.hub_texts import summary_fit, summary_line
from quantstudio.gui.language import tr
from quantstudio.gui.model_texts import Fit
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.widgets.basics import GAP, wrapped
from quantstudio.gui.widgets.row_paint import paint_background, paint_badge, paint_line

ROW_HEIGHT, INSET = 60, 12
RIGHT_WIDTH = 230
SUMMARY_ROLE = Qt.ItemDataRole.UserRole
FIT_ROLE = Qt.ItemDataRole.UserRole + 1
HERE_ROLE = Qt.ItemDataRole.UserRole + 2
Index = QModelIndex | QPersistentModelIndex


class HubItems(QAbstractListModel):
    """Models found so far; pages are appended."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[ModelSummary] = []
        self._machine: Machine | None = None
        self._here: frozenset[str] = frozenset()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008 - Qt's signature
        return 0 if parent.isValid() else len(self._rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        row = self._rows[index.row()]
        fit = summary_fit(row, self._machine) if self._machine else None
        match role:
            case Qt.ItemDataRole.DisplayRole:
                return row.id
            case Qt.ItemDataRole.ToolTipRole:
                return wrapped(" ".join(self._sentences(row, fit)))
            case Qt.ItemDataRole.AccessibleTextRole:
                size = human_bytes(row.download_bytes) if row.download_bytes else ""
                return ", ".join(filter(None, (row.id, summary_line(row), size, *self._sentences(row, fit))))
            case _:
                return {SUMMARY_ROLE: row, FIT_ROLE: fit, HERE_ROLE: row.id in self._here}.get(role)

    def clear(self) -> None:
        """Show nothing."""
        self.beginResetModel()
        self._rows = []
        self.endResetModel()

    def append(self, models: Iterable[ModelSummary]) -> None:
        """Add a page; a model that is shown already (the Hub's order moved meanwhile) is not added again."""
        known = {row.id for row in self._rows}
        new = [model for model in models if model.id not in known]
        if new:
            self.beginInsertRows(QModelIndex(), len(self._rows), len(self._rows) + len(new) - 1)
            self._rows += new
            self.endInsertRows()

    def set_surroundings(self, machine: Machine | None, here: Iterable[str]) -> None:
        """What the badges depend on: the machine, and the models that it has already."""
        self._machine, self._here = machine, frozenset(here)
        if self._rows:
            self.dataChanged.emit(self.index(0), self.index(len(self._rows) - 1))

    def _sentences(self, row: ModelSummary, fit: Fit | None) -> list[str]:
        said = [tr(fit.sentence)] if fit else []
        if row.gated:
            said.append(tr("Gated: its owner wants you to sign in and accept a licence first."))
        if row.private:
            said.append(tr("Private: only its owner's friends may download it."))
        if row.id in self._here:
            said.append(tr("It is on this machine already."))
        return said


class HubDelegate(QStyledItemDelegate):
    """Paints a result as a row: name and facts; size and badges on the right."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802
        return QSize(0, ROW_HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        tokens = active_tokens()
        row: ModelSummary = index.data(SUMMARY_ROLE)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area: QRect = option.rect.adjusted(4, 2, -4, -2)
        paint_background(painter, area, option, tokens)
        inner = area.adjusted(INSET, 0, -INSET, 0)
        strong, small = QFont(option.font), QFont(option.font)
        strong.setWeight(QFont.Weight.DemiBold)
        small.setPointSizeF(option.font.pointSizeF() - 1)
        text = inner.adjusted(0, 0, -RIGHT_WIDTH - GAP, 0)
        paint_line(painter, _line(text, 0), row.id, strong, tokens.text)
        paint_line(painter, _line(inner.adjusted(0, 0, -110, 0), 1), summary_line(row), option.font, tokens.muted)
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        size = human_bytes(row.download_bytes) if row.download_bytes else "–"
        paint_line(painter, _line(inner, 1), size, option.font, tokens.text, right)
        badges = _line(inner, 0).adjusted(0, 1, 0, 0)
        for words, level in self._badges(row, index):
            badges.setRight(badges.right() - paint_badge(painter, badges, tr(words), level, small, tokens) - 6)
        popularity = f"{human_count(row.downloads)} ↓" if row.downloads else ""
        paint_line(painter, badges, popularity, small, tokens.muted, right)
        painter.restore()

    def _badges(self, row: ModelSummary, index: Index) -> list[tuple[str, str]]:
        fit: Fit | None = index.data(FIT_ROLE)
        found = [(fit.short, fit.level)] if fit else []
        if row.gated or row.private:
            found.append(("Gated" if row.gated else "Private", ""))
        return [("On this machine", "accent"), *found] if index.data(HERE_ROLE) else found


class HubList(QListView):
    """The view; a click or Enter opens a model."""

    def __init__(self, items: HubItems) -> None:
        super().__init__()
        self.setModel(items)
        self.setItemDelegate(HubDelegate(self))
        self.setProperty("role", "plain")
        self.setAccessibleName(tr("Models on the Hub"))
        self.setToolTip(tr("Models on the Hub. Click one to see what it is and what it needs."))
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setMouseTracking(True)
        self.setUniformItemSizes(True)


def _line(area: QRect, number: int) -> QRect:
    return QRect(area.left(), area.top() + 9 + 20 * number, area.width(), 20)
