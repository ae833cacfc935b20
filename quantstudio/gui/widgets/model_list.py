"""The list of models: an item model and a delegate that paints two lines, a size and a badge for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QColor, QFont, QPainter
from PySide6.QtWidgets import QAbstractItemView, QListView, QStyledItemDelegate, QStyleOptionViewItem

from quantstudio.core.humanize import human_bytes
from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.gui.icons import pixmap
from quantstudio.gui.language import tr
from quantstudio.gui.model_texts import KINDS, Fit, summary
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.tokens import Tokens
from quantstudio.gui.widgets.row_paint import paint_background, paint_badge, paint_line

ROW_HEIGHT, TILE, INSET, GAP = 64, 36, 12, 12
RIGHT_WIDTH = 116
MODEL_ROLE = Qt.ItemDataRole.UserRole
FIT_ROLE = Qt.ItemDataRole.UserRole + 1
_ICONS = {ModelKind.STARTER: "quantstudio", ModelKind.CACHE: "save", ModelKind.RUN: "quantize"}
Index = QModelIndex | QPersistentModelIndex


class ModelItems(QAbstractListModel):
    """Found models with their fits, filtered by a text."""

    def __init__(self) -> None:
        super().__init__()
        self._all: list[FoundModel] = []
        self._shown: list[FoundModel] = []
        self._fits: Mapping[str, Fit] = {}
        self._filter = ""

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008 - Qt's signature
        return 0 if parent.isValid() else len(self._shown)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        model = self._shown[index.row()]
        fit = self._fits.get(model.id)
        match role:
            case Qt.ItemDataRole.DisplayRole:
                return model.name
            case Qt.ItemDataRole.ToolTipRole:
                return str(model.path)
            case Qt.ItemDataRole.AccessibleTextRole:
                size = human_bytes(model.info.nbytes) if model.info else ""
                return ", ".join(filter(None, (model.name, summary(model), size, fit.sentence if fit else "")))
            case _:
                return {MODEL_ROLE: model, FIT_ROLE: fit}.get(role)

    def set_models(self, models: Sequence[FoundModel]) -> None:
        """Show these models."""
        self._all = list(models)
        self._refilter()

    def set_fits(self, fits: Mapping[str, Fit]) -> None:
        """Show how the models fit."""
        self._fits = fits
        if self._shown:
            self.dataChanged.emit(self.index(0), self.index(len(self._shown) - 1))

    def set_filter(self, text: str) -> None:
        """Show only models whose name, architecture or place holds this text."""
        self._filter = text.strip().lower()
        self._refilter()

    def row_of(self, model_id: str) -> int:
        """The row that shows this model; -1 when none does."""
        return next((row for row, model in enumerate(self._shown) if model.id == model_id), -1)

    def fit_of(self, model_id: str) -> Fit | None:
        """How a model fits; None while nothing is known."""
        return self._fits.get(model_id)

    def _refilter(self) -> None:
        self.beginResetModel()
        self._shown = [model for model in self._all if self._filter in _searched(model)]
        self.endResetModel()


class ModelDelegate(QStyledItemDelegate):
    """Paints a model as a row: tile, name, summary; size and badge on the right."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802
        return QSize(0, ROW_HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        tokens = active_tokens()
        model: FoundModel = index.data(MODEL_ROLE)
        fit: Fit | None = index.data(FIT_ROLE)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area: QRect = option.rect.adjusted(4, 2, -4, -2)
        paint_background(painter, area, option, tokens)
        inner = area.adjusted(INSET, 0, -INSET, 0)
        _paint_tile(painter, inner, model, tokens)
        _paint_texts(painter, inner.adjusted(TILE + GAP, 0, -RIGHT_WIDTH, 0), model, option.font, tokens)
        _paint_right(painter, inner, model, fit, option.font, tokens)
        painter.restore()


class ModelList(QListView):
    """The view: one row a model, full width, keyboard and all."""

    def __init__(self, items: ModelItems) -> None:
        super().__init__()
        self.setModel(items)
        self.setItemDelegate(ModelDelegate(self))
        self.setProperty("role", "plain")
        self.setAccessibleName(tr("Models on this machine"))
        self.setToolTip(tr("The models on this machine. Enter quantizes the one that is marked."))
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setMouseTracking(True)
        self.setUniformItemSizes(True)


def _searched(model: FoundModel) -> str:
    return f"{model.name} {model.path} {summary(model)} {KINDS[model.kind]}".lower()


def _paint_tile(painter: QPainter, area: QRect, model: FoundModel, tokens: Tokens) -> None:
    tile = QRect(area.left(), area.center().y() - TILE // 2, TILE, TILE)
    name, colour = _ICONS.get(model.kind, "folder"), tokens.accent
    if model.info is None:
        name, colour = "warning", tokens.danger
    if name == "quantstudio":
        painter.drawPixmap(tile, pixmap(name, colour, TILE))
        return
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(tokens.danger_soft if model.info is None else tokens.accent_soft))
    painter.drawRoundedRect(tile, 8, 8)
    inner = tile.adjusted(8, 8, -8, -8)
    painter.drawPixmap(inner, pixmap(name, colour, inner.width()))


def _paint_texts(painter: QPainter, area: QRect, model: FoundModel, font: QFont, tokens: Tokens) -> None:
    strong = QFont(font)
    strong.setWeight(QFont.Weight.DemiBold)
    top = QRect(area.left(), area.top() + 10, area.width(), 20)
    bottom = QRect(area.left(), area.top() + 31, area.width(), 20)
    paint_line(painter, top, model.name, strong, tokens.text)
    if model.info is None:
        bottom.setWidth(area.width() + RIGHT_WIDTH)  # a sentence, and nothing stands beside it
    paint_line(painter, bottom, summary(model), font, tokens.danger if model.info is None else tokens.muted)


def _paint_right(
    painter: QPainter, area: QRect, model: FoundModel, fit: Fit | None, font: QFont, tokens: Tokens
) -> None:
    small = QFont(font)
    small.setPointSizeF(font.pointSizeF() - 1)
    right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
    column = QRect(area.right() - RIGHT_WIDTH, area.top() + 10, RIGHT_WIDTH, 20)
    if model.info is None:
        paint_line(painter, column, tr("Cannot be used"), small, tokens.danger, right)
        return
    paint_line(painter, column, human_bytes(model.info.nbytes), font, tokens.text, right)
    column.translate(0, 21)
    if fit is not None:
        paint_badge(painter, column, tr(fit.short), fit.level, small, tokens)
