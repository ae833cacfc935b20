"""The list of runs: those at work and waiting first, then the history, newest first.

One model over two sources. What lives is known from its `RunState`; what is over, from the header in its folder. The
list is refreshed on the page's timer, so a flood of messages never reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QPoint, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter
from PySide6.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from quantstudio.core.run_state import RunState, Status
from quantstudio.core.run_store import RunHeader
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.tokens import Tokens
from quantstudio.gui.widgets.run_words import status_words, when

RUN = Qt.ItemDataRole.UserRole
ROW_HEIGHT = 60
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One line of the list."""

    id: str
    name: str
    label: str
    status: Status
    fraction: float = 0.0
    created: float = 0.0
    note: str = ""


def listed_runs(live: Sequence[tuple[str, RunState]], headers: Sequence[RunHeader]) -> list[ListedRun]:
    """Live runs in the queue's order, then all others as their folders tell, newest first."""
    known = {header.id: header for header in headers}
    lines = [_from_state(run_id, state, known.get(run_id)) for run_id, state in live if not state.status.final]
    active = {line.id for line in lines}
    ended = {run_id: state for run_id, state in live if state.status.final}
    lines += [_from_header(header, ended.get(header.id)) for header in headers if header.id not in active]
    return lines


def _from_state(run_id: str, state: RunState, header: RunHeader | None) -> ListedRun:
    name, label = (header.name, header.label) if header else (run_id, "")
    note = state.phases[-1].title if state.phases else ""
    return ListedRun(run_id, name, label, state.status, round(state.fraction, 3), header.created if header else 0, note)


def _from_header(header: RunHeader, ended: RunState | None) -> ListedRun:
    # A run that has just ended may have its header written a moment later.
    status = ended.status if ended is not None else header.status
    return ListedRun(header.id, header.name, header.label, status, 0.0, header.created, header.summary)


