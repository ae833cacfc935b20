"""Quality against numbers computed another way, and the same however the logits are cut up."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantstudio.core.errors import BadWeights, Cancelled
from quantstudio.core.recipe import BuiltinText, MeasureSection
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.measure import quality
from quantstudio.engine.measure.quality import measure_quality, score
from quantstudio.engine.measure.text import cut_windows, read_text
from quantstudio.engine.reporter import Reporter, silent


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(
        str(folder), trust_remote_code=False, use_safetensors=True, dtype=dtype
    ).eval()


@pytest.fixture(scope="module")
def models(tiny_folder):
    """The tiny model and one a little off, in float32 so that sums can be compared closely."""
    original, changed = load(tiny_folder), load(tiny_folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.std())
    return original, changed


@pytest.fixture(scope="module")
def windows(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder), trust_remote_code=False)
    return cut_windows(read_text(BuiltinText(), 1024), tokenizer, 48, 48 * 7, seed=0)


def test_scores_equal_those_of_torchs_own_losses(models, windows):
    scores = score(*models, windows, silent())
    ids = torch.from_numpy(windows.ids)
    with torch.inference_mode():
        first, second = (model(input_ids=ids).logits[:, :-1].double().flatten(0, 1) for model in models)
    targets = ids[:, 1:].flatten()
    cross_entropy = torch.nn.functional.cross_entropy
    for found, logits in ((scores.nll_original, first), (scores.nll, second)):
        expected = cross_entropy(logits, targets, reduction="none").numpy()
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-4)
    p, q = torch.distributions.Categorical(logits=first), torch.distributions.Categorical(logits=second)
    expected = torch.distributions.kl_divergence(p, q).numpy()
    np.testing.assert_allclose(scores.kl.ravel(), expected, atol=1e-5)
    assert (scores.kl > 0).all()
    assert (scores.same.ravel() == (first.argmax(-1) == second.argmax(-1)).numpy()).all()
    assert 0.5 < scores.same.mean() < 1


@pytest.mark.parametrize("positions", [1, 13, 47, 48, 100])
def test_scores_do_not_depend_on_the_budget_for_logits(models, windows, monkeypatch, positions):
    """From one position at a time over a cache to several windows at once."""
    whole = score(*models, windows, silent())
    monkeypatch.setattr(quality, "LOGITS_BYTES", 2 * 512 * positions)
    monkeypatch.setattr(quality, "SCORING_BYTES", 4 * 512 * 5)
    pieces = score(*models, windows, silent())
    for name in ("nll_original", "nll", "kl"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=2e-4)


def test_bits_per_byte_are_total_information_over_total_bytes(models, windows, tiny_folder, monkeypatch):
    monkeypatch.setattr(quality, "cut_windows", lambda *_: windows)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder), trust_remote_code=False)
    loaded = [LoadedModel(model, tokenizer, "cpu", tiny_folder) for model in models]
    found = measure_quality(*loaded, read_text(BuiltinText(), 1024), MeasureSection(), 0, silent())
    scores = score(*models, windows, silent())
    text = "".join(tokenizer.decode(window[1:], clean_up_tokenization_spaces=False) for window in windows.ids)
    assert windows.scored.all()
    assert found.bits_per_byte.value == pytest.approx(
        scores.nll.astype(np.float64).sum() / math.log(2) / len(text.encode()), rel=1e-6
    )
    assert found.perplexity_change.value == pytest.approx(
        found.perplexity.value / found.original_perplexity.value - 1, rel=1e-6
    )
    assert found.windows == len(windows.ids)


def test_a_window_is_no_longer_than_the_model_can_read(models, tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder), trust_remote_code=False)
    loaded = LoadedModel(models[0], tokenizer, "cpu", tiny_folder)
    sent = []
    measure = MeasureSection(window=512, quality_tokens=1024)
    found = measure_quality(loaded, loaded, read_text(BuiltinText(), 1024), measure, 0, Reporter(sent.append))
    assert found.tokens == 4 * 255
    assert any("windows of 256" in getattr(message, "text", "") for message in sent)


def test_scores_that_are_not_numbers_are_refused(tiny_folder, windows):
    broken = load(tiny_folder)
    with torch.no_grad():
        broken.get_input_embeddings().weight[5:].fill_(float("nan"))
    with pytest.raises(BadWeights, match="not numbers"):
        score(broken, broken, windows, silent())


def test_scoring_stops_when_asked(models, windows):
    reporter = Reporter(lambda message: reporter.cancel.set())
    with pytest.raises(Cancelled):
        score(*models, windows, reporter)


@pytest.mark.parametrize("positions", [48 * 7, 20])
def test_a_model_loaded_to_run_fast_scores_as_plain_transformers_does(tiny_folder, windows, monkeypatch, positions):
    """Whole windows together, and pieces of one window over a cache, with the app's own attention and kernels."""
    plain = score(load(tiny_folder, torch.bfloat16), None, windows, silent())
    monkeypatch.setattr(quality, "LOGITS_BYTES", 2 * 512 * positions)
    fast = score(load_model(tiny_folder, "cpu", silent()).model, None, windows, silent())
    np.testing.assert_allclose(fast.nll.mean(), plain.nll.mean(), rtol=2e-3)
    np.testing.assert_allclose(fast.nll, plain.nll, atol=0.2)
