"""int4 weights (and int3, int2) on the CPU: torch's packed int4 operator for a few rows, expansion to bf16 for many.

For one row the operator reads a quarter of the bytes of bf16 and is three to four times as fast (one Zen 5 thread,
4864×896, group 128: 141 µs, bf16 597; 1, 8, 32, 128 rows: 141, 420, 1,652, 6,659 µs against bf16 597, 622, 1,097,
2,702). It computes in fp32 vectors, so prompts would crawl; for those the packed weights are expanded tile by tile
into bf16 while they are in the cache, which costs about a fifth of the product itself and no lasting memory.

Expansion and packing have to know how the operator packs: blocks of 64 rows (AVX-512) or 32 (AVX2), in which byte j of
a column holds rows j and j + half a block. A probe looks at what this machine does; if it is neither, torch packs, and
prompts use the operator.

Codes of 3 and 2 bits are codes of 4 bits that use less of the range: same operator, same speed, the memory of int4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.groups import operator_group
from quantstudio.engine.kernels.joining import join_biases, join_rows
from quantstudio.engine.quantized_weight import QuantizedWeight

GROUPS = (128, 64, 32)
"""Group sizes of the operator. Others that are multiples of one of them repeat their scales."""
MANY_ROWS = 64
"""From here on expansion wins (64 rows: 3.3 ms against 3.1, measured as above)."""
_ROW_MULTIPLE = 64
_TILE_WEIGHTS = 1 << 20
"""Weights expanded at once: 2 MB of bf16. Half and twice of that are no faster."""
_PACK_ROWS = 256
"""Rows packed at once when loading. More leaves larger holes between the weights that stay (0.5B: 240 MB with 4,096
rows and the packer's int32), and is no faster."""


class CpuInt4(nn.Module):
    """2 to 4 bits, symmetric or not, groups (or rows) that are multiples of 32; activations in bf16 or int8."""

    name: ClassVar[str] = "cpu_int4"
    operator: ClassVar[str] = "_weight_int4pack_mm_for_cpu"
    packed: torch.Tensor
    scales_and_zeros: torch.Tensor

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        return device.type == "cpu" and spec.bits <= 4 and operator_group(spec, columns, GROUPS) is not None

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._rows, self._columns = weight.shape
        self._group = operator_group(weight.spec, self._columns, GROUPS) or 0
        self._rounds_input = weight.spec.activations is ActivationKind.INT8_TOKEN
        self._symmetric = weight.zero_points is None
        self.register_buffer("packed", _pack(weight.codes))
        self.register_buffer("scales_and_zeros", _scales_and_zeros(weight, self._group))
        self.bias = bias

    @classmethod
    def join(cls, parts: Sequence[CpuInt4]) -> CpuInt4 | None:
        """One module whose output is that of the parts side by side; they become views of its packed weights.

        None when the parts differ in kind, or end in the middle of a block of the packing.
        """
        kinds = {(part._columns, part._group, part._rounds_input, part._symmetric) for part in parts}
        if len(kinds) > 1 or any(part._rows % _ROW_MULTIPLE for part in parts):
            return None
        joined = cls.__new__(cls)
        nn.Module.__init__(joined)
        joined._columns, joined._group, joined._rounds_input, joined._symmetric = kinds.pop()
        joined._rows = sum(part._rows for part in parts)
        joined.register_buffer("packed", join_rows([(part, "packed") for part in parts]))
        joined.register_buffer("scales_and_zeros", torch.cat([part.scales_and_zeros for part in parts], dim=1))
        joined.bias = join_biases([(part.bias, part._rows) for part in parts])
        return joined

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self._columns)
        if self._rounds_input:
            # Whole numbers pass bf16 unrounded, so the token's scale is applied to the result.
            rows, scales = quantize_per_token(rows)
        block = packing_block() if rows.shape[0] >= MANY_ROWS else 0
        y = self._expanded_product(rows, block) if block else self._operator(rows)
        if self._rounds_input:
            y = y * scales
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self._rows)

    def _operator(self, rows: torch.Tensor) -> torch.Tensor:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self._group, self.scales_and_zeros)
        return y if y.shape[1] == self._rows else y[:, : self._rows].contiguous()

    def _expanded_product(self, rows: torch.Tensor, block: int) -> torch.Tensor:
        y = rows.new_empty(rows.shape[0], self._rows)
        step = max(_TILE_WEIGHTS // self._columns // _ROW_MULTIPLE, 1) * _ROW_MULTIPLE
        for start in range(0, self._rows, step):
            stop = min(start + step, self.packed.shape[0])
            used = min(stop, self._rows)
            torch.mm(rows, self._expand(start, stop, block)[:, : used - start], out=y[:, start:used])
        return y

    def _expand(self, start: int, stop: int, block: int) -> torch.Tensor:
        """Rows start…stop of the weight in bf16, transposed: `[columns, stop - start]`."""
        packed = self.packed[start:stop].view(-1, self._columns, block // 2)
        tile = torch.empty(self._columns, packed.shape[0], 2, block // 2, dtype=torch.bfloat16)
        # Split where they lie, put in order on the way to bf16: strided bit operations are 8 times slower.
        for half, codes in enumerate((packed & 0xF, packed >> 4)):
            tile[:, :, half].copy_(codes.view(torch.int8).sub_(8).permute(1, 0, 2))
        grouped = tile.view(-1, self._group, stop - start)
        scales, zeros = self.scales_and_zeros[:, start:stop].unbind(-1)
        grouped.mul_(scales.contiguous().unsqueeze(1))
        if not self._symmetric:
            grouped.add_(zeros.contiguous().unsqueeze(1))
        return tile.view(self._columns, stop - start)


@cache
def packing_block() -> int:
    """Rows in a block of this machine's packing, 64 or 32; 0 when it packs in a way that is not known here."""
    codes = torch.arange(_ROW_MULTIPLE * 2 * 32, dtype=torch.int32).mul_(7).remainder_(16).view(-1, 32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).view(torch.uint8).flatten()
    for block in (64, 32):
        blocks = codes.view(-1, 2, block // 2, 32).to(torch.uint8)
        expected = (blocks[:, 0] | (blocks[:, 1] << 4)).transpose(1, 2)
        if torch.equal(packed, expected.flatten()):
            return block
    return 0


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """int8 `[rows, columns]` → uint8 `[rows rounded up to 64, columns / 2]` in the operator's own order."""
    rows, columns = codes.shape
    padded = -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE
    packed = torch.empty(padded, columns // 2, dtype=torch.uint8)
    block = packing_block()
    for start in range(0, padded, _PACK_ROWS):
        part = codes[start : start + _PACK_ROWS].view(torch.uint8) + 8
        if missing := min(start + _PACK_ROWS, padded) - start - part.shape[0]:
            part = nn.functional.pad(part, (0, 0, 0, missing))
        place = packed[start : start + part.shape[0]]
        if block:  # where the order is known, this takes a third of the packer's time
            halves = part.view(-1, 2, block // 2, columns)
            pairs = (halves[:, 1] << 4).bitwise_or_(halves[:, 0])
            place.view(-1, columns, block // 2).copy_(pairs.transpose(1, 2))
        else:
            place.copy_(torch.ops.aten._convert_weight_to_int4pack_for_cpu(part.to(torch.int32), 1))
    return packed


def _scales_and_zeros(weight: QuantizedWeight, group: int) -> torch.Tensor:
    """bf16 `[groups, rows rounded up to 64, 2]`; the operator computes (code) * scale + zero with codes -8…7."""
    rows, columns = weight.shape
    repeats = columns // group // weight.scales.shape[1]
    scales = weight.scales.repeat_interleave(repeats, dim=1)
    zeros = torch.zeros_like(scales)
    if weight.zero_points is not None:
        zeros = -weight.zero_points.to(scales.dtype).repeat_interleave(repeats, dim=1) * scales
    both = torch.stack((scales, zeros), dim=-1).transpose(0, 1)
    return nn.functional.pad(both, (0, 0, 0, -rows % _ROW_MULTIPLE)).contiguous()
