"""Round-to-nearest: each weight goes to the nearest point of its grid, and no data is needed.

Which grid decides the loss. Relative squared error on normally distributed weights, groups of 128, codes -8…7:
absmax / 7 gives 13.8e-3, absmax / 7.5 (the usual choice of torchao and compressed-tensors) 12.3e-3, and a *signed*
scale that puts the largest weight exactly on -8 gives 10.7e-3, because the 16th code is then always used. Heavier
tails gain as much (Laplace: 25.6, 22.9, 19.9). llama.cpp's Q4_0 does the same. The price is that a scale may be
negative; dequantizing is a product, so readers do not notice. With 8 bits the choice changes nothing that can be
measured, and scales stay positive because some int8 kernels expect that.

Neither library's primitives offer the signed scale, and importing torchao takes seconds, so the few lines are here.
"""

from __future__ import annotations

import torch

from quantstudio.core.errors import BadWeights
from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.quantized_weight import QuantizedWeight

CHUNK_WEIGHTS = 1 << 22
"""Weights in flight: 16 MB of fp32. Smaller chunks are twice as slow where threads must wait for busy cores."""


def quantize_rtn(weight: torch.Tensor, spec: WeightSpec, name: str = "weight") -> QuantizedWeight:
    """Round a weight matrix to the grid that `spec` describes.

    `weight`: `[rows, columns]`, any float dtype, with `columns` divisible by the group size. Rows are independent,
    so a block of rows gives the same result as the same rows of the whole. Scales are computed in fp32, cast to bf16,
    and the codes are computed against the cast scales: what is stored is what was rounded to. Temporary memory is a
    few times `CHUNK_WEIGHTS` values, whatever the matrix.

    Raises BadWeights, saying `name`, when a weight is NaN or infinite.
    """
    rows, columns = weight.shape
    size = spec.group_size or columns
    groups = columns // size
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, groups, dtype=torch.bfloat16)
    zero_points = None if spec.symmetric else torch.empty(rows, groups, dtype=torch.int8)
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        grouped = weight[part].to(torch.float32, copy=True).reshape(-1, groups, size)
        low, high = _limits(grouped, name)
        scale = scales_of(low, high, spec)
        scales[part] = scale
        zeros = None if zero_points is None else zero_points_of(low, scale, spec)
        if zero_points is not None and zeros is not None:
            zero_points[part] = zeros
        codes[part] = _codes(grouped, scale, zeros, spec).reshape(-1, columns)
    return QuantizedWeight(codes=codes, scales=scales, zero_points=zero_points, spec=spec)


def _limits(grouped: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest weight of each group. NaN and infinity show in them, so the check costs no extra pass."""
    # Twelve times as fast as aminmax, which does not use vector instructions along rows; the same numbers.
    low, high = grouped.amin(-1), grouped.amax(-1)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise BadWeights(
            f"{name} holds values that are not numbers (NaN or infinity).",
            why="No grid fits them, and the model would answer with nonsense.",
            hint="The model's files are probably damaged: download or save it again.",
        )
    return low, high


def scales_of(low: torch.Tensor, high: torch.Tensor, spec: WeightSpec) -> torch.Tensor:
    """One fp32 scale, already rounded to bf16, for each group; 1 for a group of zeros, so that nothing divides by 0."""
    smallest, largest = spec.code_range
    if not spec.symmetric:
        scale = (high.clamp_min(0) - low.clamp_max(0)) / (largest - smallest)
    elif spec.bits < 8:
        scale = torch.where(high > -low, high, low) / smallest
    else:
        scale = torch.maximum(high, -low) / ((largest - smallest) / 2)
    scale = scale.to(torch.bfloat16).to(torch.float32)
    return torch.where(scale == 0, 1.0, scale)


def zero_points_of(low: torch.Tensor, scale: torch.Tensor, spec: WeightSpec) -> torch.Tensor:
    smallest, largest = spec.code_range
    return (smallest - low.clamp_max(0) / scale).round_().clamp_(smallest, largest)


def _codes(grouped: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None, spec: WeightSpec) -> torch.Tensor:
    """Codes in fp32, computed in place of `grouped`."""
    codes = grouped.div_(scale.unsqueeze(-1)).round_()
    if zeros is not None:
        codes += zeros.unsqueeze(-1)
    return codes.clamp_(*spec.code_range)
