"""int8 weights on x86 CPUs as weighted sums of table rows: FBGEMM's embedding bags, turned into a matrix product.

An embedding bag adds up rows of a byte table, each times a factor of its own, with prefetching and all the registers
there are, and it is made for tables that lie in no cache. A product of one token with a weight is just that: the
table's rows are columns of the weight, the factors are the token's activations. So the weight is stored transposed, in
blocks of so many rows that their sums fit the registers: `[blocks, columns, block]`, and each row of the table ends in
a scale and an offset (1 and -128), because FBGEMM's bytes have no sign. Sums are in fp32.

Two Zen 5 cores, one token, weights that come from memory, against torch's int8 operator, which reads rows side by side
and waits for memory: 9728×896 272 against 598 µs, 896×4864 198 against 226, 151,936×896 4.7 against 9.2 ms; exact int8
products by oneDNN 481, 188, 7.2. The order of the weight costs prompts 3 % in bf16 and 17 % in int8, where it is turned
back, tile by tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.cpu_int8 import is_int8
from quantstudio.engine.kernels.joining import join_biases, join_rows
from quantstudio.engine.quantized_weight import QuantizedWeight

MANY_ROWS = 12
"""From here on tiles win, at nearly one cost for all rows (4864×896, 8 rows: 1.5 against 0.9 ms; 16: 1.5, 1.8)."""
_TAIL = 8
"""Bytes behind a row of the table: its scale and its offset, fp32."""
_ZERO = 128
"""The byte that stands for a code of 0."""
_MOST = 256
"""Rows of the weight in a block. Their sums fill half of the registers of AVX-512; 512 take twice the time."""
_VECTOR = 16
_TILE_WEIGHTS = 1 << 20


class CpuInt8Bags(nn.Module):
    """8 bits per channel, activations in bf16 or int8."""

    name: ClassVar[str] = "cpu_int8_bags"
    operator: ClassVar[str] = "embedding_bag_byte_rowwise_offsets"
    table: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        return is_int8(spec, device, spec.activations) and "fbgemm" in torch.backends.quantized.supported_engines

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._rows, self._columns = weight.shape
        self._rounds_input = weight.spec.activations is ActivationKind.INT8_TOKEN
        self.register_buffer("table", _table(weight.codes, _block(self._rows)))
        self.register_buffer("scales", weight.scales.flatten().float())
        self.bias = bias

    @classmethod
    def join(cls, parts: Sequence[CpuInt8Bags]) -> CpuInt8Bags | None:
        """One module whose output is that of the parts side by side; they become views of its table.

        None when the parts differ in kind, or have no number of rows in common that could be a block.
        """
        kinds = {(part._columns, part._rounds_input) for part in parts}
        rows = [part._rows for part in parts]
        block = _shared_block(rows)
        if len(kinds) > 1 or not block:
            return None
        for part in parts:
            part._cut(block)
        joined = cls.__new__(cls)
        nn.Module.__init__(joined)
        joined._columns, joined._rounds_input = kinds.pop()
        joined._rows = sum(rows)
        joined.register_buffer("table", join_rows([(part, "table") for part in parts]))
        joined.register_buffer("scales", torch.cat([part.scales for part in parts]))
        joined.bias = join_biases([(part.bias, part._rows) for part in parts])
        return joined

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, token_scales = x.reshape(-1, self._columns), None
        if self._rounds_input:
            rows, token_scales = quantize_per_token(rows)
        if rows.shape[0] == 1:
            y = self._sums(rows)
        elif rows.shape[0] < MANY_ROWS:
            y = torch.cat([self._sums(row) for row in rows.split(1)])
        else:
            y = self._tiled(rows)
        if token_scales is not None:
            y = y.mul_(token_scales)
        y = y * self.scales if self.bias is None else torch.addcmul(self.bias.float(), y, self.scales)
        return y.to(x.dtype).view(*x.shape[:-1], self._rows)

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight as codes, int8 `[…, columns]`."""
        found = self.table[ids // self._block, :, ids % self._block]
        return (found ^ _ZERO).view(torch.int8)

    def _cut(self, block: int) -> None:
        """Put the table into blocks of another size."""
        if block != self._block:
            self.table = _table(self.look_up(torch.arange(self._rows)), block)

    @property
    def _block(self) -> int:
        return self.table.shape[2] - _TAIL

    def _sums(self, row: torch.Tensor) -> torch.Tensor:
        """`[1, columns]` times the codes, fp32 `[1, rows]`."""
        blocks, columns, width = self.table.shape
        indices, offsets = _order(blocks, columns)
        factors = torch.empty(blocks, columns).copy_(row)
        sums = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.table.view(-1, width), indices, offsets, per_sample_weights=factors.view(-1)
        )
        sums = sums.view(1, -1)
        return sums if sums.shape[1] == self._rows else sums[:, : self._rows]

    def _tiled(self, rows: torch.Tensor) -> torch.Tensor:
        """`[many, columns]` times the codes, `[many, rows]`: exact and in fp32 for int8 activations, else in bf16."""
        step = max(_TILE_WEIGHTS // self._columns // self._block, 1)
        y = torch.empty(rows.shape[0], self._rows, dtype=torch.float32 if self._rounds_input else rows.dtype)
        codes = rows.to(torch.int8) if self._rounds_input else rows
        for first in range(0, self.table.shape[0], step):
            tile = self._tile(first, first + step, codes.dtype)
            part = y[:, first * self._block : (first + step) * self._block]
            if self._rounds_input:
                part.copy_(torch._int_mm(codes, tile)[:, : part.shape[1]])
            else:
                torch.mm(codes, tile[:, : part.shape[1]], out=part)
        return y

    def _tile(self, first: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """The codes of some blocks, `[columns, rows of the blocks]`."""
        codes = (self.table[first:stop, :, : self._block] ^ _ZERO).view(torch.int8)
        tile = torch.empty(self._columns, codes.shape[0], self._block, dtype=dtype)
        return tile.copy_(codes.transpose(0, 1)).view(self._columns, -1)


def _block(rows: int) -> int:
    """How many rows to a block, so that all threads get as many blocks."""
    threads = torch.get_num_threads()
    blocks = threads * -(-rows // (_MOST * threads))
    return -(-rows // (blocks * _VECTOR)) * _VECTOR


def _shared_block(rows: Sequence[int]) -> int:
    """The largest block that ends where each of these matrices ends; 0 when there is none."""
    vectors, rest = divmod(math.gcd(*rows), _VECTOR)
    most = min(_block(sum(rows)) // _VECTOR, vectors)
    return 0 if rest else _VECTOR * next(size for size in range(most, 0, -1) if vectors % size == 0)


def _table(codes: torch.Tensor, block: int) -> torch.Tensor:
    """int8 `[rows, columns]` → uint8 `[blocks, columns, block + 8]`."""
    rows, columns = codes.shape
    whole, rest = divmod(rows, block)
    table = torch.empty(whole + bool(rest), columns, block + _TAIL, dtype=torch.uint8)
    table[:, :, block:] = torch.tensor([1.0, -float(_ZERO)]).view(torch.uint8)
    table[:whole, :, :block] = codes[: whole * block].view(torch.uint8).view(whole, block, columns).transpose(1, 2)
    if rest:
        table[whole, :, :block] = (
            nn.functional.pad(codes[whole * block :], (0, 0, 0, block - rest)).view(torch.uint8).t()
        )
    table[:, :, :block].bitwise_xor_(_ZERO)
    return table


@cache
def _order(blocks: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows of a table in order, and where the bag of each block begins; shared by all tables of this shape."""
    rows = blocks * columns
    return torch.arange(rows, dtype=torch.int32), torch.arange(0, rows, columns, dtype=torch.int32)
