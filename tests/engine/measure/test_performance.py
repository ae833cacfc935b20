"""Timings: what is timed, how it is summed up, and what happens at the edge of the context."""

import time
from types import SimpleNamespace

import pytest
import torch

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.recipe import BuiltinText, MeasureSection
from quantstudio.engine.load import load_model
from quantstudio.engine.measure import performance
from quantstudio.engine.measure.performance import load_timed, measure_performance, spread
from quantstudio.engine.measure.text import read_text
from quantstudio.engine.reporter import Reporter, silent

TEXT = read_text(BuiltinText(), 1024)


@pytest.fixture
def loaded(tiny_folder):
    """The tiny model without the short way for one token, so that hooks of the model see every pass."""
    found = load_model(tiny_folder, "cpu", silent())
    found.step = None
    return found


def test_timings_have_the_known_answer(loaded, monkeypatch):
    """On a clock that a prompt moves by 0.5 s and every further token by 0.1 s."""
    clock = [0.0]

    def tick(module, inputs, options):
        clock[0] += 0.5 if options["input_ids"].shape[1] > 1 else 0.1

    loaded.model.register_forward_pre_hook(tick, with_kwargs=True)
    monkeypatch.setattr(performance, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    measure = MeasureSection(prompt_tokens=16, decode_tokens=8)
    found = measure_performance(loaded, 1.5, "Slow", TEXT, measure, 0, silent())
    assert found.load_s == 1.5
    assert found.ttft_s.median == pytest.approx(0.5)
    assert found.prompt_tps.median == pytest.approx(16 / 0.5)
    assert found.decode_tps.median == pytest.approx(10)
    assert found.kernels == loaded.kernels
    assert found.threads == torch.get_num_threads()


def test_loading_is_timed(tiny_folder):
    started = time.perf_counter()
    _, load_s = load_timed(tiny_folder, silent(), lambda: load_model(tiny_folder, "cpu", silent()))
    assert 0 < load_s <= time.perf_counter() - started


def test_there_are_as_many_trials_as_asked_and_one_warm_up(loaded):
    calls = []
    loaded.model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    measure = MeasureSection(prompt_tokens=16, decode_tokens=8, trials=6)
    found = measure_performance(loaded, 0.0, "Tiny", TEXT, measure, 0, silent())
    assert len(found.decode_tps.trials) == 6
    assert len(calls) == (6 + 1) * (1 + 8)


def test_a_prompt_is_cut_to_what_the_model_can_read_and_that_is_said(loaded):
    sent = []
    measure = MeasureSection(prompt_tokens=512, decode_tokens=64)
    found = measure_performance(loaded, 0.0, "Tiny", TEXT, measure, 0, Reporter(sent.append))
    assert (found.prompt_tokens, found.decode_tokens) == (192, 64)
    assert any("at most 256 tokens" in getattr(message, "text", "") for message in sent)


def test_a_model_without_a_tokenizer_is_refused_in_words(loaded):
    loaded.tokenizer = None
    with pytest.raises(ModelUnsupported, match="no tokenizer"):
        measure_performance(loaded, 0.0, "Tiny", TEXT, MeasureSection(), 0, silent())


def test_median_and_quartiles():
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert found.trials == (5.0, 1.0, 2.0, 4.0, 3.0)
