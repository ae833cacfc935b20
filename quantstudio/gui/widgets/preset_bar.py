"""The presets as a row of buttons, with what the chosen one means."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QButtonGroup, QGridLayout, QPushButton

from quantstudio.core.presets import PRESET_TEXTS, Preset, preset_recipe
from quantstudio.core.recipe import Recipe
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import GAP, Card, label, wrapped

CUSTOM = "Your own settings. Pick a preset to start over from it."


class PresetBar(Card):
    """`picked` brings the preset that the person wants."""

    picked = Signal(str)

    def __init__(self) -> None:
        super().__init__("Start from a preset", spacing=10)
        self.buttons: dict[Preset, QPushButton] = {}
        self._group = QButtonGroup(self)
        for preset, (words, meaning) in PRESET_TEXTS.items():
            made = QPushButton(tr(words))
            made.setCheckable(True)
            made.setProperty("variant", "choice")
            made.setToolTip(wrapped(tr(meaning)))
            made.setAccessibleName(tr(words))
            made.setAccessibleDescription(tr(meaning))
            made.setCursor(Qt.CursorShape.PointingHandCursor)
            made.clicked.connect(lambda _=False, preset=preset: self.picked.emit(preset))
            self.buttons[preset] = made
            self._group.addButton(made)
        self._grid = QGridLayout()
        self._grid.setSpacing(GAP)
        self._columns = 0
        self.body.addLayout(self._grid)
        self._place()
        self.meaning = label("", "muted", wrap=True)
        self.body.addWidget(self.meaning)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self._place()

    def _place(self) -> None:
        """As many columns as the widest name leaves room for, in rows that are about equally long."""
        widest = max(made.sizeHint().width() for made in self.buttons.values()) + GAP
        fitting = max(2, min(len(self.buttons), self.contentsRect().width() // widest))
        rows = -(-len(self.buttons) // fitting)
        columns = -(-len(self.buttons) // rows)
        if columns == self._columns:
            return
        for column in range(self._columns):
            self._grid.setColumnStretch(column, 0)
        self._columns = columns
        for place, made in enumerate(self.buttons.values()):
            self._grid.addWidget(made, place // columns, place % columns)
        for column in range(columns):
            self._grid.setColumnStretch(column, 1)

    def show_preset(self, preset: Preset | None) -> None:
        """Mark a preset as the one in force; None: the person's own settings."""
        self._group.setExclusive(False)
        for name, made in self.buttons.items():
            made.setChecked(name is preset)
        self._group.setExclusive(True)
        self.meaning.setText(tr(PRESET_TEXTS[preset][1] if preset else CUSTOM))


def preset_of(recipe: Recipe) -> Preset | None:
    """The preset that quantizes as this recipe does, whatever it measures and wherever it saves."""
    for preset in Preset:
        made = preset_recipe(preset, recipe.model)
        if _chosen(made) == _chosen(recipe):
            return preset
    return None


def _chosen(recipe: Recipe) -> tuple[object, ...]:
    return recipe.scheme, recipe.precision, recipe.layers, recipe.method
