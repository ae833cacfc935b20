"""HQQ: grids moved until the rounding error is small in a norm that forgives outliers. Needs no text.

Badri and Shaji, "Half-Quadratic Quantization" (2023, https://mobiusml.github.io/hqq_blog/). The error is measured as
Σ |w - ŵ|^p with p = 0.7; half-quadratic splitting alternates between setting large errors aside (a shrinkage) and
fitting the grid to what remains, in closed form. As in torchao's `hqq_scale_only` it is the scale that is fitted: our
zero points are whole numbers, so that every kernel can run them. It starts from the best of a search over grids, and
each group keeps the best grid it has met, so no group ends worse than rounded to nearest.
"""

from __future__ import annotations

from pathlib import Path

import torch

from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.methods.grid import Grid, search_grid, stored_scales
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.safetensors_io import CheckpointReader

NORM = 0.7
ROUNDS = 20
STRENGTH, STRENGTHENED = 10.0, 1.01
"""β at the start, in units of one step of the grid, and its growth in each round."""
CHUNK_WEIGHTS = 1 << 22


def quantize_hqq(weight: torch.Tensor, spec: WeightSpec) -> QuantizedWeight:
    """Put a weight, `[rows, columns]`, on the grid of `spec`. Rows are independent; temporary memory is bounded.

    Raises BadWeights when a weight is NaN or infinite.
    """
    step = max(1, CHUNK_WEIGHTS // weight.shape[1])
    parts = [_some_rows(rows.to(torch.float32), spec) for rows in weight.split(step)]
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
                weight = quantize_hqq(reader.read(layer.slot.tensor), layer.spec)
                chosen.put(f"layer.{number}", {layer.slot.module: weight})
    return chosen


def _some_rows(weight: torch.Tensor, spec: WeightSpec) -> QuantizedWeight:
    grid = search_grid(weight, spec)
    if spec.bits == 8:
        return grid.weight(weight)
    rows, groups = grid.scales.shape
    grouped = weight.view(rows, groups, -1)
    least = torch.full_like(grid.scales, torch.inf)
    best, strength = grid.scales, STRENGTH
    for _ in range(ROUNDS):
        scales = grid.scales.unsqueeze(-1)
        codes = _codes(grouped, grid)
        error = grouped - codes * scales
        distance = error.abs().pow(NORM).sum(-1)
        better = distance < least
        least, best = torch.where(better, distance, least), torch.where(better, grid.scales, best)
        kept = grouped - _shrink(error / scales.abs(), strength) * scales.abs()
        fitted = (kept * codes).sum(-1) / codes.square().sum(-1).clamp_min(1e-20)
        grid.scales = stored_scales(torch.where(fitted.isfinite() & (fitted != 0), fitted, grid.scales))
        strength *= STRENGTHENED
    grid.scales = best
    return grid.weight(weight)


def _codes(grouped: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes less their zero points, fp32."""
    low, high = grid.spec.code_range
    codes = (grouped / grid.scales.unsqueeze(-1)).round_()
    if grid.zeros is None:
        return codes.clamp_(low, high)
    zeros = grid.zeros.unsqueeze(-1)
    return codes.add_(zeros).clamp_(low, high).sub_(zeros)


def _shrink(error: torch.Tensor, strength: float) -> torch.Tensor:
    """The generalized soft threshold for |x|^p: small errors become 0, large ones nearly stay."""
    size = error.abs()
    return error.sign() * (size - size.clamp_min(1e-8).pow(NORM - 1) / strength).clamp_min_(0)
