"""How sure a measured quality is: paired block bootstrap intervals.

Tokens of one text are not independent, so whole blocks of neighbouring tokens are drawn again, not tokens. Both
models are scored on the same drawn blocks (paired), so what makes a passage hard for both cancels out of their
difference. The percentile interval of n blocks is too narrow by about sqrt((n-1)/n) and by the normal instead of
Student's distribution; the percentiles are widened for that.

Sources: Künsch, "The jackknife and the bootstrap for general stationary observations", Ann. Stat. 17 (1989);
Hesterberg, "What teachers should know about the bootstrap", Am. Stat. 69 (2015), section 5.3 (expanded percentiles).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from quantstudio.core.result import Interval

RESAMPLES = 2000
CONFIDENCE = 0.95
WANTED_BLOCKS = 32
_DRAWN_AT_ONCE = 4_000_000

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Sums over the scored tokens of each block, float64 `[blocks]`; negative log likelihoods and KL in nats."""

    tokens: Array
    nbytes: Array
    nll_original: Array
    nll: Array
    kl: Array
    same: Array
    """Tokens at which both models find the same token likeliest."""


@dataclass(frozen=True, slots=True)
class QualityIntervals:
    """95 % intervals of everything that `BlockSums` can tell."""

    original_perplexity: Interval
    perplexity: Interval
    perplexity_change: Interval
    original_bits_per_byte: Interval
    bits_per_byte: Interval
    kl: Interval
    top1: Interval


def sum_blocks(values: NDArray[np.generic]) -> Array:
    """Sums per block of values `[windows, positions]`: a block is a window, or part of one when windows are few."""
    parts = min(values.shape[1], math.ceil(WANTED_BLOCKS / values.shape[0]))
    pieces = [piece.sum(axis=1, dtype=np.float64) for piece in np.array_split(values, parts, axis=1)]
    return np.stack(pieces, axis=1).reshape(-1)


def quality_intervals(sums: BlockSums, seed: int) -> QualityIntervals:
    """Estimates from all blocks with intervals from blocks drawn again. Same seed, same intervals."""
    columns = (sums.tokens, sums.nbytes, sums.nll_original, sums.nll, sums.kl, sums.same)
    totals = draw_totals(np.stack(columns, axis=1), seed)
    tokens, nbytes, nll_original, nll, kl, same = totals.T
    blocks = len(sums.tokens)

    def interval(values: Array) -> Interval:
        return percentile_interval(values, blocks)

    bits = nbytes * math.log(2)
    return QualityIntervals(
        original_perplexity=interval(np.exp(nll_original / tokens)),
        perplexity=interval(np.exp(nll / tokens)),
        perplexity_change=interval(np.expm1((nll - nll_original) / tokens)),
        original_bits_per_byte=interval(nll_original / bits),
        bits_per_byte=interval(nll / bits),
        kl=interval(kl / tokens),
        top1=interval(same / tokens),
    )


def draw_totals(columns: Array, seed: int, resamples: int = RESAMPLES) -> Array:
    """Totals of `columns` `[blocks, k]`: row 0 over all blocks, the other `resamples` rows over blocks drawn again."""
    blocks = len(columns)
    rng = np.random.default_rng(seed)
    share = np.full(blocks, 1 / blocks)
    rows = [columns.sum(axis=0, keepdims=True)]
    at_once = max(1, _DRAWN_AT_ONCE // blocks)
    for start in range(0, resamples, at_once):
        # How often each block is drawn, instead of which are drawn: one matrix product then gives all totals.
        counts = rng.multinomial(blocks, share, size=min(at_once, resamples - start))
        rows.append(counts.astype(np.float64) @ columns)
    return np.concatenate(rows)


def percentile_interval(values: Array, blocks: int) -> Interval:
    """Interval from an estimate (`values[0]`) and its resamples (the rest), widened for the number of blocks."""
    tail = _expanded_tail(blocks)
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    value = float(values[0])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _expanded_tail(blocks: int) -> float:
    if blocks < 2:
        return 0.0
    widened = _student_quantile((1 + CONFIDENCE) / 2, blocks - 1) * math.sqrt(blocks / (blocks - 1))
    return NormalDist().cdf(-widened)


def _student_quantile(probability: float, freedom: int) -> float:
    """Student's t by its expansion around the normal quantile (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
