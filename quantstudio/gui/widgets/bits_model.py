"""The bits of every layer as a table: blocks of the model as rows, kinds of layers as columns.

Nothing here knows a model family: a row is what lies under one number in the layers' names, a column is the name behind
it. Layers outside numbered blocks share a last row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt, Signal

from quantstudio.core.sensitivity import LayerSensitivity, Sensitivity
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import wrapped

HEAT = Qt.ItemDataRole.UserRole
"""How sensitive the layer is among the others, 0 … 1; None where there is no layer."""
HEAT_BITS = 3
"""Layers are compared by what they lose at so many bits, because there they differ most."""
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""In the order in which they work; others follow in the order of the files, which is often the alphabet."""
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer stands: the number of its block (−1: in none) and its name inside the block."""

    block: int
    leaf: str


def place_of(name: str) -> Place:
    """`model.layers.3.mlp.down_proj` → block 3, `down_proj`."""
    found = re.search(r"\.(\d{1,6})\.", name)
    return Place(int(found.group(1)) if found else -1, name.rsplit(".", 1)[-1])


def short(leaf: str) -> str:
    """`down_proj` → `down`."""
    return leaf.removesuffix("_proj") or leaf


def heats(layers: Iterable[LayerSensitivity]) -> dict[str, float]:
    """Each layer's loss on a logarithmic scale from the least (0) to the most sensitive (1) layer."""
    logs = {layer.name: math.log(max(layer.option(HEAT_BITS).kl, 1e-12)) for layer in layers}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)
    return {name: (value - low) / (high - low) if high > low else 0.5 for name, value in logs.items()}


class BitsModel(QAbstractTableModel):
    """`edited` comes when the person changed bits; `set_bits` is silent."""

    edited = Signal()

    def __init__(self, sensitivity: Sensitivity, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.bits = {layer.name: layer.options[-1].bits for layer in sensitivity.layers}
        self._heat = heats(sensitivity.layers)
        self._layers: dict[tuple[int, str], LayerSensitivity] = {}
        for layer in sensitivity.layers:
            place = place_of(layer.name)
            # Two layers of one block may have names that end alike, such as a router's and an expert's.
            leaf = place.leaf if (place.block, place.leaf) not in self._layers else layer.name.split(".", 3)[-1]
            self._layers[place.block, leaf] = layer
        self._blocks = sorted({block for block, _ in self._layers}, key=lambda block: (block < 0, block))
        found = dict.fromkeys(leaf for _, leaf in self._layers)
        self._leaves = sorted(found, key=lambda leaf: _USUAL.index(leaf) if leaf in _USUAL else len(_USUAL))

    def layer(self, index: Index) -> LayerSensitivity | None:
        """The layer at a place of the table; None where the block has none of that name."""
        if not index.isValid():
            return None
        return self._layers.get((self._blocks[index.row()], self._leaves[index.column()]))

    def set_bits(self, bits: dict[str, int]) -> None:
        """Show these bits."""
        self.bits = dict(bits)
        self._tell()

    def give(self, indexes: Iterable[Index], bits: int) -> None:
        """Give layers these bits, where they can have them."""
        for index in indexes:
            layer = self.layer(index)
            if layer is not None and any(option.bits == bits for option in layer.options):
                self.bits[layer.name] = bits
        self._tell()
        self.edited.emit()

    def step(self, indexes: Iterable[Index], by: int) -> None:
        """One option up or down for each layer; a step beyond the last goes back to the first."""
        for index in indexes:
            layer = self.layer(index)
            if layer is not None:
                options = [option.bits for option in layer.options]
                here = options.index(self.bits[layer.name]) if self.bits[layer.name] in options else 0
                self.bits[layer.name] = options[(here + by) % len(options)]
        self._tell()
        self.edited.emit()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008, N802 - Qt's signature
        return 0 if parent.isValid() else len(self._blocks)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008, N802
        return 0 if parent.isValid() else len(self._leaves)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        layer = self.layer(index)
        if layer is None:
            return None
        bits = self.bits[layer.name]
        if role == Qt.ItemDataRole.DisplayRole:
            return str(bits)
        if role == HEAT:
            return self._heat[layer.name]
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{layer.name}: {bits} {tr('bits')}, {tr('alone it costs')} {layer.option(bits).kl:.2g}"
        if role == Qt.ItemDataRole.ToolTipRole:
            losses = ", ".join(f"{option.bits} {tr('bits')}: {option.kl:.2g}" for option in layer.options)
            return wrapped(f"{layer.name} – {tr('KL divergence when only this layer is quantized:')} {losses}")
        return None

    def headerData(  # noqa: N802
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        across = orientation == Qt.Orientation.Horizontal
        if role == Qt.ItemDataRole.DisplayRole:
            return short(self._leaves[section]) if across else self._block_name(section)
        if role == Qt.ItemDataRole.ToolTipRole:
            what = self._leaves[section] if across else f"{tr('Block')} {self._block_name(section)}"
            return f"{what}: {tr('click to choose all of it')}"
        return None

    def _block_name(self, row: int) -> str:
        return str(self._blocks[row]) if self._blocks[row] >= 0 else tr("other")

    def _tell(self) -> None:
        if self._blocks and self._leaves:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self._blocks) - 1, len(self._leaves) - 1))
