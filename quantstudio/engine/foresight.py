"""Before a job of minutes or hours: will its outcome write faster than the original on this machine?

The kernels that the outcome would run on are timed on the very shapes and grids of the plan. That leaves out what a
model does between its matrices, which is the same for original and outcome: it can make a gain or a loss smaller, not
turn one into the other.
"""

from __future__ import annotations

import torch

from quantstudio.core.humanize import human_bytes
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.recipe import MachineSection
from quantstudio.core.speed_words import kernels_words
from quantstudio.engine.kernels.registry import Chooser
from quantstudio.engine.kernels.trial import BEFORE_A_JOB_S, Timing, Trials, sum_timings
from quantstudio.engine.load import resolve_device
from quantstudio.engine.native.build import build_with_words
from quantstudio.engine.reporter import Reporter

CLEAR = 1.05
"""From this ratio of times on, slower is said to be slower."""


def try_kernels(plan: QuantizationPlan, machine: MachineSection, reporter: Reporter, limit_s: float) -> Chooser:
    """Time the kernels on the matrices of a plan for at most `limit_s`, and keep the times for whoever loads the model.

    Raises `Cancelled`.
    """
    device = torch.device(resolve_device(machine.device))
    if device.type == "cpu":
        build_with_words(reporter)
    trials = Trials(device, limit_s)
    chooser = Chooser(device, machine.kernel, reporter.log, trials)
    for layer in plan.quantized:
        reporter.check_cancel()
        if layer.spec and layer.slot.part in (Part.LAYER, Part.HEAD):
            chooser.choose(layer.spec, layer.slot.rows, layer.slot.columns)
    trials.save()
    return chooser


def warn_if_slower(plan: QuantizationPlan, machine: MachineSection, reporter: Reporter) -> None:
    """Tell what the kernels do on this machine; a warning when the outcome will write slower than the original.

    Says nothing for models too small to time, and when the machine is too busy. Raises `Cancelled`.
    """
    chooser = try_kernels(plan, machine, reporter, BEFORE_A_JOB_S)
    own, bf16 = chooser.totals()
    if not own.one:
        return
    kept = _kept(plan, bf16)
    own, bf16 = sum_timings((own, kept)), sum_timings((bf16, kept))
    kernels = kernels_words(chooser.uses())
    if own.one > CLEAR * bf16.one:
        reporter.notice(
            f"On this machine the result will write slower than the original: its matrices take "
            f"{own.one / bf16.one:.2g} times as long. It will still be smaller: "
            f"{human_bytes(plan.sizes.total)} instead of {human_bytes(plan.original_sizes.total)}. "
            f"If speed is what you want, cancel and choose another scheme. What was tried: {kernels}.",
            level="warning",
        )
    else:
        reporter.notice(f"Tried before the long work: {kernels}.")


def _kept(plan: QuantizationPlan, bf16: Timing) -> Timing:
    """About what the layers take that stay in bf16, from what the others take in bf16 for as many weights."""
    parts = (Part.LAYER, Part.HEAD)
    tried, kept = (
        sum(layer.slot.rows * layer.slot.columns for layer in layers if layer.slot.part in parts)
        for layers in (plan.quantized, plan.kept)
    )
    return bf16.times(kept / max(1, tried))
