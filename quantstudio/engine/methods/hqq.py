"""HQQ: grids moved until the rounding error is small in another norm than the plain square. Needs no text.

Badri and Shaji, "Half-Quadratic Quantization" (2023, https://mobiusml.github.io/hqq_blog/): the error Σ |w - ŵ|^p is
made small by half-quadratic steps, each a least-squares fit of the grid in closed form. Two things differ here. It is
the scale that is fitted, as in torchao's `hqq_scale_only`, because our zero points are whole numbers, so that every
kernel can run them; and p is 4 instead of 0.7. With p below 1 large weights are given up, and that costs much on our
grids, on which rounding to nearest represents a group's largest weight exactly: KL divergence of the starter model on
held-out pieces of the built-in books, rounded to nearest, p = 0.7, 2, 3, 4:

    W4 g128     0.042  0.061  0.047  0.042  0.042
    W3 g32      0.130  0.183  0.140  0.129  0.128
    W2 g32      0.948  2.51   1.51   1.02   0.808

For p above 1 the half-quadratic step takes its multiplicative form, iteratively reweighted least squares (Geman and
Reynolds, 1992). It starts from a search over widths, and each group keeps the best grid it has met, so that in this
norm no group ends worse than rounded to nearest.

A norm of weight errors stands for the model's loss only roughly. Where it falls by little, the loss may well rise; so
with 3 and 4 bits a group leaves the grid of rounding to nearest only for a norm below 0.7 of what it was. The same
measure on 64 sequences of 512 tokens, and what leaving for any gain, or below 0.7, adds to it (95 %):

                nearest  for any gain                    below 0.7
    W4 g128     0.0410   +0.0007 (0.0000 to 0.0013)      -0.0006 (-0.0008 to -0.0003)
    W3 g128     0.1939   -0.0226 (-0.0266 to -0.0187)    -0.0160 (-0.0192 to -0.0128)
    W3 g32      0.1277   +0.0002 (-0.0017 to 0.0021)     -0.0080 (-0.0093 to -0.0067)
    W2 g32      0.8389   -0.056 (-0.074 to -0.041)       +0.011 (-0.005 to 0.026)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.methods.grid import Grid, candidates, nearest_grid, stored_scales
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.safetensors_io import CheckpointReader

NORM = 4.0
ROUNDS = 10
TAKEN_BELOW = {2: 1.0}
TAKEN_BELOW_ELSE = 0.7
"""A group's grid is taken when its distance is below this share of that of rounding to nearest, by bits."""
CHUNK_WEIGHTS = 1 << 22


def quantize_hqq(weight: torch.Tensor, spec: WeightSpec, check: Callable[[], None] = lambda: None) -> QuantizedWeight:
    """Put a weight, `[rows, columns]`, on the grid of `spec`. Rows are independent; temporary memory is bounded.

    `check` is called between grids and may raise. Raises BadWeights when a weight is NaN or infinite.
    """
    step = max(1, CHUNK_WEIGHTS // weight.shape[1])
    parts = [_some_rows(rows.to(torch.float32), spec, check) for rows in weight.split(step)]
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return QuantizedWeight(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
        spec,
    )


def choose_hqq(info: ModelInfo, plan: QuantizationPlan, work: Path, reporter: Reporter) -> Chosen:
    """HQQ for every matrix with less than 8 bits; goes on after the last one finished. Raises BadWeights, Cancelled."""
    chosen = Chosen(work / "hqq")
    layers = [layer for layer in plan.quantized if layer.spec and layer.spec.bits < 8]
    with CheckpointReader(info.path) as reader:
        for number, layer in enumerate(layers):
            reporter.progress(number, len(layers), "layers", layer.slot.module)
            if layer.spec and layer.slot.part is not Part.EMBEDDING and not chosen.has(f"layer.{number}"):
                weight = quantize_hqq(reader.read(layer.slot.tensor), layer.spec, reporter.check_cancel)
                chosen.put(f"layer.{number}", {layer.slot.module: weight})
    return chosen


def _some_rows(weight: torch.Tensor, spec: WeightSpec, check: Callable[[], None]) -> QuantizedWeight:
    best = nearest_grid(weight, spec)
    if spec.bits == 8:
        return best.weight(weight)
    rows, groups = best.scales.shape
    grouped = weight.view(rows, groups, -1)
    nearest, plain = replace(best), _distance(grouped, best)
    least = plain
    for grid in candidates(grouped, spec):
        check()
        least = _take_better(best, least, grid, grouped)
    grid = replace(best)
    for _ in range(ROUNDS):
        check()
        grid.scales = _fitted(grouped, grid)
        least = _take_better(best, least, grid, grouped)
    share = TAKEN_BELOW.get(spec.bits, TAKEN_BELOW_ELSE)
    _put(best, least >= share * plain, nearest)
    return best.weight(weight)


def _fitted(grouped: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The half-quadratic step: least squares, each weight counted by |error|^(p - 2) of the grid so far."""
    codes = _codes(grouped, grid)
    importance = (grouped - codes * grid.scales.unsqueeze(-1)).abs().pow_(NORM - 2)
    fitted = (importance * grouped * codes).sum(-1) / (importance * codes.square()).sum(-1)
    return stored_scales(torch.where(fitted.isfinite(), fitted, grid.scales))


def _take_better(best: Grid, least: torch.Tensor, grid: Grid, grouped: torch.Tensor) -> torch.Tensor:
    """Put the groups in which `grid` is better into `best`; returns the smallest distances."""
    distance = _distance(grouped, grid)
    better = distance < least
    _put(best, better, grid)
    return torch.where(better, distance, least)


def _put(best: Grid, where: torch.Tensor, grid: Grid) -> None:
    best.scales = torch.where(where, grid.scales, best.scales)
    if best.zeros is not None and grid.zeros is not None:
        best.zeros = torch.where(where, grid.zeros, best.zeros)


def _distance(grouped: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Σ |w - ŵ|^p of each group, `[rows, groups]`."""
    error = _codes(grouped, grid).mul_(grid.scales.unsqueeze(-1)).sub_(grouped)
    return error.abs_().pow_(NORM).sum(-1)


def _codes(grouped: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes less their zero points, fp32."""
    low, high = grid.spec.code_range
    codes = (grouped / grid.scales.unsqueeze(-1)).round_()
    if grid.zeros is None:
        return codes.clamp_(low, high)
    zeros = grid.zeros.unsqueeze(-1)
    return codes.add_(zeros).clamp_(low, high).sub_(zeros)
