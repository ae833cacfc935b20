"""The table of a contest: ways to a model of the same size as rows, what was measured of each as columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
)

from quantstudio.core.contest import VERDICT_WORDS, Contest, Contestant, Row
from quantstudio.core.humanize import human_bytes, human_seconds
from quantstudio.core.result import Interval
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.widgets.basics import wrapped

ROW_HEIGHT, HEAD_HEIGHT, PAD = 46, 32, 8
BEST = Qt.ItemDataRole.UserRole
Index = QModelIndex | QPersistentModelIndex
NONE = "–"


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    help: str
    text: Callable[[Contest, Row], tuple[str, str]]
    """Value, and what stands below it."""


class _TwoLines(QStyledItemDelegate):
    """The value, and below it, smaller, its interval."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        tokens = active_tokens()
        box: QRect = option.rect  # type: ignore[attr-defined]
        chosen = bool(option.state & QStyle.StateFlag.State_Selected)  # type: ignore[attr-defined]
        best = bool(index.data(BEST))
        painter.save()
        if chosen or best:
            painter.fillRect(box, QColor(tokens.accent_soft if chosen else tokens.success_soft))
        big, small = _fonts(option.font, best=best)  # type: ignore[attr-defined]
        value, _, below = str(index.data()).partition("\n")
        side = Qt.AlignmentFlag(index.data(Qt.ItemDataRole.TextAlignmentRole)) | Qt.AlignmentFlag.AlignVCenter
        inner = box.adjusted(PAD, 4, -PAD, -4)
        half = inner.height() // 2
        painter.setFont(big)
        painter.setPen(QColor(tokens.text))
        painter.drawText(inner.adjusted(0, 0, 0, -half if below else 0), side, value)
        painter.setFont(small)
        painter.setPen(QColor(tokens.muted))
        painter.drawText(inner.adjusted(0, half, 0, 0), side, below)
        painter.restore()

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802 - Qt's name
        big, small = _fonts(option.font, best=bool(index.data(BEST)))  # type: ignore[attr-defined]
        value, _, below = str(index.data()).partition("\n")
        widths = (QFontMetrics(big).horizontalAdvance(value), QFontMetrics(small).horizontalAdvance(below))
        return QSize(max(widths) + 2 * PAD + 2, ROW_HEIGHT)


