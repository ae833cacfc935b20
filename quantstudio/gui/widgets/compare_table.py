"""The table of a comparison: models side by side as columns, measured quantities as rows.

There are a dozen quantities and usually two to five models, so this way round a small window shows all of it. The
quantities stay in sight while models scroll (they are the vertical header). Good values are marked gently, by a
tint and a heavier face, never by colour alone; what is within the noise says so.
"""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, QRect, QRectF, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QResizeEvent, QWheelEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QSizePolicy,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableView,
)

from quantstudio.core.comparison import Cell, Comparison, Row
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.widgets.basics import wrapped

CELL = Qt.ItemDataRole.UserRole
ROW_HEIGHT, HEAD_HEIGHT, NAMES_WIDTH, PAD = 44, 54, 108, 8
MODEL_WIDTH = 128
_STARTS = ("load", "perplexity")
"""Quantities above which a line separates size from speed from quality."""
Index = QModelIndex | QPersistentModelIndex


class CompareModel(QAbstractTableModel):
    """One comparison. `CELL` gives a cell's `Cell`, and in the horizontal header the model's `Row`."""

    def __init__(self, group: Comparison) -> None:
        super().__init__()
        self.group = group

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008, N802 - Qt's signature
        return 0 if parent.isValid() else len(self.group.columns)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008, N802
        return 0 if parent.isValid() else len(self.group.rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        quantity, row = self.group.columns[index.row()], self.group.rows[index.column()]
        cell = row.cells[quantity.id]
        if role == CELL:
            return cell
        if role == Qt.ItemDataRole.DisplayRole:
            return cell.text
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{row_name(row)}, {tr(quantity.title)}: {cell_words(cell)}"
        if role == Qt.ItemDataRole.ToolTipRole:
            return wrapped(f"{tr(quantity.title)}: {cell_words(cell)}")
        return None

    def headerData(  # noqa: N802
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        if orientation == Qt.Orientation.Vertical:
            quantity = self.group.columns[section]
            texts = {
                Qt.ItemDataRole.DisplayRole: tr(quantity.title),
                Qt.ItemDataRole.ToolTipRole: wrapped(quantity.help),
            }
            return texts.get(Qt.ItemDataRole(role))
        row = self.group.rows[section]
        if role == CELL:
            return row
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole):
            return row_name(row)
        return wrapped(f"{row_name(row)}: {self.below(row)}") if role == Qt.ItemDataRole.ToolTipRole else None

    def below(self, row: Row) -> str:
        """The second line of a model's heading: its scheme, where its name is another, or the original's name."""
        return self.group.model_name if row.is_original else row.label if row.label != row.name else ""

    def starts_section(self, section: int) -> bool:
        """Whether a line belongs above this quantity."""
        return self.group.columns[section].id in _STARTS


def row_name(row: Row) -> str:
    """What a row is called in the window."""
    return tr("Original") if row.is_original else row.name


def cell_words(cell: Cell) -> str:
    """A cell in full: value, ratio or interval, spread, and its marks."""
    parts = [cell.text, cell.detail]
    if cell.uncertain:
        parts.append(tr("the difference to the original is within the noise"))
    if cell.best:
        parts.append(tr("the best of this table"))
    return ", ".join(part for part in parts if part)


class CellDelegate(QStyledItemDelegate):
    """The value, and below it, smaller, the ratio or the interval."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        cell: Cell = index.data(CELL)
        tokens = active_tokens()
        box: QRect = option.rect  # type: ignore[attr-defined]
        painter.save()
        model = index.model()
        if isinstance(model, CompareModel) and model.starts_section(index.row()):
            painter.setPen(QColor(tokens.border))
            painter.drawLine(box.topLeft(), box.topRight())  # as sharp as beside the quantities' names
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if cell.best:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(tokens.success_soft))
            painter.drawRoundedRect(QRectF(box).adjusted(3, 2, -3, -2), 7, 7)
        if option.state & QStyle.StateFlag.State_HasFocus:  # type: ignore[attr-defined]
            painter.setPen(QColor(tokens.accent))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(box).adjusted(3.5, 2.5, -3.5, -2.5), 7, 7)
        big, small = _fonts(option.font)  # type: ignore[attr-defined]
        big.setWeight(QFont.Weight.DemiBold if cell.best else QFont.Weight.Normal)
        inner = box.adjusted(PAD, 0, -PAD, 0)
        detail = _detail(cell)
        upper = QRect(inner.left(), box.top() + (4 if detail else 0), inner.width(), 20 if detail else box.height())
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        painter.setFont(big)
        painter.setPen(QColor(tokens.text if cell.value is not None else tokens.disabled))
        painter.drawText(upper, right, cell.text)
        painter.setFont(small)
        painter.setPen(QColor(tokens.muted))
        painter.drawText(QRect(inner.left(), box.top() + 23, inner.width(), 16), right, detail)
        painter.restore()


class ModelsHeader(QHeaderView):
    """The models: a dot in the colour of their bars, name and scheme."""

    def __init__(self, shown: CompareModel) -> None:
        super().__init__(Qt.Orientation.Horizontal)
        self._shown = shown
        self.setFixedHeight(HEAD_HEIGHT)
        self.setSectionsClickable(False)
        self.setHighlightSections(False)

    def paintSection(self, painter: QPainter, rect: QRect, index: int) -> None:  # noqa: N802
        tokens = active_tokens()
        row = self._shown.group.rows[index]
        big, small = _fonts(self.font())
        big.setWeight(QFont.Weight.DemiBold)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(rect, QColor(tokens.card))
        text = rect.adjusted(PAD + 12, 0, -PAD, 0)
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        painter.setFont(big)
        painter.setPen(QColor(tokens.text))
        name = QFontMetrics(big).elidedText(row_name(row), Qt.TextElideMode.ElideMiddle, text.width())
        painter.drawText(QRect(text.left(), rect.top() + 8, text.width(), 20), right, name)
        painter.setFont(small)
        painter.setPen(QColor(tokens.muted))
        below = QFontMetrics(small).elidedText(self._shown.below(row), Qt.TextElideMode.ElideMiddle, text.width())
        painter.drawText(QRect(text.left(), rect.top() + 28, text.width(), 16), right, below)
        series = tokens.series
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(series[0] if index == 0 else series[1 + (index - 1) % (len(series) - 1)]))
        dot = text.right() - QFontMetrics(big).horizontalAdvance(name) - 13
        painter.drawEllipse(QRectF(dot, rect.top() + 14, 8, 8))
        painter.restore()


class QuantitiesHeader(QHeaderView):
    """The measured quantities, in sections."""

    def __init__(self, shown: CompareModel) -> None:
        super().__init__(Qt.Orientation.Vertical)
        self._shown = shown
        self.setFixedWidth(NAMES_WIDTH)
        self.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.setDefaultSectionSize(ROW_HEIGHT)
        self.setSectionsClickable(False)

    def paintSection(self, painter: QPainter, rect: QRect, index: int) -> None:  # noqa: N802
        tokens = active_tokens()
        painter.save()
        painter.fillRect(rect, QColor(tokens.card))
        if self._shown.starts_section(index):
            painter.setPen(QColor(tokens.border))
            painter.drawLine(rect.topLeft(), rect.topRight())
        painter.setFont(self.font())
        painter.setPen(QColor(tokens.muted))
        title = tr(self._shown.group.columns[index].title)
        painter.drawText(rect.adjusted(2, 0, -6, 0), Qt.AlignmentFlag.AlignVCenter, title)
        painter.restore()


class CompareTable(QTableView):
    """As high as its rows, so that the page scrolls and not the table; sideways it scrolls by itself."""

    def __init__(self, group: Comparison) -> None:
        super().__init__()
        shown = CompareModel(group)
        shown.setParent(self)
        self.setModel(shown)
        self.setItemDelegate(CellDelegate(self))
        self.setVerticalHeader(QuantitiesHeader(shown))
        head = ModelsHeader(shown)
        self.setHorizontalHeader(head)
        head.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        head.setDefaultSectionSize(MODEL_WIDTH)
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setShowGrid(False)
        self.setTabKeyNavigation(False)
        self.setCornerButtonEnabled(False)
        self.setProperty("role", "plain")
        self.setAccessibleName(f"{tr('Comparison of')} {group.model_name}")
        self.setToolTip(tr("Arrow keys move from cell to cell; point at a name on the left to learn what it means."))
        self._needed = self._widest_cell(group)
        self._fit_columns()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self._fit_columns()

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        # Up and down belongs to the page; sideways (or with Shift) to the table.
        if abs(event.angleDelta().x()) > abs(event.angleDelta().y()):
            super().wheelEvent(event)
        else:
            event.ignore()

    def _widest_cell(self, group: Comparison) -> int:
        """Width that no number is cut off in: half a plus sign reads as a minus."""
        big, small = (QFontMetrics(font) for font in _fonts(self.font()))
        cells = [cell for row in group.rows for cell in row.cells.values()]
        texts = [max(big.horizontalAdvance(c.text), small.horizontalAdvance(_detail(c))) for c in cells]
        return max(MODEL_WIDTH, *(width + 2 * PAD + 1 for width in texts))

    def _fit_columns(self) -> None:
        """Share out the room, up to a width at which numbers still stand near each other."""
        count = self.model().columnCount()
        width = max(self._needed, min(220, self.viewport().width() // max(1, count)))
        self.horizontalHeader().setDefaultSectionSize(width)
        scrolls = width * count > self.viewport().width()
        self.setFixedHeight(HEAD_HEIGHT + ROW_HEIGHT * self.model().rowCount() + (16 if scrolls else 2))


def _fonts(base: QFont) -> tuple[QFont, QFont]:
    big, small = QFont(base), QFont(base)
    small.setPointSizeF(base.pointSizeF() - 1.5)
    return big, small


def _detail(cell: Cell) -> str:
    return f"≈ {cell.detail}" if cell.uncertain else cell.detail
