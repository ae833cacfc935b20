"""The presets as a row of buttons, with what the chosen one means."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QButtonGroup, QPushButton

from quantstudio.core.recipe import PRESET_TEXTS, Preset, Recipe, preset_recipe
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import Card, label, row, wrapped

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
        self.body.addLayout(row(*self.buttons.values()))
        self.meaning = label("", "muted", wrap=True)
        self.body.addWidget(self.meaning)

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
        if (made.scheme, made.layers, made.method) == (recipe.scheme, recipe.layers, recipe.method):
            return preset
    return None