class RunListModel(QAbstractListModel):
    """Runs as rows; `RUN` gives the `ListedRun`."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._runs: list[ListedRun] = []

    @property
    def runs(self) -> list[ListedRun]:
        """The rows."""
        return self._runs

    def set_runs(self, runs: list[ListedRun]) -> None:
        """Take over a new list; rows that only changed are repainted, so that the selection stays."""
        if runs == self._runs:
            return
        same = [run.id for run in runs] == [run.id for run in self._runs]
        if same:
            changed = [row for row, (old, new) in enumerate(zip(self._runs, runs, strict=True)) if old != new]
            self._runs = runs
            self.dataChanged.emit(self.index(changed[0]), self.index(changed[-1]))
            return
        self.beginResetModel()
        self._runs = runs
        self.endResetModel()

    def row_of(self, run_id: str) -> int:
        """Row of a run, or -1."""
        return next((row for row, run in enumerate(self._runs) if run.id == run_id), -1)

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008, N802 - Qt's signature
        return 0 if parent.isValid() else len(self._runs)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        run = self._runs[index.row()]
        if role == RUN:
            return run
        if role == Qt.ItemDataRole.DisplayRole:
            return run.name
        if role == Qt.ItemDataRole.ToolTipRole:
            return "\n".join(part for part in (run.name, run.note) if part)
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{run.name}, {run.label}, {status_words(run.status)}"
        return None


class RunDelegate(QStyledItemDelegate):
    """Name and scheme, state and time; a thin bar while at work."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802
        return QSize(200, ROW_HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        run: ListedRun = index.data(RUN)
        tokens = active_tokens()
        box: QRect = option.rect.adjusted(2, 2, -2, -2)  # type: ignore[attr-defined]
        state: QStyle.StateFlag = option.state  # type: ignore[attr-defined]
        chosen = bool(state & QStyle.StateFlag.State_Selected)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        _paint_back(painter, tokens, box, state)
        inner = box.adjusted(12, 8, -10, -8)
        font = QFont(option.font)  # type: ignore[attr-defined]
        small = QFont(font)
        small.setPointSizeF(font.pointSizeF() - 1)
        font.setWeight(QFont.Weight.DemiBold)
        _paint_dot(painter, tokens, run.status, QPoint(inner.left() + 4, inner.top() + 10))
        name_box = QRect(inner.left() + 16, inner.top(), inner.width() - 16, 20)
        painter.setFont(font)
        painter.setPen(QColor(tokens.accent if chosen else tokens.text))
        name = QFontMetrics(font).elidedText(run.name, Qt.TextElideMode.ElideMiddle, name_box.width())
        painter.drawText(name_box, Qt.AlignmentFlag.AlignVCenter, name)  # names often differ at their end
        line_box = QRect(name_box.left(), inner.top() + 22, name_box.width(), 18)
        painter.setFont(small)
        painter.setPen(QColor(tokens.muted))
        painter.drawText(line_box, Qt.AlignmentFlag.AlignVCenter, _elided(_second_line(run), small, line_box.width()))
        if run.note and run.status in (Status.STARTING, Status.RUNNING, Status.CANCELLING):
            _paint_bar(painter, tokens, QRectF(line_box.left(), box.bottom() - 5, line_box.width(), 3), run.fraction)
        painter.restore()


class RunList(QListView):
    """The list itself."""

    def __init__(self) -> None:
        super().__init__()
        self.setModel(RunListModel(self))
        self.setItemDelegate(RunDelegate(self))
        self.setProperty("role", "plain")
        self.setAccessibleName(tr("Runs"))
        self.setToolTip(tr("Runs at work, waiting and finished. Arrow keys move through the list."))
        self.setUniformItemSizes(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.setMouseTracking(True)

    def runs(self) -> RunListModel:
        """Its model."""
        model = self.model()
        if not isinstance(model, RunListModel):
            raise TypeError("a run list shows a RunListModel")
        return model

    def current_id(self) -> str:
        """Id of the chosen run, or empty."""
        index = self.currentIndex()
        return str(index.data(RUN).id) if index.isValid() else ""

    def choose(self, run_id: str) -> bool:
        """Choose a run. False: it is not in the list."""
        row = self.runs().row_of(run_id)
        if row < 0:
            return False
        index = self.runs().index(row)
        if index != self.currentIndex():
            self.setCurrentIndex(index)
        return True


def _second_line(run: ListedRun) -> str:
    if run.status.final:
        # The label is often part of the name already.
        label = "" if run.label and run.label in run.name else run.label
        status = "" if run.status is Status.DONE else status_words(run.status)
        return " · ".join(part for part in (status, when(run.created, time.time()), label) if part)
    note = f"{run.note} · {run.fraction * 100:.0f} %" if run.note else ""
    return note or status_words(run.status)


def _paint_back(painter: QPainter, tokens: Tokens, box: QRect, state: QStyle.StateFlag) -> None:
    chosen, hovered = bool(state & QStyle.StateFlag.State_Selected), bool(state & QStyle.StateFlag.State_MouseOver)
    if chosen or hovered:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(tokens.accent_soft if chosen else tokens.hover))
        painter.drawRoundedRect(box, 8, 8)
    if state & QStyle.StateFlag.State_HasFocus:
        painter.setPen(QColor(tokens.accent))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(QRectF(box).adjusted(0.5, 0.5, -0.5, -0.5), 8, 8)


def _paint_dot(painter: QPainter, tokens: Tokens, status: Status, centre: QPoint) -> None:
    colours = {
        Status.DONE: tokens.success,
        Status.FAILED: tokens.danger,
        Status.RUNNING: tokens.accent,
        Status.STARTING: tokens.accent,
        Status.CANCELLING: tokens.warning,
    }
    painter.setBrush(QColor(colours[status]) if status in colours else Qt.BrushStyle.NoBrush)
    painter.setPen(QColor(colours.get(status, tokens.muted)))
    painter.drawEllipse(centre, 4, 4)


def _paint_bar(painter: QPainter, tokens: Tokens, box: QRectF, fraction: float) -> None:
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(tokens.pressed))
    painter.drawRoundedRect(box, 1.5, 1.5)
    painter.setBrush(QColor(tokens.accent))
    painter.drawRoundedRect(box.adjusted(0, 0, (min(1.0, fraction) - 1) * box.width(), 0), 1.5, 1.5)


def _elided(text: str, font: QFont, width: int) -> str:
    return QFontMetrics(font).elidedText(text, Qt.TextElideMode.ElideRight, width)
