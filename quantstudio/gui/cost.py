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
from quantstudio.core.fieldspec import field_specs, nested
from quantstudio.core.library import resolve_model
from quantstudio.core.machine import read_machine
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import field_problems, recipe_from_dict

MODEL_FIELD, MISFIT_FIELD = "model.id", "layers.on_misfit"
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
        costs = estimate(info, recipe, read_machine(runs_folder), runs_folder)
    except QuantStudioError as error:
        return Cost(recipe, info, problems={error.field or MODEL_FIELD: (str(error), "error")})
    return Cost(recipe, info, costs, _by_field(costs))


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
        text = text.replace(spec.path, f"‘{spec.title}’")
    return text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
