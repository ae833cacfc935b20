"""Low-bit weights on NVIDIA GPUs, by operators that ship with torch.

int4: the tile-packed "tinygemm" operator, for where our own programs cannot run (`gpu_int4`); on one row it is as fast
as they are. int8: one row by our programs where they run, else, and for prompts, codes cast to bf16 for each product.
Both also serve int8 activations: whole numbers pass bf16 unrounded.
Models are launch-bound on a GPU when they write: without a graph every kernel is as slow as the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.gpu_int4 import has_programs
from quantstudio.engine.kernels.groups import operator_group
from quantstudio.engine.kernels.joining import join_biases, join_rows
from quantstudio.engine.quantized_weight import QuantizedWeight

if TYPE_CHECKING:
    from quantstudio.engine.kernels.gpu_calls import Matrix

GROUPS = (256, 128, 64, 32)
_INNER_K_TILES = 8
_COLUMN_MULTIPLE = _INNER_K_TILES * 16
_ROW_MULTIPLE = 8


class CudaInt4(nn.Module):
    """2 to 4 bits, symmetric or not, groups (or rows) that are multiples of 32, columns a multiple of 128."""

    name: ClassVar[str] = "cuda_int4"
    operator: ClassVar[str] = "_weight_int4pack_mm"
    packed: torch.Tensor
    scales_and_zeros: torch.Tensor

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        fits = rows % _ROW_MULTIPLE == 0 and columns % _COLUMN_MULTIPLE == 0
        return device.type == "cuda" and spec.bits <= 4 and fits and operator_group(spec, columns, GROUPS) is not None

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._group = operator_group(weight.spec, weight.shape[1], GROUPS) or 0
        self._rounds_input = weight.spec.activations is ActivationKind.INT8_TOKEN
        unsigned = (weight.codes + 8).to(torch.uint8)
        pairs = (unsigned[:, 0::2] << 4) | unsigned[:, 1::2]
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), _INNER_K_TILES))
        self.register_buffer("scales_and_zeros", self._scales_and_zeros(weight))
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self._rounds_input:
            rows, scales = quantize_per_token(rows)
        y = torch.ops.aten._weight_int4pack_mm(rows, self.packed, self._group, self.scales_and_zeros)
        if self._rounds_input:
            y = y * scales
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)

    def _scales_and_zeros(self, weight: QuantizedWeight) -> torch.Tensor:
        """bf16 `[groups, rows, 2]`; the operator computes (code) * scale + zero with codes -8…7."""
        repeats = weight.shape[1] // self._group // weight.scales.shape[1]
        scales = weight.scales.repeat_interleave(repeats, dim=1)
        zeros = torch.zeros_like(scales)
        if weight.zero_points is not None:
            zeros = -weight.zero_points.to(scales.dtype).repeat_interleave(repeats, dim=1) * scales
        return torch.stack((scales, zeros), dim=-1).transpose(0, 1).contiguous()


class CudaInt8(nn.Module):
    """8 bits per channel, activations in bf16 or rounded to int8 per token."""

    name: ClassVar[str] = "cuda_int8"
    operator: ClassVar[str] = "linear"
    codes: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        return device.type == "cuda" and spec.bits == 8 and spec.group_size is None and spec.symmetric

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.rounds_input = weight.spec.activations is ActivationKind.INT8_TOKEN
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales.flatten())
        self.bias = bias

    @classmethod
    def join(cls, parts: Sequence[CudaInt8]) -> CudaInt8 | None:
        """One module whose output is that of the parts side by side; they become views of it. None: they differ."""
        if len({(part.rounds_input, part.codes.shape[1]) for part in parts}) > 1:
            return None
        joined = cls.__new__(cls)
        nn.Module.__init__(joined)
        joined.rounds_input = parts[0].rounds_input
        joined.register_buffer("codes", join_rows([(part, "codes") for part in parts]))
        joined.register_buffer("scales", join_rows([(part, "scales") for part in parts]))
        joined.bias = join_biases([(part.bias, part.codes.shape[0]) for part in parts])
        return joined

    def matrix(self) -> Matrix:
        """The weight as our programs read it."""
        from quantstudio.engine.kernels.gpu_calls import Matrix

        return Matrix(8, self.codes, self.scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rounds_input:
            x, token_scales = quantize_per_token(x)
        y = self._product(x)
        if self.rounds_input:
            y = y * token_scales
        return y if self.bias is None else y + self.bias

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > x.shape[-1] or not has_programs():
            return nn.functional.linear(x, self.codes.to(x.dtype)) * self.scales
        from quantstudio.engine.kernels.gpu_calls import product

        return product(x.contiguous(), self.matrix(), x.new_empty(*x.shape[:-1], self.codes.shape[0]))
