"""What the Quantize page opens beside its form: a look at the data, the bits of every layer, the search for the best.

The page tells what recipe the form says (`show_recipe`); each tool starts workers of its own and writes back through
the form, so that the recipe stays the one truth.
"""

from __future__ import annotations

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from quantstudio.client.job_call import JobCall
from quantstudio.core.estimate_method import contest_seconds
from quantstudio.core.jobs import PreviewDataJob
from quantstudio.core.machine import read_machine
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.recipe import Recipe
from quantstudio.core.run_store import model_title
from quantstudio.core.sensitivity import Allotment, Sensitivity, as_precision
from quantstudio.gui.context import AppContext
from quantstudio.gui.forms.recipe_form import RecipeForm
from quantstudio.gui.widgets.basics import button
from quantstudio.gui.widgets.bits_dialog import BitsDialog
from quantstudio.gui.widgets.contest_dialog import ContestDialog
from quantstudio.gui.widgets.preview_dialog import PreviewDialog


class QuantizeTools(QObject):
    """Buttons in the form's sections and what they open."""

    def __init__(self, page: QWidget, context: AppContext, form: RecipeForm) -> None:
        super().__init__(page)
        self.page, self.context, self.form = page, context, form
        self.recipe: Recipe | None = None
        self._info: ModelInfo | None = None
        self.last_preview: PreviewDialog | None = None
        self.preview_button = button(
            "Look at the text…",
            self.open_preview,
            icon="search",
            tooltip="See the text as the model will see it, what of it counts, and how much there is.",
        )
        self.bits_button = button(
            "Bits of each layer…",
            self.open_bits,
            icon="settings",
            tooltip="Measure how sensitive each layer is, and spend bits where they matter.",
        )
        self.last_bits: BitsDialog | None = None
        self._measured: dict[str, Sensitivity] = {}
        self.contest_button = button(
            "Find the best at this size…",
            self.open_contest,
            icon="compare",
            tooltip="Make the model in every way, measure all on the same text, and say which is worth it.",
        )
        self.contest: ContestDialog | None = None
        form.section("data").add_action(self.preview_button)
        form.section("precision").add_action(self.bits_button)

    def show_recipe(self, recipe: Recipe | None, info: ModelInfo | None) -> None:
        """The recipe that the form says now, None while it is wrong, and its model, None while it is not found."""
        self.recipe, self._info = recipe, info
        for each in (self.preview_button, self.bits_button, self.contest_button):
            each.setEnabled(recipe is not None and info is not None)

    def open_preview(self) -> None:
        """Show what the model would learn from."""
        if self.recipe is None:
            return
        if self.last_preview is not None:
            self.last_preview.deleteLater()
        self.last_preview = dialog = PreviewDialog(self.new_call(), self.page)
        recipe = self.recipe
        dialog.look(PreviewDataJob(model=recipe.model.id, data=recipe.data, seed=recipe.machine.seed))

    def open_bits(self) -> None:
        """Show the map of bits, with the measurement that was made for such a recipe before, if any."""
        if self.recipe is None:
            return
        key = sensitivity_key(self.recipe)
        if self.last_bits is not None and self.last_bits.busy:
            self.last_bits.show()
            self.last_bits.activateWindow()
            return
        if self.last_bits is not None:
            self.last_bits.deleteLater()
        self.last_bits = dialog = BitsDialog(self.new_call(), self.recipe, self.page)
        dialog.measure_button.clicked.connect(lambda: dialog.measure(busy=self.context.queue.active is not None))
        dialog.measured.connect(lambda found: self._measured.__setitem__(key, found))
        dialog.chosen.connect(self._take_bits)
        if key in self._measured:
            dialog.show_sensitivity(self._measured[key])
        dialog.show()

    @property
    def measuring(self) -> bool:
        """Whether the search for the best, or measuring layers, is at work: a run beside it would disturb both."""
        return (self.contest is not None and self.contest.busy) or (self.last_bits is not None and self.last_bits.busy)

    def open_contest(self) -> None:
        """Show the search for the best: to be started, at work, or with what it came to."""
        recipe, info = self.recipe, self._info
        if recipe is None or info is None:
            return
        if self.contest is None:
            self.contest = self._new_contest()
        seconds = contest_seconds(info, recipe, read_machine(self.context.settings.runs_path))
        self.contest.offer(recipe, f"{model_title(recipe)} {recipe.scheme.weight_spec().label}", seconds)

    def _new_contest(self) -> ContestDialog:
        dialog = ContestDialog(self.new_call(), self.page)
        queue, context = self.context.queue, self.context
        folder = str(context.settings.runs_path)
        dialog.start.clicked.connect(lambda: dialog.search(folder, busy=queue.active is not None))
        dialog.run_asked.connect(context.open_run)
        dialog.method_asked.connect(lambda kind: self.form.set_values({"method.kind": kind}))
        return dialog

    def _take_bits(self, allotment: Allotment) -> None:
        precision = as_precision(allotment)
        self.form.set_values({"precision.kind": precision.kind, "precision.bits": list(precision.bits)})

    def new_call(self) -> JobCall:
        """A call that starts workers as the queue does, and ends with the window."""
        call = JobCall(command=self.context.queue.command)
        self.context.closing.connect(call.shutdown)
        return call


def sensitivity_key(recipe: Recipe) -> str:
    """What a measurement depends on; the precision section, which it is made for, is not part of it."""
    parts = (recipe.model, recipe.scheme, recipe.layers, recipe.method, recipe.data)
    return "\n".join(part.model_dump_json() for part in parts)
