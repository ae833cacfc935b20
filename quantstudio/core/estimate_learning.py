"""Estimates learn: what earlier runs on this machine were estimated to cost and what they cost corrects the next.

A correction is a factor on the formula's figure. Runs of one kind (method, with or without measuring) differ from the
formula in their own way, so each kind has a factor of its own; one for all of them was tried and made the first run of
a new kind worse. With few runs the formula counts more: the median of log(measured / formula) is weighted
n / (n + PRIOR). Factors are refitted from the run folders each time, so there is nothing to keep in step with them.
Not covered: another machine that shares the folder of runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from quantstudio.core.recipe import Recipe
from quantstudio.core.result import RunCosts
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import RESULT, RunHeader, list_runs

MOST_RUNS = 100
"""The newest ones: machines and libraries change."""
PRIOR = 1.0
"""So many runs' weight has the formula."""
MEMORY_LIMITS, SECONDS_LIMITS = (0.5, 2.0), (0.1, 10.0)
"""A factor beyond these is a mistake somewhere rather than a property of a machine."""
MAX_RESULT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors on an estimate's memory and time, and on how many runs of the kind they rest; 1 and 0 without runs."""

    memory: float = 1.0
    seconds: float = 1.0
    runs: int = 0


NO_CORRECTION = Correction()


@dataclass(frozen=True, slots=True)
class Observation:
    """A finished run with its costs. `kind` as `kind_of` makes it."""

    run: RunHeader
    kind: str
    costs: RunCosts


def kind_of(recipe: Recipe) -> str:
    """Which runs a run is like, as far as its costs go."""
    compiled = ", compiled" if recipe.machine.compile else ""
    return f"{recipe.method.kind}, {'measured' if recipe.measure.enabled else 'not measured'}{compiled}"


def read_observations(runs_home: Path) -> list[Observation]:
    """The newest finished runs that know their costs, newest first. Never raises: what cannot be read is left out."""
    done = [run for run in list_runs(runs_home) if run.status is Status.DONE]
    newest = sorted(done, key=lambda run: run.created, reverse=True)[:MOST_RUNS]
    return [found for run in newest if (found := _observe(run))]


def fit(observations: Sequence[Observation], kind: str) -> Correction:
    """The correction for runs of a kind. Pure: the same observations give the same factors."""
    return Correction(
        memory=_factor(observations, kind, MEMORY_LIMITS, lambda c: c.measured_memory / c.formula_memory),
        seconds=_factor(observations, kind, SECONDS_LIMITS, lambda c: c.measured_seconds / c.formula_seconds),
        runs=sum(found.kind == kind for found in observations),
    )


def learn(runs_home: Path, recipe: Recipe) -> Correction:
    """The correction for a recipe from the runs in a folder."""
    return fit(read_observations(runs_home), kind_of(recipe))


@dataclass(frozen=True, slots=True)
class Errors:
    """How far predictions were off, as shares: 0.1 is 10 %, either way."""

    median: float
    worst: float


def errors(pairs: Iterable[tuple[float, float]]) -> Errors:
    """Of (predicted, measured) pairs. Raises ValueError for none."""
    shares = [abs(predicted - measured) / measured for predicted, measured in pairs]
    if not shares:
        raise ValueError("nothing was measured")
    return Errors(median(shares), max(shares))


def _factor(
    observations: Sequence[Observation],
    kind: str,
    limits: tuple[float, float],
    ratio: Callable[[RunCosts], float],
) -> float:
    logs = [log(ratio(found.costs)) for found in observations if found.kind == kind]
    if not logs:
        return 1.0
    factor = exp(len(logs) / (len(logs) + PRIOR) * median(logs))
    return min(max(factor, limits[0]), limits[1])


def _observe(run: RunHeader) -> Observation | None:
    path = run.path / RESULT
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            return None
        data = json.loads(path.read_bytes())
        costs = RunCosts.model_validate(data["costs"])
        kind = kind_of(Recipe.model_validate(data["recipe"]))
    except (OSError, ValueError, ValidationError, KeyError, TypeError, RecursionError):
        return None
    figures = (costs.formula_memory, costs.measured_memory, costs.formula_seconds, costs.measured_seconds)
    return Observation(run, kind, costs) if min(figures) > 0 else None
