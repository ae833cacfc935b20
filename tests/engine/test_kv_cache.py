from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, MistralConfig

from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import BuiltinText, KvCache, MeasureSection
from quantstudio.engine.generate import Generator
from quantstudio.engine.kv_cache import attend_one, bytes_per_position, cache_argument, make_cache
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.measure.quality import measure_kv_cache
from quantstudio.engine.measure.text import read_text
from quantstudio.engine.reporter import silent


class Before:
    def forward(self, input_ids, past_key_values=None, use_cache=None): ...


class Since:
    def forward(self, input_ids, cache=None, use_cache=None): ...


@pytest.mark.parametrize(("model", "name"), [(Before(), "past_key_values"), (Since(), "cache")])
def test_the_cache_goes_by_the_name_that_the_model_knows(model, name):
    """transformers 5.24 renamed the argument; a warning about the old name would reach every user."""
    kept = object()
    assert cache_argument(model, kept) == {name: kept, "use_cache": True}


INT8 = KvCache.INT8


def states(length, heads=2, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, length, size, generator=generator).mul_(3).to(torch.bfloat16)


def test_int8_is_within_half_a_step_of_what_was_put_in(tiny_model):
    layer = make_cache(tiny_model("llama").config, 0, INT8).layers[0]
    keys, values = states(20), states(20, seed=1)
    for start, stop in ((0, 12), (12, 13), (13, 20)):
        found = layer.update(keys[:, :, start:stop], values[:, :, start:stop])
    for given, back in zip((keys, values), found, strict=True):
        step = given.float().abs().amax(-1, keepdim=True) / 127
        # Half a step, and twice the half of the last of bf16's eight bits: of the scale, and of the product.
        assert ((back.float() - given.float()).abs() <= step / 2 + given.float().abs() / 128).all()
        assert back.dtype == torch.bfloat16


def test_zeros_stay_zeros(tiny_model):
    layer = make_cache(tiny_model("llama").config, 0, INT8).layers[0]
    nothing = torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16)
    assert all((found == 0).all() for found in layer.update(nothing, nothing))


def test_int8_takes_about_half_the_memory():
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, num_hidden_layers=2, vocab_size=32)
    sizes = []
    for kind in KvCache:
        cache = make_cache(config, reserve=512, kind=kind)
        for layer in cache.layers:
            layer.update(states(5, heads=4), states(5, heads=4))
        held = [tensor for layer in cache.layers for tensor in tensors_of(layer._buffer)]
        assert sum(tensor.nbytes for tensor in held) == 512 * bytes_per_position(cache)
        sizes.append(bytes_per_position(cache))
    assert sizes[0] == 2 * 2 * 4 * 64 * 2
    assert sizes[1] == 2 * 2 * 4 * (64 + 2)


def tensors_of(buffer):
    parts = [part for part in vars(buffer).values() if not isinstance(part, int)]
    return [t for part in parts for t in ([part] if isinstance(part, torch.Tensor) else tensors_of(part))]


def scores(generator, tokens, pieces):
    """Logits after each piece of the tokens."""
    rows, done = [generator.prefill(tokens[: pieces[0]])], pieces[0]
    for piece in pieces[1:]:
        for token in tokens[done : done + piece]:
            logits = generator.decode_step(token)
        rows.append(logits.clone())
        done += piece
    return torch.stack(rows).float()


def tokens_of(length):
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(1)).tolist()


def away(found, expected):
    return float((found - expected).norm() / expected.norm())


def loaded_of(model):
    return LoadedModel(model, None, "cpu", Path())


def test_a_model_scores_nearly_the_same(tiny_model, family):
    """Also beyond the sliding windows of those that have one. These tiny models are far more sensitive than real ones:
    their weights are six times as large as those that training starts from."""
    loaded, pieces = loaded_of(tiny_model(family)), [40, 1, 20, 1]
    plain, rounded = (scores(Generator(loaded, kind), tokens_of(62), pieces) for kind in KvCache)
    assert 0 < away(rounded, plain) < 0.05


