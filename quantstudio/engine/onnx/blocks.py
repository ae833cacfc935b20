"""Quantized weights as ONNX Runtime's `MatMulNBits` wants them.

The operator knows 4 and 8 bits, in blocks of 16 to 256 weights of a row, codes unsigned and packed lowest bits first,
and multiplies (code - zero point) * scale, where the zero point is 8 or 128 unless another is given: our numbers,
shifted. Other groups are cut into blocks that share a scale, other bit widths are 4-bit codes that use less of the
range. With `accuracy_level` 4 it rounds activations to int8, with a scale of their own for every block.
Source: the operator's description in ONNX Runtime's list of contributed operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.quantized_weight import QuantizedWeight

BLOCKS = (256, 128, 64, 32, 16)
"""Sizes of block that the operator has, largest first."""
_AT_ONCE = 1 << 22
"""Codes that are packed at once: an output head is packed without copies of its size."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight of `[rows, columns]` for the operator.

    `codes`: uint8 `[rows, blocks, block * bits / 8]`. `scales`: fp32 `[rows, blocks]`. `zero_points`: uint8, as
    many bits per block as a code has, `[rows, ceil(blocks * bits / 8)]`, or None where they are all in the middle.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    bits: int
    block: int

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        return self.codes.shape[1] * self.block


def block_size(spec: WeightSpec, columns: int) -> int | None:
    """The largest block that the operator has and that fits this grid; None: there is none."""
    group = spec.group_size or columns
    return next((block for block in BLOCKS if group % block == 0 and columns % block == 0), None)


def to_blocks(weight: QuantizedWeight) -> Blocks:
    """The same weight. Raises ValueError when its groups fit no block."""
    rows, columns = weight.shape
    bits, block = (8 if weight.spec.bits > 4 else 4), block_size(weight.spec, columns)
    if block is None:
        raise ValueError(f"{weight.spec.label} on {columns} columns fits no block")
    repeats = columns // block // weight.scales.shape[1]
    scales = weight.scales.float().repeat_interleave(repeats, dim=1)
    zeros = weight.zero_points
    if zeros is not None:
        zeros = _packed(zeros.repeat_interleave(repeats, dim=1), bits)
    codes = _packed(weight.codes, bits).view(rows, columns // block, block * bits // 8)
    return Blocks(codes, scales.contiguous(), zeros, bits, block)


def joined(parts: Sequence[Blocks]) -> Blocks | None:
    """One weight whose outputs are those of the parts, side by side; None when their grids differ."""
    first = parts[0]
    kinds = {(part.bits, part.block, part.columns, part.zero_points is None) for part in parts}
    if len(kinds) > 1:
        return None
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Blocks(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
        first.bits,
        first.block,
    )


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed int8 codes `[rows, columns]` → uint8 `[rows, ceil(columns * bits / 8)]`."""
    rows, columns = codes.shape
    packed = torch.empty(rows, -(-columns * bits // 8), dtype=torch.uint8)
    some = max(1, _AT_ONCE // max(1, columns))
    for start in range(0, rows, some):
        unsigned = codes[start : start + some].view(torch.uint8) + (1 << (bits - 1))
        if bits == 4:
            unsigned = torch.nn.functional.pad(unsigned, (0, columns % 2))
            unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
        packed[start : start + some] = unsigned
    return packed
