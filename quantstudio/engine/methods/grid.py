"""The grids that calibrated methods round to, and the search for a good one.

A grid is a scale (and zero point) for each group, already rounded to what is stored, so that what is optimized is what
is saved. Rounding to nearest takes the group's extremes; here many narrower and a few wider grids are tried, and for
symmetric codes both signs of the scale, since -8…7 has one code more on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.quantized_weight import QuantizedWeight

FACTORS = 24
"""Widths that are tried. Twice as many gain nothing that can be measured."""
NARROWEST, WIDEST = 0.45, 1.15
"""Of the grid that just holds the largest weight; at 2 bits narrower ones do win. 8/7 is where the other sign fits."""


@dataclass(slots=True)
class Grid:
    """`scales` and `zeros` (None when symmetric): fp32 `[rows, groups]`, holding bf16 and whole values."""

    scales: torch.Tensor
    zeros: torch.Tensor | None
    spec: WeightSpec

    def nearest(self, weight: torch.Tensor, group: int | slice) -> torch.Tensor:
        """Values of the grid of one or more groups nearest to `weight`; shapes broadcast against `[rows(, groups)]`."""
        low, high = self.spec.code_range
        scale = self.scales[:, group]
        codes = (weight / scale).round_()
        if self.zeros is None:
            return codes.clamp_(low, high).mul_(scale)
        zero = self.zeros[:, group]
        return codes.add_(zero).clamp_(low, high).sub_(zero).mul_(scale)

    def expand(self, columns: int) -> Grid:
        """One scale for each column instead of each group."""
        repeat = columns // self.scales.shape[1]
        zeros = None if self.zeros is None else self.zeros.repeat_interleave(repeat, 1)
        return Grid(self.scales.repeat_interleave(repeat, 1), zeros, self.spec)

    def pick(self, columns: torch.Tensor) -> Grid:
        """The grid with its columns (or groups) in another order."""
        zeros = None if self.zeros is None else self.zeros[:, columns]
        return Grid(self.scales[:, columns], zeros, self.spec)

    def weight(self, values: torch.Tensor) -> QuantizedWeight:
        """The quantized weight whose values are the nearest on this grid."""
        rows, columns = values.shape
        low, high = self.spec.code_range
        grouped = values.reshape(rows, self.scales.shape[1], -1)
        codes = (grouped / self.scales.unsqueeze(-1)).round_()
        if self.zeros is not None:
            codes += self.zeros.unsqueeze(-1)
        codes = codes.clamp_(low, high).reshape(rows, columns).to(torch.int8)
        zeros = None if self.zeros is None else self.zeros.to(torch.int8)
        return QuantizedWeight(codes, self.scales.to(torch.bfloat16), zeros, self.spec)


def stored_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales rounded to bf16, in fp32; 1 where they vanish, so that nothing divides by 0."""
    scales = scales.to(torch.bfloat16).to(torch.float32)
    return torch.where(scales == 0, 1.0, scales)


def nearest_grid(weight: torch.Tensor, spec: WeightSpec) -> Grid:
    """The grid of rounding to nearest. Raises BadWeights when a weight is NaN or infinite."""
    rounded = quantize_rtn(weight, spec)
    zeros = rounded.zero_points
    return Grid(
        rounded.scales.to(weight.device, torch.float32),
        None if zeros is None else zeros.to(weight.device, torch.float32),
        spec,
    )


def search_grid(
    weight: torch.Tensor,
    spec: WeightSpec,
    hessian: torch.Tensor | None = None,
    check: Callable[[], None] = lambda: None,
) -> Grid:
    """The grid with the smallest rounding error within each group, starting from that of rounding to nearest.

    `weight`: fp32 `[rows, columns]`. `hessian`: `[columns, columns]` weighs the errors; without it, all count the same.
    With 8 bits nothing is gained, and the grid of rounding to nearest is given back. `check` is called for each width.
    """
    best = nearest_grid(weight, spec)
    if spec.bits == 8:
        return best
    rows, groups = best.scales.shape
    grouped = weight.view(rows, groups, -1).transpose(0, 1)  # groups first, for batched products
    blocks = None if hessian is None else _diagonal_blocks(hessian, groups)
    least = _errors(grouped, best, blocks)
    for candidate in candidates(weight.view(rows, groups, -1), spec):
        check()
        error = _errors(grouped, candidate, blocks)
        better = error < least
        least = torch.where(better, error, least)
        best.scales = torch.where(better, candidate.scales, best.scales)
        if best.zeros is not None and candidate.zeros is not None:
            best.zeros = torch.where(better, candidate.zeros, best.zeros)
    return best


def candidates(grouped: torch.Tensor, spec: WeightSpec) -> Iterator[Grid]:
    """Grids of many widths, and both signs where symmetric, for weights `[rows, groups, size]`."""
    smallest, largest = spec.code_range
    low, high = torch.aminmax(grouped, dim=-1)
    widest = torch.maximum(high, -low) / -smallest
    for step in range(FACTORS):
        factor = NARROWEST + (WIDEST - NARROWEST) * step / (FACTORS - 1)
        if spec.symmetric:
            yield Grid(stored_scales(widest * factor), None, spec)
            yield Grid(stored_scales(widest * -factor), None, spec)
        else:
            bottom, top = low.clamp_max(0) * factor, high.clamp_min(0) * factor
            scales = stored_scales((top - bottom) / (largest - smallest))
            yield Grid(scales, (smallest - bottom / scales).round_().clamp_(smallest, largest), spec)


def _errors(grouped: torch.Tensor, grid: Grid, blocks: torch.Tensor | None) -> torch.Tensor:
    """Error of each group, `[rows, groups]`. `grouped`: `[groups, rows, size]`."""
    low, high = grid.spec.code_range
    scales = grid.scales.t().unsqueeze(-1)
    codes = (grouped / scales).round_()
    if grid.zeros is not None:
        zeros = grid.zeros.t().unsqueeze(-1)
        codes = codes.add_(zeros).clamp_(low, high).sub_(zeros)
    else:
        codes.clamp_(low, high)
    error = codes.mul_(scales).sub_(grouped)
    weighed = error if blocks is None else error @ blocks
    return (weighed * error).sum(-1).t()


def _diagonal_blocks(hessian: torch.Tensor, groups: int) -> torch.Tensor:
    size = len(hessian) // groups
    return torch.stack([hessian[start : start + size, start : start + size] for start in range(0, len(hessian), size)])
