"""The Quantize page: a model, a recipe, what it will cost, and the button that starts it.

The form's values are checked a moment after the last change (`DEBOUNCE_MS`) and off the window's thread; what comes
back fills the side panel and puts problems beside their fields. Start takes the very recipe that was checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog, QFrame, QHBoxLayout, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from quantstudio.core.command_line import command_line
from quantstudio.core.disk import write_atomically
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.fieldspec import flat, nested
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.recipe_io import load_recipe, recipe_from_dict, recipe_to_toml
from quantstudio.core.settings import Settings
from quantstudio.gui.background import Latest
from quantstudio.gui.context import AppContext
from quantstudio.gui.cost import MODEL_FIELD, Cost, work_out
from quantstudio.gui.forms.editors import ModelEditor
from quantstudio.gui.forms.recipe_form import RecipeForm
from quantstudio.gui.language import tr
from quantstudio.gui.quantize_tools import QuantizeTools
from quantstudio.gui.widgets.basics import GAP, MARGIN, SPACE, Banner, PageHeader, button, label, page_layout
from quantstudio.gui.widgets.cost_panel import CostPanel
from quantstudio.gui.widgets.preset_bar import PresetBar, preset_of

DEBOUNCE_MS = 120
COPIED_MS = 1500
PANEL_WIDTH, PANEL_WIDEST = 280, 380
FORM_WIDTH = 780
PRESET_SECTIONS = ("scheme", "precision", "layers", "method")
MEASURING = "The search for the best, or measuring layers, is still at work. Start this run when it has finished."
TOML_FILTER = "Recipes (*.toml);;All files (*)"


class QuantizePage(QWidget):
    """Model, preset, form and cost."""

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.cost, self._checked = Cost(), False
        self.form = RecipeForm()
        self.tools = QuantizeTools(self, context, self.form)
        self.presets = PresetBar()
        self.panel = CostPanel()
        self.banner = Banner()
        self.start_button = button(
            "Start", self.start, icon="play", variant="primary", tooltip="Put this run in the queue and show it."
        )
        self.copy_button = button(
            "Copy as command",
            self.copy_command,
            icon="copy",
            tooltip="Copy the command that does the same in a terminal.",
        )
        self.hint = label("", "problem", wrap=True)
        self._machine = _machine_values(context.settings)
        self._costs = Latest(self)
        self._debounce = QTimer(self)
        self._debounce.setSingleShot(True)
        self._debounce.setInterval(DEBOUNCE_MS)
        self._lay_out()
        self._connect()
        self._take_models()
        self.show_recipe(self._new_recipe(Preset.RECOMMENDED))

    def show_model(self, model: str) -> None:
        """Start from this model: a folder, `starter`, or a name in the Hugging Face cache."""
        self.form.set_values({MODEL_FIELD: model, "model.revision": ""})

    def show_recipe(self, recipe: Recipe) -> None:
        """Fill the form."""
        self.form.set_values(flat(recipe.model_dump(mode="json")))
        self._on_changed()

    def pick_preset(self, preset: Preset) -> None:
        """Quantize as this preset does; model, measurement, output and machine stay as they are."""
        made = preset_recipe(preset).model_dump(mode="json")
        self.form.set_values(flat({name: made[name] for name in PRESET_SECTIONS}))

    def start(self) -> None:
        """Put the recipe in the queue and show its run."""
        if not self._checked or not self.cost.startable or self.cost.recipe is None:
            return
        if self.tools.measuring:
            self.banner.say(tr(MEASURING), "warning")
            return
        try:
            run_id = self.context.queue.add(self.cost.recipe, self.context.settings.runs_path)
        except QuantStudioError as error:
            self.banner.say(str(error), "error")
            return
        self.banner.say("")
        self.context.open_run(run_id)

    def copy_command(self) -> None:
        """Put the command that does the same on the clipboard."""
        if self.cost.recipe is None:
            return
        QGuiApplication.clipboard().setText(command_line(self.cost.recipe))
        self.copy_button.setText(tr("Copied"))
        QTimer.singleShot(COPIED_MS, self.copy_button, lambda: self.copy_button.setText(tr("Copy as command")))

    def open_recipe(self) -> None:
        """Fill the form from a recipe file."""
        chosen, _ = QFileDialog.getOpenFileName(self, tr("Open a recipe"), "", tr(TOML_FILTER))
        if not chosen:
            return
        try:
            self.show_recipe(load_recipe(Path(chosen)))
            self.banner.say("")
        except QuantStudioError as error:
            self.banner.say(str(error), "error")

    def save_recipe(self) -> None:
        """Write the form as a recipe file."""
        if self.cost.recipe is None:
            return
        chosen, _ = QFileDialog.getSaveFileName(self, tr("Save the recipe"), "recipe.toml", tr(TOML_FILTER))
        if not chosen:
            return
        try:
            write_atomically(Path(chosen), recipe_to_toml(self.cost.recipe))
            self.banner.say(f"{tr('Saved as')} {chosen}", "success")
        except OSError as error:
            self.banner.say(f"{tr('The recipe cannot be saved.')} {error.strerror}: {chosen}", "error")

    def _new_recipe(self, preset: Preset) -> Recipe:
        recipe = preset_recipe(preset, ModelSection())
        values = flat(recipe.model_dump(mode="json")) | self._machine
        return recipe_from_dict(nested(values))

    def _follow_settings(self) -> None:
        """Take over what new recipes start with, where the form still says what they started with before."""
        before, self._machine = self._machine, _machine_values(self.context.settings)
        values = self.form.values()
        self.form.set_values({path: new for path, new in self._machine.items() if values[path] == before[path]})
        self._on_changed()  # another folder for runs may lie on another disk

    def _lay_out(self) -> None:
        self.open_button = button("Open recipe…", self.open_recipe, icon="open", tooltip="Fill the form from a file.")
        self.save_button = button("Save recipe…", self.save_recipe, icon="save", tooltip="Write the form as a file.")
        header = PageHeader(
            "Quantize", "Choose how the model's weights are rounded.", self.open_button, self.save_button
        )
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, GAP, MARGIN)
        column.setSpacing(12)
        column.addWidget(self.presets)
        column.addWidget(self.form)
        body = QHBoxLayout()
        body.setSpacing(SPACE)
        body.addWidget(_scrolled(inside), 3)
        body.addWidget(self._side(), 1)
        layout = page_layout(self, FORM_WIDTH + PANEL_WIDEST + SPACE)
        layout.addWidget(header)
        layout.addWidget(self.banner)
        layout.addLayout(body, 1)

    def _side(self) -> QWidget:
        side = QWidget()
        side.setMinimumWidth(PANEL_WIDTH)
        side.setMaximumWidth(PANEL_WIDEST)
        side.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        column = QVBoxLayout(side)
        column.setContentsMargins(0, 0, 0, MARGIN)
        column.setSpacing(GAP)
        column.addWidget(_scrolled(self.panel), 1)
        for part in (self.hint, self.start_button, self.tools.contest_button, self.copy_button):
            column.addWidget(part)
        return side

    def _connect(self) -> None:
        self.form.changed.connect(self._on_changed)
        self.presets.picked.connect(lambda preset: self.pick_preset(Preset(preset)))
        self._debounce.timeout.connect(self._ask)
        self._costs.found.connect(self._show_cost)
        self.context.library.found.connect(lambda _: self._take_models())
        self.context.settings_changed.connect(self._follow_settings)
        self.context.closing.connect(self._costs.wait)

    def _on_changed(self) -> None:
        # What was checked is no longer what the form says: no start until it is checked again.
        self._checked = False
        self.start_button.setEnabled(False)
        self._debounce.start()

    def _ask(self) -> None:
        values, runs_folder = self.form.values(), self.context.settings.runs_path
        self._costs.ask(lambda: work_out(values, runs_folder))

    def _show_cost(self, cost: Cost) -> None:
        self.cost, self._checked = cost, True
        self.form.set_problems(cost.problems)
        self.panel.show_cost(cost)
        self.tools.show_recipe(cost.recipe, cost.info)
        for needs_recipe in (self.copy_button, self.save_button):
            needs_recipe.setEnabled(cost.recipe is not None)
        self.start_button.setEnabled(cost.startable)
        self.hint.setText("" if cost.startable else tr(self._what_stops(cost)))
        self.hint.setVisible(not cost.startable)
        if cost.recipe:
            self.presets.show_preset(preset_of(cost.recipe))

    def _what_stops(self, cost: Cost) -> str:
        errors = sum(level == "error" for _, level in cost.problems.values())
        return "Fix the field marked in red to start." if errors == 1 else "Fix the fields marked in red to start."

    def _take_models(self) -> None:
        editor = self.form.editor(MODEL_FIELD)
        if isinstance(editor, ModelEditor):
            usable = [model for model in self.context.library.models if model.info and not model.info.quantized]
            editor.set_choices([(model.id, model.name) for model in usable])


def _machine_values(settings: Settings) -> dict[str, Any]:
    return {"machine.device": settings.device, "machine.threads": settings.threads}


def _scrolled(inside: QWidget) -> QScrollArea:
    area = QScrollArea()
    area.setWidget(inside)
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return area
