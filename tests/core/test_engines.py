"""Which engine a run's model is put on when the person leaves the choice."""

import pytest

from quantstudio.core.engines import engine_words, is_better, preferred_engine
from quantstudio.core.result import EngineTrial, Interval, Performance, Spread


def spread(median, width=0.02):
    return Spread(median=median, low=median * (1 - width), high=median * (1 + width))


def performance(decode, first=1.0, width=0.02):
    return Performance(
        label="W4A16 g128",
        load_s=1,
        peak_rss=900_000_000,
        ttft_s=spread(first),
        prompt_tps=spread(512 / first),
        decode_tps=spread(decode, width),
        prompt_tokens=512,
        decode_tokens=64,
        device="cpu",
        threads=2,
    )


def trial(decode, first=1.0, kl=0.002, width=0.02):
    around = Interval(value=kl, low=kl * 0.9, high=kl * 1.1)
    change = Interval(value=0.001, low=-0.001, high=0.003)
    measured = performance(decode, first, width)
    return EngineTrial(
        engine="onnxruntime", performance=measured, tokens=4096, perplexity_change=change, kl=around, top1=around
    )


OWN = performance(40)


@pytest.mark.parametrize(
    ("other", "better"),
    [
        (trial(80), True),
        (trial(41), False),  # faster by less than the noise
        (trial(44, width=0.2), False),  # the ranges overlap
        (trial(20), False),
        (trial(80, first=1.4), True),
        (trial(80, first=2.0), False),  # a person would wait twice as long for the first word
        (trial(80, kl=0.2), False),  # other scores: something is wrong with it
    ],
)
def test_the_other_engine_must_be_clearly_faster_and_agree(other, better, make_result):
    assert is_better(other, OWN) is better
    result = make_result().model_copy(update={"quantized": OWN, "other_engine": other})
    assert preferred_engine(result) == ("onnxruntime" if better else "torch")
    assert ("takes it by itself" in engine_words(other, OWN)) is better


def test_without_a_measurement_it_is_torch(make_result):
    assert preferred_engine(None) == "torch"
    assert preferred_engine(make_result().model_copy(update={"quantized": OWN})) == "torch"


def test_the_words_give_the_figures_of_both():
    words = engine_words(trial(80, kl=0.0017), OWN)
    assert "80 tok/s instead of 40 tok/s" in words
    assert "perplexity +0.10 %, KL divergence 0.0017" in words
    assert "differ too much" in engine_words(trial(80, kl=0.3), OWN)
