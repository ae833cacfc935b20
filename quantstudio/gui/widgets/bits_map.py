"""The editable map of bits: a table whose colours say how sensitive a layer is and whose numbers how many bits it gets.

A click gives a layer its next number of bits. Keys do the same to all that is chosen: 2, 3, 4 and 8 set, + and − step,
the space bar goes round. Colour never says anything alone: the tooltip and the accessible text have the numbers.
"""

from __future__ import annotations

from PySide6.QtCore import QRect, QRectF, Qt
from PySide6.QtGui import QColor, QFont, QKeyEvent, QMouseEvent, QPainter, QPen, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableView,
    QWidget,
)

from quantstudio.core.recipe_precision import ALLOTTED_BITS
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.tokens import Tokens
from quantstudio.gui.widgets.bits_model import HEAT, BitsModel, Index

ROW, NARROWEST, WIDEST = 26, 44, 110
_STEPS = {Qt.Key.Key_Plus: 1, Qt.Key.Key_Minus: -1, Qt.Key.Key_Space: 1}


class BitsDelegate(QStyledItemDelegate):
    """A tile: warmer is more sensitive, the number is the bits, bold from 8 on."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        heat = index.data(HEAT)
        if heat is None:
            return
        tokens = active_tokens()
        box: QRect = option.rect  # type: ignore[attr-defined]
        state: QStyle.StateFlag = option.state  # type: ignore[attr-defined]
        tile = QRectF(box).adjusted(1.5, 1.5, -1.5, -1.5)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(heat_colour(tokens, heat))
        painter.drawRoundedRect(tile, 5, 5)
        if state & (QStyle.StateFlag.State_Selected | QStyle.StateFlag.State_HasFocus):
            painter.setBrush(Qt.BrushStyle.NoBrush)
            chosen = bool(state & QStyle.StateFlag.State_Selected)
            painter.setPen(QPen(QColor(tokens.accent if chosen else tokens.text), 2))
            painter.drawRoundedRect(tile, 5, 5)
        font = QFont(option.font)  # type: ignore[attr-defined]
        font.setBold(str(index.data()) == "8")
        painter.setFont(font)
        painter.setPen(QColor(tokens.text))
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, str(index.data()))
        painter.restore()


class BitsMap(QTableView):
    """The map itself; give it a model with `show_bits`."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setItemDelegate(BitsDelegate(self))
        self.setAccessibleName(tr("Bits of each layer"))
        self.setAccessibleDescription(tr("Arrow keys move; 2, 3, 4 and 8 set the bits; + and − step."))
        self.setShowGrid(False)
        self.setMouseTracking(True)
        self.setTabKeyNavigation(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        rows, columns = self.verticalHeader(), self.horizontalHeader()
        rows.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        rows.setDefaultSectionSize(ROW)
        rows.setDefaultAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        columns.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        columns.setDefaultAlignment(Qt.AlignmentFlag.AlignCenter)
        self._pressed: Index | None = None

    def show_bits(self, model: BitsModel) -> None:
        """Show and edit these."""
        self.setModel(model)
        self._fit()
        self.setCurrentIndex(model.index(0, 0))
        self.clearSelection()

    def chosen(self) -> list[Index]:
        """What keys act on: the selection, or the cell with the focus."""
        return list(self.selectedIndexes()) or [self.currentIndex()]

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        plain = event.button() == Qt.MouseButton.LeftButton and not event.modifiers()
        self._pressed = self.indexAt(event.position().toPoint()) if plain else None
        super().mousePressEvent(event)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        super().mouseReleaseEvent(event)
        here = self.indexAt(event.position().toPoint())
        model = self.model()
        if self._pressed is not None and here.isValid() and here == self._pressed and isinstance(model, BitsModel):
            model.step([here], 1)
        self._pressed = None

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        model = self.model()
        key = Qt.Key(event.key())
        if isinstance(model, BitsModel) and event.text() in [str(bits) for bits in ALLOTTED_BITS]:
            model.give(self.chosen(), int(event.text()))
        elif isinstance(model, BitsModel) and key in _STEPS:
            model.step(self.chosen(), _STEPS[key])
        else:
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """Share out the width, so that seven columns need no scrolling."""
        count = self.model().columnCount() if self.model() else 0
        if count:
            width = min(WIDEST, max(NARROWEST, self.viewport().width() // count))
            self.horizontalHeader().setDefaultSectionSize(width)


def heat_colour(tokens: Tokens, heat: float) -> QColor:
    """From the colour of a button at rest to a strong tint; text on it stays readable in both themes."""
    cool, warm = QColor(tokens.hover), QColor(tokens.series[3])
    share = 0.04 + (0.42 if tokens.dark else 0.56) * heat
    return QColor(
        round(cool.red() + share * (warm.red() - cool.red())),
        round(cool.green() + share * (warm.green() - cool.green())),
        round(cool.blue() + share * (warm.blue() - cool.blue())),
    )
