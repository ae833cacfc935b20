"""Triton programs for one token on an NVIDIA GPU: low-bit products, attention over a static cache, unpacking.

A token of a quantized model is bound by reading weights. torch's own 4-bit operator reaches a quarter of an H200's
memory bandwidth on one row; these programs read every packed word once, multiply out in registers in fp32, and do what
comes before and after a product (norm, bias, gate, residual) in the same pass. Attention is split along the sequence
and joined afterwards (Flash-Decoding, Dao et al. 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

Needs the package triton, which torch's CUDA builds for Linux bring along. Import only where there is one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

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


@triton.jit
def _dot_words(
    x_ptr, norm_ptr, words_ptr, scales_ptr, zeros_ptr, rows, valid, columns,
    GROUP: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ZEROS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
):  # fmt: skip
    """Products `[BLOCK_ROWS]` of 4-bit rows with x, and the sum of squares of x."""
    WORDS: tl.constexpr = GROUP // 8
    groups = columns // GROUP
    lane = tl.arange(0, WORDS)
    total = tl.zeros((BLOCK_ROWS, BLOCK_GROUPS, WORDS), tl.float32)
    squares = tl.zeros((BLOCK_GROUPS, WORDS), tl.float32)
    first = rows.to(tl.int64)
    for start in range(0, groups, BLOCK_GROUPS):
        group = start + tl.arange(0, BLOCK_GROUPS)
        inside = group < groups
        place = group[:, None] * WORDS + lane[None, :]
        both = valid[:, None] & inside[None, :]
        words = tl.load(
            words_ptr + (first * (columns // 8))[:, None, None] + place[None, :, :], mask=both[:, :, None], other=0
        )
        scale = tl.load(scales_ptr + (first * groups)[:, None] + group[None, :], mask=both, other=0.0).to(tl.float32)
        part = tl.zeros((BLOCK_ROWS, BLOCK_GROUPS, WORDS), tl.float32)
        plain = tl.zeros((BLOCK_GROUPS, WORDS), tl.float32)
        for nibble in tl.static_range(8):
            column = group[:, None] * GROUP + nibble * WORDS + lane[None, :]
            x = tl.load(x_ptr + column, mask=inside[:, None], other=0.0).to(tl.float32)
            if HAS_NORM:
                squares += x * x
                x *= tl.load(norm_ptr + column, mask=inside[:, None], other=0.0).to(tl.float32)
            # The code as the top of a float's fraction, 1 + code / 16: half the work of making a number of it.
            if nibble < 5:  # noqa: SIM108 - a ternary would compile both
                moved = words << (19 - 4 * nibble)
            else:
                moved = words >> (4 * nibble - 19)
            number = ((moved & 0x00780000) | 0x3F800000).to(tl.float32, bitcast=True)
            part += number * x[None, :, :]
            plain += x
        if HAS_ZEROS:
            zero = tl.load(zeros_ptr + (first * groups)[:, None] + group[None, :], mask=both, other=0).to(tl.float32)
            total += scale[:, :, None] * (part * 16.0 - (zero[:, :, None] + 16.0) * plain[None, :, :])
        else:
            total += scale[:, :, None] * (part * 16.0 - 24.0 * plain[None, :, :])
    return tl.sum(tl.sum(total, 2), 1), tl.sum(squares)


@triton.jit
def _dot_plain(
    x_ptr, norm_ptr, weight_ptr, rows, valid, columns,
    HAS_NORM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The same for rows of int8 codes or bf16 values."""
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    squares = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    first = rows.to(tl.int64) * columns
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        inside = column < columns
        x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(
            weight_ptr + first[:, None] + column[None, :], mask=valid[:, None] & inside[None, :], other=0.0
        )
        total += weight.to(tl.float32) * x[None, :]
    return tl.sum(total, 1), tl.sum(squares)


