"""The grid that training feels, which is the grid that is saved: our own quantizer, differentiable.

torchao's fake quantizers were the first choice. Their symmetric grid has one positive scale, absmax / 7.5, computed and
kept in the weight's dtype; ours has signed scales rounded to bf16 (`methods.rtn`: a fifth less error), is multiplied
out in bf16, and below 8 bits the scales learn. Training on one grid and saving on the other loses what was trained, so
the dozen lines are here, and codes and scales of the result come from the very functions that training used.

Gradients: straight through the rounding (Bengio et al., arXiv:1308.3432). Where scales learn, a weight beyond the grid
gets none, and the scale gets that of LSQ (Esser et al., arXiv:1902.08153). A scale is stored as its start times
exp(gain): Adam moves every parameter by about the learning rate, and only relative steps suit scales of all sizes.

Nothing here keeps a quantized weight for the backward pass: it is computed again from the weight. That costs a few
elementwise passes and saves two bytes for each weight of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import fake_quantize_per_token
from quantstudio.engine.methods.grid import stored_scales
from quantstudio.engine.methods.rtn import scales_of, zero_points_of
from quantstudio.engine.quantized_weight import QuantizedWeight

CHUNK_WEIGHTS = 1 << 24
"""Weights rounded at once: a vocabulary's fp32 copies would otherwise be the peak of the memory."""


@dataclass(frozen=True)
class Scales:
    """Of a group `[rows, groups]`: fp32 start, fp32 gain that learns, and int zero points (fp32 whole numbers)."""

    start: torch.Tensor
    gain: torch.Tensor
    zeros: torch.Tensor | None


