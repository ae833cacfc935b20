"""From paired intervals to words."""

from __future__ import annotations

import pytest

from quantstudio.core.contest import Contestant, Pair, Row, Verdict, choose_best, find_pair, recommend, verdict_of
from quantstudio.core.result import Interval

ORIGINAL, RTN, GPTQ, QAT = Contestant.ORIGINAL, Contestant.RTN, Contestant.GPTQ, Contestant.QAT
CLEAR_GAP = Interval(value=2.0, low=1.8, high=2.2)


def row(contestant: Contestant, perplexity: float) -> Row:
    exact = Interval(value=perplexity, low=perplexity - 1, high=perplexity + 1)
    change = Interval(value=perplexity / 40 - 1, low=perplexity / 40 - 1.01, high=perplexity / 40 - 0.99)
    recovered = None
    if contestant not in (ORIGINAL, RTN):
        share = (42 - perplexity) / 2
        recovered = Interval(value=share, low=share - 0.05, high=share + 0.05)
    return Row(
        contestant=contestant,
        title=str(contestant),
        nbytes=5_000_000,
        bits_per_weight=4.1,
        seconds=10,
        perplexity=exact,
        perplexity_change=change,
        kl=exact,
        recovered=recovered,
    )


def pair(first: Contestant, second: Contestant, low: float, high: float) -> Pair:
    difference = Interval(value=(low + high) / 2, low=low, high=high)
    return Pair(first=first, second=second, difference=difference, verdict=verdict_of(difference))


def rows(gptq: float, qat: float) -> tuple[Row, ...]:
    return row(ORIGINAL, 40), row(RTN, 42), row(GPTQ, gptq), row(QAT, qat)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.02, -0.01, Verdict.BETTER), (0.01, 0.02, Verdict.WORSE), (-0.01, 0.02, Verdict.CANNOT_TELL)],
)
def test_an_interval_that_contains_zero_decides_nothing(low: float, high: float, verdict: Verdict) -> None:
    assert pair(GPTQ, RTN, low, high).verdict is verdict


def test_a_pair_reads_the_same_from_both_sides() -> None:
    kept = pair(RTN, GPTQ, 0.25, 1.0)
    turned = find_pair([kept], GPTQ, RTN)
    assert turned is not None
    assert turned.verdict is Verdict.BETTER
    assert (turned.difference.low, turned.difference.high) == (pytest.approx(-0.5), pytest.approx(-0.2))
    assert find_pair([kept], GPTQ, QAT) is None


def test_what_is_better_beyond_doubt_is_taken() -> None:
    pairs = (pair(RTN, GPTQ, 0.01, 0.02), pair(RTN, QAT, 0.03, 0.04), pair(GPTQ, QAT, 0.01, 0.03))
    best, words = recommend(rows(41, 40.2), pairs, CLEAR_GAP, 50)
    assert best is QAT
    assert words == (
        "Take QAT. Perplexity 40.20, +0.5 % against the original; 90 % of what rounding loses is won back."
    )


def test_a_trained_model_that_is_not_clearly_better_is_not_worth_its_time() -> None:
    pairs = (pair(RTN, GPTQ, 0.01, 0.02), pair(RTN, QAT, 0.01, 0.02), pair(GPTQ, QAT, -0.001, 0.002))
    best, words = recommend(rows(41, 40.9), pairs, CLEAR_GAP, 50)
    assert best is GPTQ
    assert words.startswith(
        "QAT is not worth it here, take GPTQ: after 50 steps of training it is no better than GPTQ."
    )
    assert "the next preset takes 200 steps" in words
    assert "next preset" not in recommend(rows(41, 40.9), pairs, CLEAR_GAP, 800)[1]


def test_training_that_made_it_worse_is_said_so() -> None:
    pairs = (pair(RTN, GPTQ, 0.01, 0.02), pair(RTN, QAT, -0.02, -0.01), pair(GPTQ, QAT, -0.04, -0.03))
    best, words = recommend(rows(41, 43), pairs, CLEAR_GAP, 50)
    assert best is GPTQ
    assert "it is worse than GPTQ" in words


def test_where_rounding_costs_nothing_rounding_is_taken() -> None:
    pairs = (pair(RTN, GPTQ, -0.01, 0.01), pair(RTN, QAT, -0.01, 0.01), pair(GPTQ, QAT, -0.01, 0.01))
    noise = Interval(value=0.01, low=-0.1, high=0.1)
    best, words = recommend(rows(41, 40.9), pairs, noise, 50)
    assert best is RTN
    assert "nothing to win back" in words


def test_with_nothing_measured_nothing_is_chosen() -> None:
    with pytest.raises(ValueError, match="empty"):
        choose_best([row(ORIGINAL, 40)], [])
