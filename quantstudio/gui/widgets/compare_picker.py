"""The finished runs with a box to tick beside each."""

from __future__ import annotations

import time
from collections.abc import Iterable

from PySide6.QtCore import (
    QAbstractItemModel,
    QEvent,
    QModelIndex,
    QPersistentModelIndex,
    QPointF,
    QRect,
    QRectF,
    QSignalBlocker,
    QSize,
    Qt,
)
from PySide6.QtGui import QColor, QFont, QFontMetrics, QKeyEvent, QMouseEvent, QPainter, QPen, QPolygonF
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QStyle, QStyledItemDelegate, QStyleOptionViewItem

from quantstudio.core.run_store import RunHeader
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.tokens import Tokens
from quantstudio.gui.widgets.basics import wrapped
from quantstudio.gui.widgets.run_words import when

ID, SECOND = Qt.ItemDataRole.UserRole, Qt.ItemDataRole.UserRole + 1
ROW_HEIGHT, BOX = 52, 16
Index = QModelIndex | QPersistentModelIndex


class PickDelegate(QStyledItemDelegate):
    """A box, a name, and what the run was; the whole row ticks."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802 - Qt's name
        return QSize(180, ROW_HEIGHT)

    def editorEvent(  # noqa: N802
        self, event: QEvent, model: QAbstractItemModel, option: QStyleOptionViewItem, index: Index
    ) -> bool:
        pressed = (
            isinstance(event, QMouseEvent)
            and event.type() == QEvent.Type.MouseButtonRelease
            and event.button() == Qt.MouseButton.LeftButton
        )
        keyed = isinstance(event, QKeyEvent) and event.key() in (Qt.Key.Key_Space, Qt.Key.Key_Select)
        if not (pressed or keyed):
            return False
        ticked = Qt.CheckState(index.data(Qt.ItemDataRole.CheckStateRole)) == Qt.CheckState.Checked
        state = Qt.CheckState.Unchecked if ticked else Qt.CheckState.Checked
        return model.setData(index, state, Qt.ItemDataRole.CheckStateRole)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        tokens = active_tokens()
        box: QRect = option.rect.adjusted(2, 2, -2, -2)  # type: ignore[attr-defined]
        state: QStyle.StateFlag = option.state  # type: ignore[attr-defined]
        ticked = Qt.CheckState(index.data(Qt.ItemDataRole.CheckStateRole)) == Qt.CheckState.Checked
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if state & QStyle.StateFlag.State_MouseOver:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(tokens.hover))
            painter.drawRoundedRect(box, 8, 8)
        if state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(QColor(tokens.accent))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(box).adjusted(0.5, 0.5, -0.5, -0.5), 8, 8)
        _paint_box(painter, tokens, QRectF(box.left() + 8, box.top() + 7, BOX, BOX), ticked=ticked)
        font = QFont(option.font)  # type: ignore[attr-defined]
        small = QFont(font)
        small.setPointSizeF(font.pointSizeF() - 1)
        font.setWeight(QFont.Weight.DemiBold if ticked else QFont.Weight.Normal)
        text = QRect(box.left() + 34, box.top() + 5, box.width() - 36, 20)
        for line, face, colour, elide in (  # names often differ at their end
            (str(index.data()), font, tokens.text, Qt.TextElideMode.ElideMiddle),
            (str(index.data(SECOND)), small, tokens.muted, Qt.TextElideMode.ElideRight),
        ):
            painter.setFont(face)
            painter.setPen(QColor(colour))
            words = QFontMetrics(face).elidedText(line, elide, text.width())
            painter.drawText(text, Qt.AlignmentFlag.AlignVCenter, words)
            text.translate(0, 20)
        painter.restore()


class RunPicker(QListWidget):
    """Ticks are kept by id when the list is filled again."""

    def __init__(self) -> None:
        super().__init__()
        self.setItemDelegate(PickDelegate(self))
        self.setProperty("role", "plain")
        self.setAccessibleName(tr("Finished runs"))
        self.setToolTip(tr("Tick the runs to compare. The space bar ticks the current one, Ctrl+A all."))
        self.setUniformItemSizes(True)
        self.setMouseTracking(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def fill(self, headers: Iterable[RunHeader]) -> None:
        """Show these runs, newest first, ticks kept. Silent: whoever fills looks at `picked` afterwards."""
        ticked, now = set(self.picked()), time.time()
        blocker = QSignalBlocker(self)
        self.clear()
        for header in headers:
            item = QListWidgetItem(header.name)
            label = "" if header.label in header.name else header.label
            model = "" if header.model in header.name else header.model
            second = " · ".join(part for part in (model, when(header.created, now), label) if part)
            item.setData(ID, header.id)
            item.setData(SECOND, second)
            item.setToolTip(wrapped(f"{header.name}: {header.summary}"))
            item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{header.name}, {second}")
            state = Qt.CheckState.Checked if header.id in ticked else Qt.CheckState.Unchecked
            item.setCheckState(state)
            self.addItem(item)
        blocker.unblock()

    def picked(self) -> list[str]:
        """Ids of the ticked runs, oldest first."""
        items = [self.item(row) for row in range(self.count())]
        return [str(item.data(ID)) for item in reversed(items) if item.checkState() == Qt.CheckState.Checked]

    def pick(self, run_ids: Iterable[str]) -> None:
        """Tick these and no others. Silent, as `fill` is."""
        wanted = set(run_ids)
        blocker = QSignalBlocker(self)
        for row in range(self.count()):
            item = self.item(row)
            state = Qt.CheckState.Checked if item.data(ID) in wanted else Qt.CheckState.Unchecked
            item.setCheckState(state)
        blocker.unblock()
        self.viewport().update()

    def pick_all(self) -> None:
        """Tick every run."""
        self.pick(str(self.item(row).data(ID)) for row in range(self.count()))


def _paint_box(painter: QPainter, tokens: Tokens, box: QRectF, *, ticked: bool) -> None:
    painter.setPen(QPen(QColor(tokens.accent if ticked else tokens.border_strong), 1.2))
    painter.setBrush(QColor(tokens.accent if ticked else tokens.field))
    painter.drawRoundedRect(box, 4, 4)
    if ticked:
        painter.setPen(QPen(QColor(tokens.on_accent), 2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        corners = ((0.25, 0.53), (0.43, 0.71), (0.76, 0.33))
        painter.drawPolyline(QPolygonF([box.topLeft() + _scaled(box, x, y) for x, y in corners]))


def _scaled(box: QRectF, x: float, y: float) -> QPointF:
    return QPointF(box.width() * x, box.height() * y)
