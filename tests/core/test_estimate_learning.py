"""Corrections learnt from runs: from folders on disk, and as plain arithmetic."""

from math import isclose

import pytest

from quantstudio.core.estimate import LIBRARY_MEMORY, estimate, quantize_base
from quantstudio.core.estimate_learning import (
    NO_CORRECTION,
    Correction,
    Observation,
    errors,
    fit,
    kind_of,
    learn,
    read_observations,
)
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import read_model_info
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import MeasureSection, Recipe
from quantstudio.core.result import RunCosts
from quantstudio.core.run_store import RESULT, RunHeader

MEASURED, ALONE = Recipe(), Recipe(measure=MeasureSection(enabled=False))


def costs(memory=1.0, seconds=1.0):
    """A run that took so many times what the formula said."""
    return RunCosts(
        formula_memory=1_000_000_000,
        formula_seconds=10,
        predicted_memory=1_000_000_000,
        predicted_seconds=10,
        measured_memory=round(memory * 1e9),
        measured_seconds=10 * seconds,
    )


def seen(recipe, *made):
    return [Observation(RunHeader(name="x", created=1.0), kind_of(recipe), one) for one in made]


def test_without_runs_nothing_is_corrected():
    assert fit([], kind_of(MEASURED)) == NO_CORRECTION


def test_one_run_counts_half_and_many_runs_win():
    one = fit(seen(MEASURED, costs(1.44)), kind_of(MEASURED))
    assert isclose(one.memory, 1.2)
    many = fit(seen(MEASURED, *[costs(1.44, 3.0)] * 50), kind_of(MEASURED))
    assert many.memory == pytest.approx(1.44, rel=0.02)
    assert many.seconds == pytest.approx(3.0, rel=0.05)
    assert many.runs == 50


def test_a_disturbed_run_does_not_spoil_the_factor():
    calm = fit(seen(MEASURED, *[costs(1.0, 1.0)] * 9, costs(1.0, 60.0)), kind_of(MEASURED))
    assert calm.seconds == pytest.approx(1.0)


def test_runs_of_another_kind_do_not_count():
    assert fit(seen(ALONE, *[costs(0.6)] * 20), kind_of(MEASURED)) == NO_CORRECTION


def test_absurd_figures_are_held_within_limits():
    absurd = fit(seen(MEASURED, *[costs(100.0, 1e6)] * 50), kind_of(MEASURED))
    assert (absurd.memory, absurd.seconds) == (2.0, 10.0)


def test_an_estimate_takes_the_correction_over(tmp_path):
    info = read_model_info(starter_model())
    machine = Machine(cores=2, memory=8 * 10**9, available_memory=8 * 10**9, free_disk=10**11)
    plain = estimate(info, ALONE, machine, tmp_path)
    corrected = estimate(info, ALONE, machine, tmp_path, Correction(1.5, 2.0, 4))
    assert corrected.peak_memory_bytes == round(1.5 * plain.peak_memory_bytes)
    assert corrected.seconds == 2.0 * plain.seconds
    assert LIBRARY_MEMORY < quantize_base(info) == plain.quantize_memory_bytes


def test_runs_on_the_disk_are_read_and_broken_ones_left_out(tmp_path, make_run):
    good = make_run(tmp_path, "int4", costs=costs(1.21))
    make_run(tmp_path, "int8")  # from before costs were noted down
    broken = make_run(tmp_path, "int4", run_id="broken-20250101-120000", costs=costs(9.0))
    (tmp_path / broken / RESULT).write_text("{", encoding="utf-8")
    found = read_observations(tmp_path)
    assert [observation.run.id for observation in found] == [good]
    assert learn(tmp_path, MEASURED).memory == pytest.approx(1.1)
    assert learn(tmp_path / "nowhere", MEASURED) == NO_CORRECTION


def test_errors_are_shares_of_what_was_measured():
    off = errors([(110, 100), (90, 100), (150, 100)])
    assert off.median == pytest.approx(0.1)
    assert off.worst == pytest.approx(0.5)
    with pytest.raises(ValueError, match="nothing"):
        errors([])
