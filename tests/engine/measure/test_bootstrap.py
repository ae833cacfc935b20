"""Intervals that are what they claim to be, on data whose truth is known."""

import math

import numpy as np
import pytest

from quantstudio.engine.measure.bootstrap import (
    BlockSums,
    _student_quantile,
    draw_totals,
    percentile_interval,
    quality_intervals,
    sum_blocks,
)


def block_sums(rng, blocks, length=100, change=0.02):
    """Correlated tokens: each block has a difficulty of its own that both models share."""
    shared = rng.normal(0, 0.4, size=(blocks, 1)) + rng.normal(0, 1, size=(blocks, length)) + 3
    quantized = shared + change + rng.normal(0, 0.1, size=shared.shape)
    ones = np.ones((blocks, length))
    return BlockSums(
        tokens=ones.sum(1),
        nbytes=4 * ones.sum(1),
        nll_original=shared.sum(1),
        nll=quantized.sum(1),
        kl=0.5 * np.abs(quantized - shared).sum(1),
        same=(rng.random(shared.shape) < 0.9).sum(1).astype(float),
    )


@pytest.mark.parametrize("blocks", [16, 40])
def test_intervals_cover_the_truth_about_19_times_in_20(blocks):
    truth = {
        "original_perplexity": math.exp(3),
        "perplexity_change": math.expm1(0.02),
        "bits_per_byte": 3.02 / 4 / math.log(2),
        "top1": 0.9,
    }
    trials, hits = 300, dict.fromkeys(truth, 0)
    for trial in range(trials):
        found = quality_intervals(block_sums(np.random.default_rng(1000 + trial), blocks), seed=trial)
        for name, value in truth.items():
            interval = getattr(found, name)
            hits[name] += interval.low <= value <= interval.high
    for name, count in hits.items():
        # 95 % of 300 is 285; three standard deviations of that count are 11. Not wider than need be, either.
        assert 272 <= count <= 298, (name, count)


def test_pairing_makes_the_change_far_more_certain_than_the_perplexities():
    found = quality_intervals(block_sums(np.random.default_rng(0), 64), seed=0)
    unpaired = (found.perplexity.high - found.perplexity.low) / found.perplexity.value
    paired = found.perplexity_change.high - found.perplexity_change.low
    assert paired < unpaired / 10


def test_the_estimate_is_computed_from_all_blocks_exactly():
    sums = block_sums(np.random.default_rng(0), 40)
    found = quality_intervals(sums, seed=0)
    assert found.perplexity.value == pytest.approx(math.exp(sums.nll.sum() / sums.tokens.sum()))
    assert found.kl.value == pytest.approx(sums.kl.sum() / sums.tokens.sum())
    assert found.original_bits_per_byte.value == pytest.approx(
        sums.nll_original.sum() / math.log(2) / sums.nbytes.sum()
    )


def test_a_model_compared_with_itself_has_no_change_at_all():
    sums = block_sums(np.random.default_rng(0), 40)
    same = BlockSums(sums.tokens, sums.nbytes, sums.nll, sums.nll, 0 * sums.kl, sums.tokens)
    found = quality_intervals(same, seed=0)
    assert (found.perplexity_change.low, found.perplexity_change.value, found.perplexity_change.high) == (0, 0, 0)
    assert (found.top1.low, found.top1.high) == (1, 1)


def test_same_seed_same_interval_and_other_seed_another():
    sums = block_sums(np.random.default_rng(0), 40)
    assert quality_intervals(sums, seed=1) == quality_intervals(sums, seed=1)
    assert quality_intervals(sums, seed=1).kl != quality_intervals(sums, seed=2).kl


def test_draws_in_portions_keep_their_number(monkeypatch):
    monkeypatch.setattr("quantstudio.engine.measure.bootstrap._DRAWN_AT_ONCE", 700)
    totals = draw_totals(np.ones((10, 2)), seed=0, resamples=1001)
    assert totals.shape == (1002, 2)
    assert (totals == 10).all()


def test_few_windows_are_split_into_blocks_without_losing_a_token():
    values = np.arange(3 * 50).reshape(3, 50)
    assert len(sum_blocks(values)) == 33
    assert sum_blocks(values).sum() == values.sum()
    many = np.ones((100, 7))
    assert sum_blocks(many).tolist() == [7.0] * 100


def test_one_block_is_no_reason_to_fail():
    interval = percentile_interval(np.array([2.0, 1.0, 3.0]), blocks=1)
    assert (interval.low, interval.value, interval.high) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(("freedom", "table"), [(7, 2.3646), (31, 2.0395), (63, 1.9983)])
def test_student_quantiles_agree_with_the_printed_table(freedom, table):
    assert _student_quantile(0.975, freedom) == pytest.approx(table, abs=2e-3)
