"""Starting the GPU programs: weights as they read them, and how work is cut for them.

Needs the package triton. Import only where `gpu_int4.has_programs` says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quantstudio.engine.kernels import gpu_programs as programs

NIBBLES = 8
"""4-bit codes in a word of 32 bits."""
_HEADS = 16
"""Query heads in one product of attention: the smallest that tensor cores take."""
_TALL, _WIDE = 8192, 4096
"""Rows and columns of a matrix from which it is cut in another way."""


@dataclass(frozen=True)
class Matrix:
    """A weight `[rows, columns]` as the programs read it.

    4 bits: `data` int32 `[rows, columns / 8]` of `pack_words`, `scales` bf16 `[rows, groups]`, `zeros` uint8 likewise
    or None for 8. 8 bits: `data` int8, `scales` bf16 `[rows]`. 16 bits: `data` bf16 alone.
    """

    bits: int
    data: torch.Tensor
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    group: int = 0

    @property
    def rows(self) -> int:
        return self.data.shape[0]

    @property
    def columns(self) -> int:
        return self.data.shape[1] * (NIBBLES if self.bits == 4 else 1)


def pack_words(codes: torch.Tensor, group: int) -> torch.Tensor:
    """int8 codes -8…7 `[rows, columns]` → int32 `[rows, columns / 8]`.

    Within a group, word j holds the codes j, j + group/8, j + 2·group/8 …, lowest bits first, plus 8: so neighbouring
    words meet neighbouring inputs, nibble by nibble.
    """
    rows, columns = codes.shape
    unsigned = (codes.to(torch.int32) + 8).view(rows, columns // group, NIBBLES, group // NIBBLES)
    words = torch.zeros(rows, columns // group, group // NIBBLES, dtype=torch.int32, device=codes.device)
    for nibble in range(NIBBLES):
        words |= unsigned[:, :, nibble] << (4 * nibble)
    return words.view(rows, columns // NIBBLES)


def unpacked(matrix: Matrix) -> torch.Tensor:
    """A 4-bit matrix in bf16, `[rows, columns]`."""
    out = torch.empty(matrix.rows, matrix.columns, dtype=torch.bfloat16, device=matrix.data.device)
    block = 512 // matrix.group
    blocks = triton.cdiv(matrix.columns // matrix.group, block)
    programs.unpack[(matrix.rows, blocks)](
        matrix.data, matrix.scales, matrix.zeros, out, matrix.columns, matrix.group, matrix.zeros is not None, block,
        num_warps=2,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: rows for each program, weights of a row read at once, warps."""

    rows: int
    weights: int
    warps: int


def tiling(bits: int, rows: int, columns: int) -> Tiling:
    """Best, or within a tenth, on H100 and H200 for matrices of 0.5B and 7B models (`decode_gpu.py --products`)."""
    tall, wide = rows >= _TALL, columns >= _WIDE
    if bits == 4:
        return Tiling(16, 512, 2) if tall else Tiling(4, 4096, 4) if wide else Tiling(2, 512, 1)
    if bits == 8:
        return Tiling(8, 512, 2) if tall else Tiling(2, 2048, 4) if wide else Tiling(2, 1024, 2)
    return Tiling(2, 1024, 1)


def product(
    x: torch.Tensor,
    matrix: Matrix,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    cut: Tiling | None = None,
) -> torch.Tensor:
    """`out` = matrix · x for one row x `[columns]` bf16, contiguous; returns `out`, bf16 `[rows]`.

    `norm`: root-mean-square norm of x with this weight first. `gated`: the matrix holds gates, then ups; `out`
    `[rows / 2]` is silu(gate) · up. `residual` is added last and may be `out`.
    """
    cut = cut or tiling(matrix.bits, matrix.rows, matrix.columns)
    count = matrix.rows // 2 if gated else matrix.rows
    tall = max(1, cut.rows // 2) if gated else cut.rows
    block = max(1, cut.weights // matrix.group) if matrix.bits == 4 else cut.weights
    programs.product[(triton.cdiv(count, tall),)](
        x, norm, matrix.data, matrix.scales, matrix.zeros, bias, residual, out, count, matrix.columns, epsilon,
        matrix.bits, matrix.group, norm is not None, matrix.zeros is not None, bias is not None, residual is not None,
        gated, tall, block, num_warps=cut.warps,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Parting:
    """How attention is cut: parts of the sequence side by side, positions of a part read at once, warps."""

    parts: int
    positions: int
    warps: int


PARTING = Parting(16, 16, 4)
"""On an H200 5.8 µs a layer at 160 positions and 8.4 at 1,500, with the heads of a 7B model; no other cut was better at
both."""
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter multiplies no bf16."""


@dataclass(frozen=True)
class Heads:
    """How attention's heads are laid out."""

    queries: int
    shared: int
    size: int
    scale: float
    epsilon: float = 0.0
    """Of the norms of queries and keys, where there are any."""


class Attention:
    """Room for what the parts of one token's attention find; the same for every layer."""

    def __init__(self, heads: Heads, device: torch.device, cut: Parting | None = None) -> None:
        self._heads, self._cut = heads, cut or PARTING
        self._parts = torch.empty(heads.queries, self._cut.parts, heads.size, device=device)
        self._tops = torch.empty(heads.queries, self._cut.parts, device=device)
        self._sums = torch.empty(heads.queries, self._cut.parts, device=device)
        self._seen = torch.empty(heads.queries * heads.size, dtype=torch.bfloat16, device=device)

    def __call__(
        self,
        states: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor],
        position: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """What the queries see, bf16 `[queries · size]`; the next call overwrites it.

        `states`: bf16 `[(queries + 2 · shared) · size]`, queries, keys and values of one token before rotation. `turn`:
        cosine and sine `[size]`. `past`: keys and values `[1, shared, capacity, size]`, to which the token is added at
        `position` (int64 scalar on the device). `norms`: weights of the norms of queries and keys.
        """
        heads, cut, (keys, values) = self._heads, self._cut, past
        query_norm, key_norm = norms or (None, None)
        group = triton.next_power_of_2(heads.queries // heads.shared)
        factors = tl.float32 if _INTERPRETED else tl.bfloat16
        programs.attend[(heads.shared, cut.parts)](
            states, query_norm, key_norm, *turn, keys, values, position, self._parts, self._tops, self._sums,
            keys.shape[2], heads.scale, heads.epsilon, heads.queries, heads.shared, heads.size, norms is not None,
            cut.parts, max(_HEADS, group), cut.positions, factors, num_warps=cut.warps,
        )  # fmt: skip
        programs.join[(heads.queries,)](
            self._parts, self._tops, self._sums, self._seen, heads.size, cut.parts, num_warps=2
        )  # fmt: skip
        return self._seen