@triton.jit
def _product(
    x_ptr, norm_ptr, data_ptr, scales_ptr, zeros_ptr, bias_ptr, residual_ptr, out_ptr, count, columns, epsilon,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, GATED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out[count]` = the weight times x, after its norm, with what follows. GATED: rows are gates, then ups."""
    if GATED:  # gate and up of one output lie beside each other
        lane = tl.arange(0, 2 * BLOCK_ROWS)
        output = tl.program_id(0) * BLOCK_ROWS + lane // 2
        rows = output + (lane % 2) * count
        TALL: tl.constexpr = 2 * BLOCK_ROWS
    else:
        output = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        rows = output
        TALL: tl.constexpr = BLOCK_ROWS
    valid = output < count
    if BITS == 4:
        y, squares = _dot_words(
            x_ptr, norm_ptr, data_ptr, scales_ptr, zeros_ptr, rows, valid, columns, GROUP, HAS_NORM, HAS_ZEROS,
            TALL, BLOCK,
        )  # fmt: skip
    else:
        y, squares = _dot_plain(x_ptr, norm_ptr, data_ptr, rows, valid, columns, HAS_NORM, TALL, BLOCK)
    if HAS_NORM:
        y *= 1.0 / tl.sqrt(squares / columns + epsilon)
    if BITS == 8:
        y *= tl.load(scales_ptr + rows, mask=valid, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + rows, mask=valid, other=0.0).to(tl.float32)
    y = y.to(tl.bfloat16)
    if GATED:
        gate, up = tl.split(tl.reshape(y, (BLOCK_ROWS, 2)))
        wide = gate.to(tl.float32)
        y = ((wide / (1.0 + tl.exp(-wide))).to(tl.bfloat16).to(tl.float32) * up.to(tl.float32)).to(tl.bfloat16)
        output = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        valid = output < count
    if HAS_RESIDUAL:
        before = tl.load(residual_ptr + output, mask=valid, other=0.0).to(tl.float32)
        y = (y.to(tl.float32) + before).to(tl.bfloat16)
    tl.store(out_ptr + output, y, mask=valid)


@triton.jit
def _turned(base, norm_ptr, cosine_ptr, sine_ptr, dim, valid, epsilon, SIZE: tl.constexpr, HAS_NORM: tl.constexpr):
    """Heads `[heads, SIZE]` at `base`, normed where the model does that, rotated to their position; fp32."""
    partner = (dim + SIZE // 2) % SIZE
    sign = tl.where(dim < SIZE // 2, -1.0, 1.0)
    own = tl.load(base[:, None] + dim[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    other = tl.load(base[:, None] + partner[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = 1.0 / tl.sqrt(tl.sum(own * own, 1) / SIZE + epsilon)
        own *= factor[:, None] * tl.load(norm_ptr + dim).to(tl.float32)[None, :]
        other *= factor[:, None] * tl.load(norm_ptr + partner).to(tl.float32)[None, :]
    cosine, sine = tl.load(cosine_ptr + dim).to(tl.float32), tl.load(sine_ptr + dim).to(tl.float32)
    return own * cosine[None, :] + other * (sine * sign)[None, :]


@triton.jit
def _attend(
    states_ptr, query_norm_ptr, key_norm_ptr, cosine_ptr, sine_ptr, keys_ptr, values_ptr, position_ptr,
    parts_ptr, tops_ptr, sums_ptr, capacity, scale, epsilon,
    QUERIES: tl.constexpr, SHARED: tl.constexpr, SIZE: tl.constexpr, HAS_NORM: tl.constexpr,
    SPLITS: tl.constexpr, HEADS: tl.constexpr, POSITIONS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """One part of the sequence for the queries of one shared head; the part that it falls to keeps the new token."""
    shared, split = tl.program_id(0), tl.program_id(1)
    GROUP: tl.constexpr = QUERIES // SHARED
    position = tl.load(position_ptr).to(tl.int32)
    chunk = tl.cdiv(tl.cdiv(position + 1, SPLITS), POSITIONS) * POSITIONS
    start = split * chunk
    mine = (start <= position) & (position < start + chunk)
    dim = tl.arange(0, SIZE)
    lane = tl.arange(0, HEADS)
    valid = lane < GROUP
    query = _turned(
        states_ptr + (shared * GROUP + lane) * SIZE, query_norm_ptr, cosine_ptr, sine_ptr, dim, valid, epsilon,
        SIZE, HAS_NORM,
    ).to(tl.bfloat16).to(tl.float32)  # fmt: skip
    one = tl.arange(0, 1)
    key = _turned(
        states_ptr + (QUERIES + shared + one) * SIZE, key_norm_ptr, cosine_ptr, sine_ptr, dim, one < 1, epsilon,
        SIZE, HAS_NORM,
    ).to(tl.bfloat16)  # fmt: skip
    value = tl.load(states_ptr + (QUERIES + SHARED + shared + one)[:, None] * SIZE + dim[None, :])
    row = (shared * capacity + position).to(tl.int64) * SIZE
    new = (row + one[:, None] * SIZE) + dim[None, :]
    tl.store(keys_ptr + new, key, mask=mine)
    tl.store(values_ptr + new, value, mask=mine)

    score = tl.sum(query * key.to(tl.float32), 1) * scale
    top = tl.where(mine, score, -1e30)
    weight = tl.where(mine, 1.0, 0.0)
    total = tl.zeros((HEADS,), tl.float32) + weight
    result = tl.zeros((HEADS, SIZE), tl.float32) + weight * value.to(tl.float32)
    end = tl.minimum(start + chunk, position)
    head = (shared * capacity).to(tl.int64) * SIZE
    for begin in range(start, end, POSITIONS):
        seen = begin + tl.arange(0, POSITIONS)
        place = head + seen[:, None] * SIZE + dim[None, :]
        keys = tl.load(keys_ptr + place, mask=(seen < end)[:, None], other=0.0).to(FACTORS)
        scores = tl.dot(query.to(FACTORS), tl.trans(keys)) * scale
        scores = tl.where((seen < end)[None, :], scores, -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp(scores - higher[:, None])
        fade = tl.exp(top - higher)
        values = tl.load(values_ptr + place, mask=(seen < end)[:, None], other=0.0).to(FACTORS)
        result = result * fade[:, None] + tl.dot(shares.to(FACTORS), values)
        total = total * fade + tl.sum(shares, 1)
        top = higher
    index = (shared * GROUP + lane) * SPLITS + split
    tl.store(tops_ptr + index, top, mask=valid)
    tl.store(sums_ptr + index, total, mask=valid)
    tl.store(parts_ptr + index[:, None] * SIZE + dim[None, :], result, mask=valid[:, None])


@triton.jit
def _join(parts_ptr, tops_ptr, sums_ptr, out_ptr, SIZE: tl.constexpr, SPLITS: tl.constexpr):
    """What one head saw, out of its parts."""
    head = tl.program_id(0)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, SIZE)
    top = tl.load(tops_ptr + head * SPLITS + split)
    share = tl.exp(top - tl.max(top, 0))
    total = tl.sum(share * tl.load(sums_ptr + head * SPLITS + split), 0)
    parts = tl.load(parts_ptr + (head * SPLITS + split)[:, None] * SIZE + dim[None, :])
    result = tl.sum(parts * share[:, None], 0) / total
    tl.store(out_ptr + head * SIZE + dim, result.to(tl.bfloat16))


@triton.jit
def _unpack(
    words_ptr, scales_ptr, zeros_ptr, out_ptr, columns, GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = GROUP // 8
    row = tl.program_id(0).to(tl.int64)
    groups = columns // GROUP
    group = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    lane = tl.arange(0, WORDS)
    inside = group < groups
    words = tl.load(
        words_ptr + row * (columns // 8) + group[:, None] * WORDS + lane[None, :], mask=inside[:, None], other=0
    )
    scale = tl.load(scales_ptr + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    if HAS_ZEROS:
        zero = tl.load(zeros_ptr + row * groups + group, mask=inside, other=0).to(tl.float32)
    else:
        zero = tl.full((BLOCK_GROUPS,), 8.0, tl.float32)
    for nibble in tl.static_range(8):
        code = ((words >> (4 * nibble)) & 0xF).to(tl.float32) - zero[:, None]
        column = group[:, None] * GROUP + nibble * WORDS + lane[None, :]
        tl.store(out_ptr + row * columns + column, (code * scale[:, None]).to(tl.bfloat16), mask=inside[:, None])


def unpacked(matrix: Matrix) -> torch.Tensor:
    """A 4-bit matrix in bf16, `[rows, columns]`."""
    out = torch.empty(matrix.rows, matrix.columns, dtype=torch.bfloat16, device=matrix.data.device)
    block = 512 // matrix.group
    blocks = triton.cdiv(matrix.columns // matrix.group, block)
    _unpack[(matrix.rows, blocks)](
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
    """Measured best, or close to it, on an H200 for the matrices of 0.5B and 7B models."""
    tall, wide = rows >= _TALL, columns >= _WIDE
    if bits == 4:
        return Tiling(16, 512, 2) if tall else Tiling(4, 2048, 4) if wide else Tiling(2, 512, 1)
    if bits == 8:
        return Tiling(8, 512, 2) if tall else Tiling(2, 2048, 4) if wide else Tiling(2, 1024, 2)
    return Tiling(2, 1024, 1)


def product(
    x: torch.Tensor,
    matrix: Matrix,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    residual: torch.Tensor | None = None,
    gated: bool = False,  # noqa: FBT001, FBT002
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
    _product[(triton.cdiv(count, tall),)](
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


PARTING = Parting(16, 32, 4)
"""Measured best, or close to it, on an H100 for up to some thousand positions."""
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
        _attend[(heads.shared, cut.parts)](
            states, query_norm, key_norm, *turn, keys, values, position, self._parts, self._tops, self._sums,
            keys.shape[2], heads.scale, heads.epsilon, heads.queries, heads.shared, heads.size, norms is not None,
            cut.parts, max(_HEADS, group), cut.positions, factors, num_warps=cut.warps,
        )  # fmt: skip
        _join[(heads.queries,)](
            self._parts, self._tops, self._sums, self._seen, heads.size, cut.parts, num_warps=2
        )  # fmt: skip
        return self._seen
