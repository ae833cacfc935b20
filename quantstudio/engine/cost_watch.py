"""What a run was estimated to cost beside what it costs: the estimate before it starts, the figures when it is done."""

from __future__ import annotations

import time
from pathlib import Path

from quantstudio.core.estimate import estimate
from quantstudio.core.estimate_learning import NO_CORRECTION, learn
from quantstudio.core.machine import read_machine
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.recipe import Recipe
from quantstudio.core.result import Quantization, RunCosts
from quantstudio.core.run_store import WORK
from quantstudio.engine.reporter import Reporter


class CostWatch:
    """Made when the model is here, asked when the run is done."""

    def __init__(self, info: ModelInfo, recipe: Recipe, run_folder: Path) -> None:
        self._resumed = (run_folder / WORK).is_dir()
        self._started = time.monotonic()
        machine = read_machine(run_folder)
        self._formula = estimate(info, recipe, machine, run_folder, NO_CORRECTION)
        self._told = estimate(info, recipe, machine, run_folder, learn(run_folder.parent, recipe))

    def costs(self, quantization: Quantization, reporter: Reporter) -> RunCosts | None:
        """The figures; None for a run that was resumed."""
        if self._resumed:
            return None
        return RunCosts(
            formula_memory=self._formula.peak_memory_bytes,
            formula_seconds=self._formula.seconds,
            predicted_memory=self._told.peak_memory_bytes,
            predicted_seconds=self._told.seconds,
            measured_memory=max(reporter.peak_memory, quantization.peak_rss),
            measured_seconds=time.monotonic() - self._started,
        )