def _current(
    weight: torch.Tensor, spec: WeightSpec, start: torch.Tensor | None, gain: torch.Tensor | None, zeros: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Grouped fp32 weight, and the scales and zero points it is on now."""
    grouped = weight.to(torch.float32).reshape(weight.shape[0], -1, spec.group_size or weight.shape[1])
    if start is not None and gain is not None:
        return grouped, stored_scales(start * gain.exp()), zeros
    low, high = torch.aminmax(grouped, dim=-1)
    scale = scales_of(low, high, spec)
    return grouped, scale, None if spec.symmetric else zero_points_of(low, scale, spec)


def _levels(
    grouped: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None, spec: WeightSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (fp32), and the same before clamping."""
    free = (grouped / scale.unsqueeze(-1)).round_()
    if zeros is not None:
        free = free + zeros.unsqueeze(-1)
    return free.clamp(*spec.code_range), free


def fake_quantize(
    weight: torch.Tensor,
    spec: WeightSpec,
    start: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    zeros: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight `[rows, columns]` on its grid, in bf16: to the bit what `QuantizedWeight.dequantize` will give."""
    grouped, scale, zeros = _current(weight, spec, start, gain, zeros)
    codes, _ = _levels(grouped, scale, zeros, spec)
    if zeros is not None:
        codes = codes - zeros.unsqueeze(-1)
    return (codes.to(torch.bfloat16) * scale.to(torch.bfloat16).unsqueeze(-1)).view(weight.shape)


def quantized(weight: torch.Tensor, spec: WeightSpec, scales: Scales | None) -> QuantizedWeight:
    """The codes and scales that `fake_quantize` has multiplied out, read off its result."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    kept, points = [], []
    for part in parts_of(weight.shape):
        own = _part(scales, part)
        grouped, scale, zeros = _current(weight[part], spec, *own)
        # One bf16 rounding moves code × scale by less than half a scale, so the codes are found again exactly.
        seen = fake_quantize(weight[part], spec, *own).to(torch.float32).view(grouped.shape)
        found = (seen / scale.unsqueeze(-1)).round_()
        if zeros is not None:
            found += zeros.unsqueeze(-1)
        codes[part] = found.view(-1, weight.shape[1]).to(torch.int8)
        kept.append(scale.to(torch.bfloat16))
        points.append(zeros)
    zero_points = None if spec.symmetric else torch.cat([z.to(torch.int8) for z in points if z is not None])
    return QuantizedWeight(codes, torch.cat(kept), zero_points, spec)


def _part(scales: Scales | None, part: slice) -> tuple[Any, Any, Any]:
    if scales is None:
        return None, None, None
    return scales.start[part], scales.gain[part], None if scales.zeros is None else scales.zeros[part]


def parts_of(shape: torch.Size | tuple[int, ...], weights: int = CHUNK_WEIGHTS) -> Iterator[slice]:
    """Rows of a matrix, so many that a part has about this many weights."""
    step = max(1, weights // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def start_scales(weight: torch.Tensor, spec: WeightSpec) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where learned scales begin: scales (fp32 `[rows, groups]`, as bf16 holds them) and zero points of rounding to
    nearest. Scales that lose least of the weight itself are a worse start at 2 bits (starter model, KL 0.97 against
    0.82), and the charts begin where rounding ends."""
    found, points = [], []
    for part in parts_of(weight.shape):
        _, scale, zeros = _current(weight[part], spec, None, None, None)
        found.append(scale)
        points.append(zeros)
    return torch.cat(found), None if spec.symmetric else torch.cat([z for z in points if z is not None])


class Rounded(torch.autograd.Function):
    """`fake_quantize` with its gradients, for a weight that is used as a matrix. A function of every `Linear` here."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, spec: WeightSpec, start: Any, gain: Any, zeros: Any) -> torch.Tensor:
        ctx.save_for_backward(weight, start, gain, zeros)
        ctx.spec = spec
        return _rounded(weight, spec, start, gain, zeros)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        weight, start, gain, zeros = ctx.saved_tensors
        into_weight, into_gain = weight_gradients(grads[0], weight, ctx.spec, start, gain, zeros)
        return into_weight, None, None, into_gain, None


def _rounded(weight: torch.Tensor, spec: WeightSpec, start: Any, gain: Any, zeros: Any) -> torch.Tensor:
    if weight.numel() <= CHUNK_WEIGHTS:
        return fake_quantize(weight, spec, start, gain, zeros)
    out = torch.empty(weight.shape, dtype=torch.bfloat16, device=weight.device)
    for part in parts_of(weight.shape):
        out[part] = fake_quantize(weight[part], spec, *_parts((start, gain, zeros), part))
    return out


def _parts(tensors: tuple[Any, ...], part: slice) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor[part] for tensor in tensors)


def weight_gradients(
    grad: torch.Tensor, weight: torch.Tensor, spec: WeightSpec, start: Any, gain: Any, zeros: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """From the gradient of the rounded weight: that of the weight and, where scales learn, of their gains."""
    if gain is None:
        return grad.to(weight.dtype), None
    out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    into_gain = torch.empty_like(gain)
    for part in parts_of(weight.shape):
        own = _parts((start, gain, zeros), part)
        out[part], into_gain[part] = learned_gradients(grad[part], weight[part], spec, *own)
    return out, into_gain


def learned_gradients(
    grad: torch.Tensor, weight: torch.Tensor, spec: WeightSpec, start: Any, gain: Any, zeros: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """LSQ's gradients, of the weight and of the gain."""
    grouped, scale, zeros = _current(weight, spec, start, gain, zeros)
    codes, free = _levels(grouped, scale, zeros, spec)
    inside = codes == free
    level = codes if zeros is None else codes - zeros.unsqueeze(-1)
    slope = level - torch.where(inside, grouped / scale.unsqueeze(-1), 0.0)
    wide = grad.to(torch.float32).view(grouped.shape)
    into_weight = (wide * inside).view(weight.shape).to(weight.dtype)
    return into_weight, (wide * slope).sum(-1) * scale


class RoundedLinear(torch.autograd.Function):
    """A linear layer over the rounded sum of weight and LoRA product; the rounded weight lives only while it is used.

    x `[…, columns]` bf16 → `[…, rows]` bf16. `weight` fp32 (trained) or bf16 (frozen under LoRA). `factors`: LoRA's
    A `[rank, columns]` and B `[rows, rank]`, or None each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        spec: WeightSpec | None,
        start: Any,
        gain: Any,
        zeros: Any,
        lora_a: Any,
        lora_b: Any,
        lora_scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias, start, gain, zeros, lora_a, lora_b)
        ctx.spec, ctx.lora_scale = spec, lora_scale
        rounded = on_grid(_sum(weight, lora_a, lora_b, lora_scale), spec, start, gain, zeros)
        return nn.functional.linear(rounded_input(x, spec), rounded, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, weight, bias, start, gain, zeros, lora_a, lora_b = ctx.saved_tensors
        spec, grad = ctx.spec, grads[0]
        whole = _sum(weight, lora_a, lora_b, ctx.lora_scale)
        into_x = grad @ on_grid(whole, spec, start, gain, zeros) if ctx.needs_input_grad[0] else None
        into_bias = grad.flatten(0, -2).sum(0) if bias is not None and ctx.needs_input_grad[2] else None
        trains = any(ctx.needs_input_grad[place] for place in (1, 5, 7))
        if not trains:
            return into_x, None, into_bias, None, None, None, None, None, None, None
        product = grad.flatten(0, -2).t() @ rounded_input(x, spec).flatten(0, -2)
        if spec is None:
            into_weight, into_gain = product.to(weight.dtype), None
        else:
            into_weight, into_gain = weight_gradients(product, whole, spec, start, gain, zeros)
        if lora_a is None:
            kept = into_weight if ctx.needs_input_grad[1] else None
            return into_x, kept, into_bias, None, None, into_gain, None, None, None, None
        wide = into_weight.to(torch.float32) * ctx.lora_scale
        return into_x, None, into_bias, None, None, into_gain, None, lora_b.t() @ wide, wide @ lora_a.t(), None


def rounded_input(x: torch.Tensor, spec: WeightSpec | None) -> torch.Tensor:
    """The input as the scheme sees it: rounded to int8 per token where it says so."""
    rounds = spec is not None and spec.activations is ActivationKind.INT8_TOKEN
    return fake_quantize_per_token(x) if rounds else x


def _sum(weight: torch.Tensor, lora_a: Any, lora_b: Any, lora_scale: float) -> torch.Tensor:
    return weight if lora_a is None else torch.addmm(weight.to(torch.float32), lora_b, lora_a, alpha=lora_scale)


def on_grid(weight: torch.Tensor, spec: WeightSpec | None, start: Any, gain: Any, zeros: Any) -> torch.Tensor:
    """The weight as it is seen, in bf16; `spec` None: only rounded to bf16."""
    return weight.to(torch.bfloat16) if spec is None else _rounded(weight, spec, start, gain, zeros)
