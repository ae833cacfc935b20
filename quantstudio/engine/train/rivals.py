"""What a training is held against in its chart: calibrated models of the same make, where runs have made some already.

Nothing is calibrated for it, and no figure is taken over: the saved model is loaded and scored on the held-out text of
this training. Only runs with the same data section and seed count, so that none was calibrated on that text.
"""

from __future__ import annotations

from pathlib import Path

from quantstudio.core.errors import QuantStudioError
from quantstudio.core.recipe import Recipe
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import MODEL, list_runs, read_result

CALIBRATED = ("gptq", "awq", "smoothquant")


def calibrated_rivals(recipe: Recipe, runs_home: Path) -> dict[str, Path]:
    """Id of the method → model folder of its newest finished run in `runs_home` that differs in the method alone."""
    found: dict[str, Path] = {}
    for header in list_runs(runs_home):
        if header.status is not Status.DONE or not (header.path / MODEL).is_dir():
            continue
        try:
            other = read_result(header.path).recipe
        except QuantStudioError:  # damaged; it is named where runs are listed
            continue
        if other.method.kind in CALIBRATED and _made_alike(recipe, other):
            found.setdefault(other.method.kind, header.path / MODEL)
    return found


def _made_alike(recipe: Recipe, other: Recipe) -> bool:
    mine = (recipe.model, recipe.scheme, recipe.precision, recipe.layers, recipe.data, recipe.machine.seed)
    return mine == (other.model, other.scheme, other.precision, other.layers, other.data, other.machine.seed)
