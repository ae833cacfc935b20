"""What a recipe would cost, worked out away from the window's thread.

`work_out` is a plain function from form values to everything the Quantize page shows. Reading a large model's headers
takes tens of milliseconds and a network disk far longer: a window that waits for it stutters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantstudio.core.errors import LayerMisfit, QuantStudioError
from quantstudio.core.estimate import Estimate, Level, estimate
from quantstudio.core.estimate_learning import learn
from quantstudio.core.estimate_method import method_seconds
from quantstudio.core.fieldspec import field_specs, nested
from quantstudio.core.humanize import rough_seconds
from quantstudio.core.library import resolve_model
from quantstudio.core.machine import Machine, read_machine
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import field_problems, recipe_from_dict
from quantstudio.core.recipe_method import PRESET_STEPS, FineTune, Qat
from quantstudio.gui.forms.group_size import hint as group_size_hint

MODEL_FIELD, MISFIT_FIELD, GROUP_FIELD = "model.id", "layers.on_misfit", "scheme.group_size"
HOW_LONG_FIELD = "method.preset"
MISFIT_HELP = "Another way out: let the layers that do not fit have a smaller group, or stay in bf16."
Problems = dict[str, tuple[str, str]]
"""Field → (words, level: error, warning or info)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Everything known about a recipe before it starts. `recipe` is None while its fields are wrong."""

    recipe: Recipe | None = None
    info: ModelInfo | None = None
    estimate: Estimate | None = None
    problems: Problems = field(default_factory=dict)

    @property
    def startable(self) -> bool:
        """Whether nothing stands in the way."""
        return self.estimate is not None and not any(level == "error" for _, level in self.problems.values())


def work_out(values: Mapping[str, Any], runs_folder: Path) -> Cost:
    """Check form values against the recipe's types, the model and this machine. Raises nothing that is foreseen."""
    data = nested(dict(values))
    if wrong := field_problems(data):
        return Cost(problems={path: (_sentence(text), "error") for path, text in wrong.items()})
    recipe = recipe_from_dict(data)
    try:
        info = read_model_info(resolve_model(recipe.model))
    except QuantStudioError as error:
        return Cost(recipe=recipe, problems={error.field or MODEL_FIELD: (str(error), "error")})
    try:
        machine = read_machine(runs_folder)
        costs = estimate(info, recipe, machine, runs_folder, learn(runs_folder, recipe))
    except QuantStudioError as error:
        return Cost(recipe, info, problems={error.field or MODEL_FIELD: (str(error), "error")})
    problems = _by_field(costs)
    if text := times_text(info, recipe, machine):
        problems.setdefault(HOW_LONG_FIELD, (text, "info"))
    if text := group_size_hint(recipe.scheme.kind, data["scheme"].get("group_size")):
        problems.setdefault(GROUP_FIELD, (text, "info"))
    return Cost(recipe, info, costs, problems)


def times_text(info: ModelInfo, recipe: Recipe, machine: Machine) -> str:
    """How long each length of training takes here, roughly; empty without training or with steps of one's own."""
    method = recipe.method
    if not isinstance(method, Qat | FineTune) or method.steps:
        return ""
    times = []
    for preset in PRESET_STEPS:
        other = recipe.model_copy(update={"method": method.model_copy(update={"preset": preset})})
        times.append(f"{preset.capitalize()} {rough_seconds(method_seconds(info, other, machine))}")
    return f"On this machine, roughly: {', '.join(times)}."


def _by_field(costs: Estimate) -> Problems:
    found: Problems = {}
    for problem in costs.problems:
        text, level = found.get(problem.field, ("", problem.level.value))
        level = "error" if Level.ERROR in (level, problem.level) else problem.level.value
        found[problem.field] = (f"{text}\n{_with_titles(problem.text)}".strip(), level)
        if isinstance(problem.error, LayerMisfit):
            found.setdefault(MISFIT_FIELD, (MISFIT_HELP, "info"))
    return found


def _with_titles(text: str) -> str:
    """Fields by the words that the form has for them instead of their paths."""
    for spec in field_specs():
        if spec.path not in text:
            continue
        text = text.replace(spec.path, f"‘{spec.title}’")
        for choice, words in zip(spec.choices, spec.labels, strict=True):
            text = text.replace(f"'{choice}'", f"‘{words}’")
    return text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
