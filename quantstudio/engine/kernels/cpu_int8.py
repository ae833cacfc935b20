"""int8 weights on the CPU, with activations in bf16 or in int8.

bf16 activations: torch's int8 weight-only operator for a few rows (one Zen 5 thread, 4864×896, one row: 255 µs, bf16
597), and for prompts the codes as bf16, tile by tile, which is exact and costs 3 % of the product (512 rows: 10.4 ms
against 10.2; the operator 27.9).
int8 activations: oneDNN's int8 product, exact in int32, is the fastest at any number of rows (1: 118 µs; 512: 5.1 ms).
`torch.ops.quantized.linear_dynamic` is not used: it has one scale for all tokens, which is another scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.joining import join_biases, join_rows
from quantstudio.engine.quantized_weight import QuantizedWeight

MANY_ROWS = 16
"""From here on bf16 tiles win (16 rows: 918 µs against 927; 32: 1,790 against 1,213)."""
_TILE_ROWS = 512
_COLUMN_MULTIPLE = 16
"""The weight-only operator reads past the end of rows of another length, and may crash."""


def is_int8(spec: WeightSpec, device: torch.device, activations: ActivationKind) -> bool:
    """Whether it is what kernels for int8 on the CPU take: a scale for each row, activations of this kind."""
    plain = spec.bits == 8 and spec.group_size is None and spec.symmetric
    return device.type == "cpu" and plain and spec.activations is activations


class _Int8(nn.Module):
    """Codes `[rows, columns]` with one scale per row. They stay as they are, so an embedding can share them."""

    codes: torch.Tensor
    scales: torch.Tensor
    bias: nn.Parameter | None

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One module whose output is that of the parts side by side; they become views of its codes."""
        joined = cls.__new__(cls)
        nn.Module.__init__(joined)
        joined.register_buffer("codes", join_rows([(part, "codes") for part in parts]))
        joined.register_buffer("scales", torch.cat([part.scales for part in parts]))
        joined.bias = join_biases([(part.bias, part.codes.shape[0]) for part in parts])
        return joined


class CpuInt8(_Int8):
    """8 bits per channel, activations in bf16."""

    name: ClassVar[str] = "cpu_int8"
    operator: ClassVar[str] = "_weight_int8pack_mm"

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        return is_int8(spec, device, ActivationKind.NONE)

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales.flatten())
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] < MANY_ROWS and rows.shape[1] % _COLUMN_MULTIPLE == 0:
            y = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        else:
            y = self._tiled_product(rows).mul_(self.scales)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)

    def _tiled_product(self, rows: torch.Tensor) -> torch.Tensor:
        y = rows.new_empty(rows.shape[0], self.codes.shape[0])
        for start in range(0, self.codes.shape[0], _TILE_ROWS):
            part = slice(start, start + _TILE_ROWS)
            torch.mm(rows, self.codes[part].to(rows.dtype).t(), out=y[:, part])
        return y


class CpuInt8Dynamic(_Int8):
    """8 bits per channel, activations rounded to int8 per token; sums exact in int32."""

    name: ClassVar[str] = "cpu_int8_dynamic"
    operator: ClassVar[str] = "_int_mm"

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        return is_int8(spec, device, ActivationKind.INT8_TOKEN)

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales.flatten().float())
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, token_scales = quantize_per_token(x.reshape(-1, x.shape[-1]))
        sums = torch._int_mm(codes.to(torch.int8), self.codes.t())
        y = sums.to(torch.float32).mul_(self.scales).mul_(token_scales).to(x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)
