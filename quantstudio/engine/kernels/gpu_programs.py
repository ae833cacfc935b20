"""Triton programs for one token on an NVIDIA GPU: low-bit products, attention over a static cache, unpacking.

A token of a quantized model is bound by reading weights, and on a GPU as much by the pauses between many small
programs. These read every packed word once, multiply out in registers in fp32, and do what comes before and after a
product (norm, bias, gate, residual) in the same pass. Attention is split along the sequence and joined afterwards
(Flash-Decoding, Dao et al. 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

Needs the package triton, which torch's CUDA builds for Linux bring along. `gpu_calls` starts them.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def product(
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
def attend(
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
def join(parts_ptr, tops_ptr, sums_ptr, out_ptr, SIZE: tl.constexpr, SPLITS: tl.constexpr):
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
def unpack(
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
