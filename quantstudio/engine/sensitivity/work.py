"""Sensitivity as a job, and as the step of a run that turns a target into bits for every layer."""

from __future__ import annotations

from pathlib import Path

import torch

from quantstudio.core.disk import write_atomically
from quantstudio.core.humanize import human_bytes
from quantstudio.core.jobs import SensitivityJob
from quantstudio.core.library import resolve_model
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.recipe_precision import AverageBits, FileSize, LargestLoss
from quantstudio.core.sensitivity import Allotment, Sensitivity, advice, allot, as_precision
from quantstudio.core.usage import mark_used
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.interrupt import checked
from quantstudio.engine.load import load_model
from quantstudio.engine.measure.environment import thread_count
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.sensitivity.measure import measure_sensitivity

FP32_BYTES = 2 << 30
"""Models up to this size in fp32 are measured in fp32 on the CPU: the noise of bf16 is as large as an int4 layer's
loss."""


def perform_sensitivity(job: SensitivityJob, reporter: Reporter) -> Sensitivity:
    """Carry out the job. Raises as `run_recipe`."""
    reporter.phase("sensitivity", "Measuring how sensitive each layer is", 0, 1)
    folder = resolve_model(ModelSection(id=job.model))
    mark_used(folder)
    info = read_model_info(folder)
    make_plan(info, job.recipe).require()
    return sensitivity_of(info, job.recipe, reporter)


def sensitivity_of(info: ModelInfo, recipe: Recipe, reporter: Reporter, cache: Path | None = None) -> Sensitivity:
    """Load the model and the recipe's calibration text, and measure. `cache`: where prepared text is kept."""
    torch.set_num_threads(thread_count(recipe.machine))
    loaded = load_model(info.path, recipe.machine.device, reporter)
    data = prepare_data(recipe.data, loaded.tokenizer, recipe.machine.seed, reporter, cache)
    model = loaded.model
    if loaded.device == "cpu" and 4 * info.parameters <= FP32_BYTES:
        model = model.float()
    with checked(model, reporter.check_cancel):
        return measure_sensitivity(info, recipe, model, data.calibration, reporter)


def with_bits_per_layer(
    info: ModelInfo, recipe: Recipe, kept: Path, reporter: Reporter, cache: Path | None = None
) -> Recipe:
    """The recipe with its target replaced by bits for every layer. What was measured is written to `kept`, a file.

    A run that goes on finds it there and measures nothing again. A target out of reach is approached, and a notice says
    so. Raises ValueError for a recipe whose precision `is_target` denies, and what measuring raises.
    """
    target = recipe.precision
    if not isinstance(target, AverageBits | FileSize | LargestLoss):
        raise ValueError("the recipe's bits are given already")
    if kept.is_file():
        sensitivity = Sensitivity.model_validate_json(kept.read_bytes())
    else:
        sensitivity = sensitivity_of(info, recipe, reporter, cache)
        write_atomically(kept, sensitivity.model_dump_json(indent=1) + "\n")
    chosen = allot(sensitivity, target)
    for sentence in _notices(sensitivity, chosen):
        reporter.notice(sentence, "warning")
    reporter.notice(
        f"Bits per layer: {chosen.average_bits:.2f} on average, {human_bytes(chosen.nbytes)} in all; predicted KL "
        f"divergence {chosen.kl:.3g} nats."
    )
    return recipe.model_copy(update={"precision": as_precision(chosen)})


def _notices(sensitivity: Sensitivity, chosen: Allotment) -> list[str]:
    missed = []
    if not chosen.reached:
        bits = sorted(set(chosen.bits.values()))
        missed = [
            f"The target cannot be met with these groups: the nearest is {human_bytes(chosen.nbytes)} with "
            f"{' and '.join(map(str, bits))} bits, and a predicted KL divergence of {chosen.kl:.3g} nats."
        ]
    return missed + advice(sensitivity, chosen)
