"""GPTQ: columns are rounded one after another, and each makes up for the errors of those before it.

What is minimized is the layer's output error on calibration text, tr(E H Eᵀ) for the weight error E and H = Σ x xᵀ.
Frantar et al., "GPTQ" (2023, https://arxiv.org/abs/2210.17323), in the equivalent form of Chee et al., "QuIP" (2023,
https://arxiv.org/abs/2307.13304, theorem 6): with H = (U + 1) D (U + 1)ᵀ, U strictly upper triangular, column j is
rounded after adding E[:, :j] U[:j, j]. That needs one Cholesky factorization and no inverse. torchao's version
(prototype/gptq) demands CUDA, knows no order of columns, and takes its grid from the largest weights only.

Three things are added, each of which lowers the error further:

- grids are searched for before (`grid.search_grid`), weighed by the Hessian, so that columns may come in any order;
- scales are then fitted to the codes in closed form (least squares in the metric of H, one small system a row);
- codes are then revisited: column by column, each takes the best value given all others (coordinate descent, as in
  Behdin et al., "QuantEase" (2023, https://arxiv.org/abs/2309.01885)); the error only falls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.methods.grid import Grid, search_grid, stored_scales
from quantstudio.engine.quantized_weight import QuantizedWeight

REFINEMENTS = 3
"""Rounds of fitting scales and revisiting codes."""


@dataclass(frozen=True, slots=True)
class GptqOptions:
    """`damping`: share of the mean diagonal added to the Hessian. `act_order`: largest diagonal first. `block_size`:
    columns whose effect on the others is computed at once; it changes speed only. `refinements`: rounds afterwards."""

    damping: float = 0.01
    act_order: bool = True
    block_size: int = 128
    refinements: int = REFINEMENTS


def quantize_gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    spec: WeightSpec,
    options: GptqOptions = GptqOptions(),
    check: Callable[[], None] = lambda: None,
) -> QuantizedWeight:
    """Put a weight on the grid of `spec` so that the layer's outputs change little.

    `weight`: `[rows, columns]`, any float dtype. `hessian`: fp32 `[columns, columns]`, Σ x xᵀ over the layer's inputs
    (any factor); not changed. `check` is called often and may raise, to stop. Memory: about four matrices like each of
    the two. Raises BadWeights when a weight is NaN or infinite.
    """
    weight = weight.to(hessian.device, torch.float32)
    damped = damp(hessian, options.damping)
    grid = search_grid(weight, spec, damped, check)
    order = torch.arange(len(damped), device=damped.device)
    if options.act_order:
        order = torch.argsort(damped.diagonal(), descending=True, stable=True)
    back = torch.argsort(order)
    damped = damped[order][:, order]
    weight = weight[:, order]
    values = _round_in_turn(weight, damped, grid.expand(len(order)).pick(order), options.block_size, check)
    for _ in range(options.refinements):
        if spec.bits < 8:
            values = _refit_scales(weight, values, damped, grid, order, check)
        _revisit(weight, values, damped, grid.expand(len(order)).pick(order), options.block_size, check)
    return grid.weight(values[:, back])


def damp(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """A copy with `damping` times its mean diagonal added; inputs that are always zero get 1 where all are."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1.0
    return damped


def _feedback(hessian: torch.Tensor) -> torch.Tensor:
    """U + 1 of H = (U + 1) D (U + 1)ᵀ: the Cholesky factor of the matrix read backwards, its columns scaled."""
    factor = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    return factor.div_(factor.diagonal().clone())


def _round_in_turn(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, step: int, check: Callable[[], None]
) -> torch.Tensor:
    """The values on the grid, by GPTQ. `grid` has one scale for each column."""
    upper = _feedback(hessian)
    values = torch.empty_like(weight)
    error = torch.empty_like(weight)
    for start in range(0, weight.shape[1], step):
        check()
        stop = min(start + step, weight.shape[1])
        wanted = weight[:, start:stop] + error[:, :start] @ upper[:start, start:stop]
        for column in range(start, stop):
            inner = error[:, start:column] @ upper[start:column, column]
            values[:, column] = grid.nearest(wanted[:, column - start] + inner, column)
            error[:, column] = weight[:, column] - values[:, column]
    return values


def _refit_scales(
    weight: torch.Tensor,
    values: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    order: torch.Tensor,
    check: Callable[[], None],
) -> torch.Tensor:
    """Give `grid` the scales that fit best, the codes kept; returns the codes' new values.

    A row is Σ_g s_g c_g over its groups' codes c_g (zero outside the group), so the best s solves
    (c_gᵀ H c_h) s = (c_gᵀ H w).
    """
    rows, columns = weight.shape
    groups = grid.scales.shape[1]
    group_of = order // (columns // groups)
    member = torch.nn.functional.one_hot(group_of, groups).to(weight.dtype)
    codes = values / grid.scales[:, group_of]
    right = (codes * (weight @ hessian)) @ member
    left = torch.empty(rows, groups, groups, device=weight.device)
    for group in range(groups):
        check()
        inside = group_of == group
        left[:, group] = ((codes[:, inside] @ hessian[inside]) * codes) @ member
    diagonal = left.diagonal(dim1=1, dim2=2)
    diagonal += 1e-6 * diagonal.mean(-1, keepdim=True) + 1e-20
    fitted = stored_scales(torch.linalg.solve(left, right))
    used = (codes != 0).to(weight.dtype) @ member > 0
    grid.scales = torch.where(used & fitted.isfinite(), fitted, grid.scales)
    return codes * grid.scales[:, group_of]


def _revisit(
    weight: torch.Tensor,
    values: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    step: int,
    check: Callable[[], None],
) -> None:
    """Change `values` column by column to what is best given the others. `grid` has one scale for each column."""
    slope = (weight - values) @ hessian
    for start in range(0, weight.shape[1], step):
        check()
        part = slice(start, min(start + step, weight.shape[1]))
        before = values[:, part].clone()
        inner, curve = slope[:, part], hessian[part, part]
        for column in range(before.shape[1]):
            place = start + column
            new = grid.nearest(values[:, place] + inner[:, column] / curve[column, column], place)
            change = new - values[:, place]
            values[:, place] = new
            inner -= change.unsqueeze(1) * curve[column]
        done = values[:, part] - before
        slope[:, : part.start] -= done @ hessian[part, : part.start]
        slope[:, part.stop :] -= done @ hessian[part, part.stop :]
