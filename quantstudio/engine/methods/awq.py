"""AWQ: input channels that carry large activations are scaled up before rounding, so that they lose less.

Lin et al., "AWQ: Activation-aware Weight Quantization" (2023, https://arxiv.org/abs/2306.00978). The scales are
mean|x|^α, and α is searched for, 0 (no scaling) included; what is compared is the layers' output error on calibration
text, computed from Σ x xᵀ instead of running the layers again. Clipping, the paper's second half, is the search for a
grid (`grid.search_grid`), weighed in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.methods.grid import nearest_grid, search_grid
from quantstudio.engine.quantized_weight import QuantizedWeight


def awq_scales(
    weights: Sequence[tuple[torch.Tensor, WeightSpec]], hessian: torch.Tensor, activity: torch.Tensor, points: int
) -> torch.Tensor:
    """Scales, fp32 `[columns]`, by which these weights (fp32 `[rows, columns]`, all with one input) lose least.

    `hessian`: Σ x xᵀ; `activity`: mean |x| of each channel. `points` strengths between 0 and 1 are tried.
    """
    best = torch.ones_like(activity)
    least = sum(scaled_error(weight, spec, hessian, best) for weight, spec in weights)
    for point in range(1, points):
        scales = activity.clamp_min(1e-4).pow(point / points)
        scales = (scales / (scales.max() * scales.min()).sqrt()).clamp(1e-4, 1e4)
        error = sum(scaled_error(weight, spec, hessian, scales) for weight, spec in weights)
        if error < least:
            best, least = scales, error
    return best


def scaled_error(weight: torch.Tensor, spec: WeightSpec, hessian: torch.Tensor, scales: torch.Tensor) -> float:
    """Output error of a weight that is rounded to nearest after scaling its columns."""
    scaled = weight * scales
    error = nearest_grid(scaled, spec).weight(scaled).dequantize().to(weight) / scales - weight
    return float(((error @ hessian) * error).sum())


def quantize_clipped(weight: torch.Tensor, hessian: torch.Tensor, spec: WeightSpec) -> QuantizedWeight:
    """Round to the grid that costs the layer's output least; large weights may be cut."""
    return search_grid(weight, spec, hessian).weight(weight)
