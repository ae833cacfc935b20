"""Layers that train with their weights on a grid: linear, embedding, and whatever is only stored as bf16.

What trains is kept in fp32 (the steps of a short fine-tune are smaller than bf16 can add); what the forward pass sees
is exactly what will be saved: codes times scales, or the value rounded to bf16. So the model runs in pure bf16, as the
saved one will, and nothing but rounding lies between both.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import nn

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.train.grid import (
    Rounded,
    RoundedLinear,
    Scales,
    on_grid,
    quantized,
    rounded_input,
    start_scales,
)

LORA_ALPHA_PER_RANK = 2.0
"""peft's `lora_alpha` over `r`: what the LoRA product is multiplied by."""


CELL = 0.45
"""How far from the middle of its cell, in scales, a weight may begin; 0.5 is the border to the next code."""


class TrainedLinear(nn.Module):
    """A linear layer whose weight is seen on its grid; `spec` None means bf16.

    `weight`: fp32 and trained, or, under LoRA, the original's own frozen bf16 with `lora_a` `[rank, columns]` and
    `lora_b` `[rows, rank]` in fp32 beside it. Where scales learn: `start` and `gain` fp32 `[rows, groups]`.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, spec: WeightSpec | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.spec = spec
        self.out_features, self.in_features = weight.shape
        self.lora_a: nn.Parameter | None = None
        self.lora_b: nn.Parameter | None = None
        self.gain: nn.Parameter | None = None
        self.lora_scale = LORA_ALPHA_PER_RANK
        self.shown: torch.Tensor | None = None
        """A bf16 weight to be seen instead while nothing trains: the rounded one, or another method's."""
        self.start: torch.Tensor | None
        self.zeros: torch.Tensor | None
        self.register_buffer("start", None)
        self.register_buffer("zeros", None)

    def learn_scales(self) -> None:
        """Let the scales learn, from those of rounding the weight to nearest."""
        if self.spec is None:
            raise ValueError("a weight in bf16 has no scales")
        start, zeros = start_scales(self.weight.detach(), self.spec)
        self.register_buffer("start", start)
        self.register_buffer("zeros", zeros)
        self.gain = nn.Parameter(torch.zeros_like(start))

    @torch.no_grad()
    def begin_at(self, found: QuantizedWeight) -> None:
        """Start on the codes and scales that another method found. Only where scales learn, and without LoRA.

        Every weight stays where it is inside its new cell, or goes to the cell's side that is nearest to it.
        """
        start = found.scales.to(self.weight.device, torch.float32)
        zeros = None if found.zero_points is None else found.zero_points.to(self.weight.device, torch.float32)
        grouped = self.weight.view(*start.shape, -1)
        middle = found.codes.to(self.weight.device, torch.float32).view(grouped.shape)
        if zeros is not None:
            middle -= zeros.unsqueeze(-1)
        offset = (grouped / start.unsqueeze(-1) - middle).clamp_(-CELL, CELL)
        grouped.copy_((middle + offset) * start.unsqueeze(-1))
        self.register_buffer("start", start)
        self.register_buffer("zeros", zeros)

    def add_lora(self, rank: int, generator: torch.Generator) -> None:
        """LoRA as in peft: A random, B zero, so that the sum starts as the original (Hu et al., arXiv:2106.09685)."""
        device, columns = self.weight.device, self.in_features
        bound = 1 / math.sqrt(columns)
        first = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator).to(device)
        self.lora_a = nn.Parameter(first)
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        if self.shown is not None:
            return nn.functional.linear(rounded_input(x, self.spec), self.shown, bias)
        return RoundedLinear.apply(
            x,
            self.weight,
            bias,
            self.spec,
            self.start,
            self.gain,
            self.zeros,
            self.lora_a,
            self.lora_b,
            self.lora_scale,
        )

    @torch.no_grad()
    def merged(self) -> torch.Tensor:
        """The weight that is put on the grid: with LoRA the sum, fp32 `[rows, columns]`."""
        weight = self.weight.detach().to(torch.float32)
        if self.lora_a is None or self.lora_b is None:
            return weight
        return torch.addmm(weight, self.lora_b, self.lora_a, alpha=self.lora_scale)

    @torch.no_grad()
    def seen(self) -> torch.Tensor:
        """The weight as the forward pass sees it, bf16."""
        start, gain, zeros = self.start, self.gain, self.zeros
        return on_grid(self.merged(), self.spec, start, gain, zeros)

    @torch.no_grad()
    def result(self) -> QuantizedWeight:
        """What is saved: the codes and scales that the forward pass multiplies out. Only for a layer with a grid."""
        if self.spec is None:
            raise ValueError("a weight in bf16 has no codes")
        return quantized(self.merged(), self.spec, self._scales())

    def _scales(self) -> Scales | None:
        if self.gain is None or self.start is None:
            return None
        return Scales(self.start, self.gain, self.zeros)


class TrainedEmbedding(nn.Module):
    """A table whose rows are put on their grid as they are looked up. `factor`: what Gemma multiplies embeddings by."""

    def __init__(self, weight: nn.Parameter, spec: WeightSpec | None, factor: float) -> None:
        super().__init__()
        self.weight = weight
        self.spec = spec
        self.num_embeddings, self.embedding_dim = weight.shape
        self._factor = factor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = nn.functional.embedding(ids, self.weight)
        if self.spec is None:
            seen = rows.to(torch.bfloat16)
        else:
            seen = Rounded.apply(rows.flatten(0, -2), self.spec, None, None, None).view(rows.shape)
        if self._factor != 1.0:
            seen = seen * torch.tensor(self._factor, dtype=seen.dtype, device=seen.device)
        return seen

    @torch.no_grad()
    def result(self) -> QuantizedWeight:
        """As `TrainedLinear.result`."""
        if self.spec is None:
            raise ValueError("a table in bf16 has no codes")
        return quantized(self.weight.detach(), self.spec, None)


MASTER = "_master"
"""Ending of the name under which the fp32 parameter lives that is seen as bf16."""


def see_as_bf16(module: nn.Module, attribute: str, master: nn.Parameter) -> None:
    """Let everything else that trains (norms, biases) be fp32 inside, and bf16 for who looks at `module.attribute`.

    torch's parametrizations do the same with a class for every module, which makes torch.compile compile every block
    of a model anew, until it gives up; here modules of one class become modules of one other class.
    """
    delattr(module, attribute)
    module.register_parameter(attribute + MASTER, master)
    kind: Any = type(module)
    module.__class__ = _seen_as_bf16(kind, attribute)


@cache
def _seen_as_bf16(kind: Any, attribute: str) -> type[nn.Module]:
    def seen(self: nn.Module) -> torch.Tensor:
        return self.get_parameter(attribute + MASTER).to(torch.bfloat16)

    return type(f"Trained{kind.__name__}", (kind,), {attribute: property(seen)})


def embedding_factor(table: nn.Embedding) -> float | None:
    """What a table multiplies its rows by; None for a kind that is not known and must stay as it is."""
    if type(table) is nn.Embedding:
        return 1.0
    scale: Any = getattr(table, "embed_scale", None)
    return None if scale is None else float(scale)