def test_prompt_and_single_tokens_see_the_same_numbers(tiny_model, family):
    loaded, tokens = loaded_of(tiny_model(family)), tokens_of(60)
    whole = Generator(loaded, INT8).prefill(tokens)
    single = scores(Generator(loaded, INT8), tokens, [20, 40])[-1]
    # Keys that differ in the last bit of fp32 fall on another code now and then.
    assert away(single, whole) < 0.02


def test_a_kept_prefix_is_the_one_that_was_read(tiny_model, family):
    loaded, tokens = loaded_of(tiny_model(family)), tokens_of(60)
    again, other = Generator(loaded, INT8), tokens[:30] + tokens_of(90)[70:]
    scores(again, tokens, [50, 10])
    kept = again.resume(other)
    assert again._reused == 30
    assert away(kept, Generator(loaded, INT8).prefill(other)) < 0.02


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("window", [None, 9])
def test_attention_of_one_token_is_softmax_over_what_it_sees(group, window):
    """Against the formula in fp64 over the numbers that the codes stand for."""
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 32}
    config = MistralConfig(**shape, sliding_window=window)
    layer, twin = (make_cache(config, 0, INT8).layers[0] for _ in range(2))
    keys, values, rows = states(20), states(20, seed=1), states(group, seed=2)
    layer.update(keys[:, :, :19], values[:, :, :19])
    twin.update(keys[:, :, :19], values[:, :, :19])
    found = attend_one(layer, keys[:, :, 19:], values[:, :, 19:], rows, 0.1)
    seen_keys, seen_values = twin.update(keys[:, :, 19:], values[:, :, 19:])
    assert seen_keys.shape[2] == (window or 20)
    scores = rows.double() @ seen_keys.double().transpose(2, 3) * 0.1
    expected = scores.softmax(-1) @ seen_values.double()
    assert found.shape == rows.shape
    # bf16 of the keys and values that are compared with, of the weights and of the result.
    assert away(found.double(), expected) < 0.01
    assert layer.get_seq_length() == 20


def test_the_short_step_reads_it_like_transformers_code(tmp_path):
    loaded = load_model(starter_model(), "cpu", silent())
    tokens = loaded.tokenizer("It was a dark night, and the captain of the whaler stood on the deck.")["input_ids"]
    assert loaded.step is not None
    short = scores(Generator(loaded, INT8), tokens, [5, 1, 1, len(tokens) - 7])
    loaded.step = None
    assert away(short, scores(Generator(loaded, INT8), tokens, [5, 1, 1, len(tokens) - 7])) < 0.01


def test_the_starter_model_writes_nearly_the_same_text():
    """Led along the text that it writes with a cache in bf16, it picks the same word or one nearly as good."""
    loaded = load_model(starter_model(), "cpu", silent())
    prompt = loaded.tokenizer("It was a dark night, and the captain of the whaler stood")["input_ids"]
    plain, rounded = Generator(loaded), Generator(loaded, INT8)
    expected, found = plain.prefill(prompt), rounded.prefill(prompt)
    others = 0
    for _ in range(100):
        token, picked = int(expected.argmax()), int(found.argmax())
        others += picked != token
        assert expected[token] - expected[picked] <= 0.1 * expected.float().std()
        expected, found = plain.decode_step(token), rounded.decode_step(token)
    assert others <= 3


def test_its_cost_is_measured_on_the_models_own_text():
    loaded = load_model(starter_model(), "cpu", silent())
    measure = MeasureSection(quality_tokens=4096, window=256)
    found = measure_kv_cache(loaded, read_text(BuiltinText(), 4096), measure, 0, silent())
    change = found.perplexity_change
    assert found.tokens == 16 * 255
    assert change.low <= change.value <= change.high
    assert abs(change.value) < 0.01
    assert 0 < found.kl.value < 0.01
    assert found.top1.value > 0.95
    assert 0.5 < found.bytes_per_token / found.bf16_bytes_per_token < 0.55