class ContestTable(QTableWidget):
    """As high as its rows; the recommended one is marked by a tint, a heavier face and a word."""

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setAccessibleName(tr("Ways to this size, compared"))
        self.setShowGrid(False)
        self.setItemDelegate(_TwoLines(self))
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWordWrap(True)
        self.setTabKeyNavigation(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self.horizontalHeader().setFixedHeight(HEAD_HEIGHT)
        self.horizontalHeader().setHighlightSections(False)
        self.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        for place, column in enumerate(COLUMNS):
            head = QTableWidgetItem(tr(column.title))
            head.setToolTip(wrapped(tr(column.help)))
            side = Qt.AlignmentFlag.AlignRight if place else Qt.AlignmentFlag.AlignLeft
            head.setTextAlignment(side | Qt.AlignmentFlag.AlignVCenter)
            self.setHorizontalHeaderItem(place, head)

    def show_contest(self, contest: Contest) -> None:
        """Show its rows, the recommended one chosen."""
        self.setRowCount(len(contest.rows))
        for place, row in enumerate(contest.rows):
            for number, column in enumerate(COLUMNS):
                self.setItem(place, number, _item(contest, row, column, first=number == 0))
            if row.contestant is contest.best:
                self.selectRow(place)
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """Share out the width by how much text each column has."""
        heads = self.horizontalHeader()
        columns = range(self.columnCount())
        wanted = [max(self.sizeHintForColumn(place), heads.sectionSizeHint(place)) + 2 for place in columns]
        room = self.viewport().width()
        spare = max(0, room - sum(wanted)) // max(1, len(wanted))
        for place, width in enumerate(wanted):
            self.setColumnWidth(place, width + spare)
        bar = self.horizontalScrollBar().sizeHint().height() if sum(wanted) > room else 0
        self.setFixedHeight(HEAD_HEIGHT + ROW_HEIGHT * self.rowCount() + 4 + bar)


def _item(contest: Contest, row: Row, column: _Column, *, first: bool) -> QTableWidgetItem:
    value, below = column.text(contest, row)
    item = QTableWidgetItem(f"{value}\n{below}" if below else value)
    side = Qt.AlignmentFlag.AlignLeft if first else Qt.AlignmentFlag.AlignRight
    item.setTextAlignment(side)
    item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{_title(row)}, {tr(column.title)}: {value} {below}".strip())
    item.setData(BEST, row.contestant is contest.best)
    return item


def _fonts(base: QFont, *, best: bool) -> tuple[QFont, QFont]:
    big, small = QFont(base), QFont(base)
    big.setWeight(QFont.Weight.DemiBold if best else QFont.Weight.Normal)
    small.setPointSizeF(base.pointSizeF() - 1.5)
    return big, small


def _title(row: Row) -> str:
    return tr(row.title)


def _name(contest: Contest, row: Row) -> tuple[str, str]:
    return _title(row), tr("recommended") if row.contestant is contest.best else ""


def _size(_: Contest, row: Row) -> tuple[str, str]:
    return human_bytes(row.nbytes), f"{row.bits_per_weight:.3g} {tr('bits')}"


def _perplexity(_: Contest, row: Row) -> tuple[str, str]:
    return f"{row.perplexity.value:.2f}", _range(row.perplexity, lambda value: f"{value:.1f}")


def _change(_: Contest, row: Row) -> tuple[str, str]:
    if row.contestant is Contestant.ORIGINAL:
        return NONE, ""
    return f"{_signed(row.perplexity_change.value)} %", _range(row.perplexity_change, _signed)


def _kl(_: Contest, row: Row) -> tuple[str, str]:
    if row.contestant is Contestant.ORIGINAL:
        return NONE, ""
    return _two_digits(row.kl.value), _range(row.kl, _two_digits)


def _two_digits(value: float) -> str:
    """Two that count, zeros among them: `0.010`, so that the values of a column are equally exact."""
    return f"{value:#.2g}".rstrip(".")


def _recovered(_: Contest, row: Row) -> tuple[str, str]:
    if row.recovered is None:
        return NONE, ""
    return f"{_percent(row.recovered.value)} %", _range(row.recovered, _percent)


def _verdict(contest: Contest, row: Row) -> tuple[str, str]:
    pair = contest.pair(row.contestant, contest.best) if row.contestant is not contest.best else None
    if pair is None:
        return NONE, ""
    return tr(VERDICT_WORDS[pair.verdict]), f"{_range(pair.difference, _signed)} %"


def _seconds(_: Contest, row: Row) -> tuple[str, str]:
    return (human_seconds(row.seconds), "") if row.contestant is not Contestant.ORIGINAL else (NONE, "")


def _range(interval: Interval, text: Callable[[float], str]) -> str:
    return f"{text(interval.low)} {tr('to')} {text(interval.high)}"


def _signed(share: float) -> str:
    """`+4.2`, in percent; a minus sign that is one, and none where it rounds to nothing."""
    text = f"{share * 100:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _percent(share: float) -> str:
    return f"{share * 100:.0f}".replace("-", "−")


COLUMNS = (
    _Column("Way", "How the model was made.", _name),
    _Column("Size", "All weights, and stored bits per weight of the layers.", _size),
    _Column("Perplexity", "On held-out text, with its 95 % interval. Lower is better.", _perplexity),
    _Column("Change", "Perplexity against the original's, on the same text, with its 95 % interval.", _change),
    _Column("KL, nats", "How far the next-token probabilities moved from the original's; 0 is identical.", _kl),
    _Column("Won back", "Share of what rounding to nearest loses that this way wins back.", _recovered),
    _Column("Against best", "Perplexity against the recommended way's: the verdict, and its 95 % interval.", _verdict),
    _Column("Made in", "Time it took to make, without measuring.", _seconds),
)
