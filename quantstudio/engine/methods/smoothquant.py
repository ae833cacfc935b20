"""SmoothQuant: outliers of the activations are moved into the weights, so that int8 activations are finer.

Xiao et al., "SmoothQuant" (2022, https://arxiv.org/abs/2211.10438): channel j of the input is divided by
max|x_j|^α / max|w_j|^(1-α) and the weights are multiplied by it. Where a sample of the text says that this does not
lower the layers' output error, nothing is moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import fake_quantize_per_token
from quantstudio.engine.methods.rtn import quantize_rtn


def smooth_scales(
    weights: Sequence[tuple[torch.Tensor, WeightSpec]], largest: torch.Tensor, sample: torch.Tensor, strength: float
) -> torch.Tensor:
    """The factors, fp32 `[columns]`, for weights (fp32 `[rows, columns]`) that share an input; ones if none help.

    `largest`: max |x| of each channel over all text. `sample`: some inputs, fp32 `[tokens, columns]`.
    """
    heaviest = torch.stack([weight.abs().amax(0) for weight, _ in weights]).amax(0)
    scales = largest.clamp_min(1e-5).pow(strength) / heaviest.clamp_min(1e-5).pow(1 - strength)
    scales = (scales / scales.log().mean().exp()).clamp(1e-3, 1e3)
    none = torch.ones_like(scales)
    with_scales, without = (sum(_error(w, spec, sample, s) for w, spec in weights) for s in (scales, none))
    return scales if with_scales < without else none


def _error(weight: torch.Tensor, spec: WeightSpec, sample: torch.Tensor, scales: torch.Tensor) -> float:
    inputs = (sample / scales).to(torch.bfloat16)
    if spec.activations is ActivationKind.INT8_TOKEN:
        inputs = fake_quantize_per_token(inputs)
    rounded = quantize_rtn(weight * scales, spec).dequantize().to(weight)
    return float((inputs.float() @ rounded.t() - sample @ weight.t()).square().sum())
