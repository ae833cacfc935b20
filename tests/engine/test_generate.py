from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from quantstudio.core.errors import BadWeights, PromptTooLong, QuantStudioError
from quantstudio.core.jobs import Sampling
from quantstudio.engine.cuda_graph import fits_graph
from quantstudio.engine.detokenize import Detokenizer
from quantstudio.engine.generate import Generator, Stats
from quantstudio.engine.load import LoadedModel
from quantstudio.engine.sampling import Sampler
from quantstudio.engine.stop_texts import StopTexts

GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=20)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is byte i in the byte-level alphabet, so one character can take four tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def loaded(model: PreTrainedModel, end_tokens: frozenset[int] = frozenset()) -> LoadedModel:
    return LoadedModel(model, byte_tokenizer(), "cpu", Path(), {}, end_tokens)


def greedy(generator: Generator, prompt: list[int], count: int) -> list[int]:
    tokens: list[int] = []
    logits = generator.prefill(prompt)
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits = generator.decode_step(tokens[-1])
    return tokens


def prompt_of(length: int) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(1)).tolist()


def test_greedy_text_equals_transformers_generate(tiny_model, family):
    # In float32 the two orders of summation never reach a different argmax here; bf16 is tested below.
    model = tiny_model(family)
    prompt = prompt_of(40)
    with torch.inference_mode():
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False, eos_token_id=None)
    ours = greedy(Generator(loaded(model)), prompt, 60)
    assert ours == theirs[0, 40:].tolist()
    assert len(set(ours)) > 3


def test_greedy_bf16_only_picks_tokens_as_good_as_the_reference_pick(tiny_model, family):
    # bf16 rounds differently when attention is summed in another order, so exact ties may fall either way. What must
    # hold: given our own text, the reference scores each token we picked within rounding of its best one.
    model = tiny_model(family, torch.bfloat16)
    prompt = prompt_of(40)
    ours = greedy(Generator(loaded(model)), prompt, 60)
    with torch.inference_mode():
        scores = model(torch.tensor([prompt + ours])).logits[0, 39:-1].float()
    picked = scores.gather(1, torch.tensor(ours)[:, None])[:, 0]
    spread = scores.std(dim=1)
    assert ((scores.amax(dim=1) - picked) / spread).max() < 0.1


def test_long_prompt_read_in_pieces_scores_as_in_one(tiny_model, family, monkeypatch):
    monkeypatch.setattr("quantstudio.engine.generate.PROMPT_CHUNK", 16)
    model = tiny_model(family)
    prompt = prompt_of(100)
    logits = Generator(loaded(model)).prefill(prompt)
    with torch.inference_mode():
        whole = model(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family_with_graph", ["llama", "qwen2", "gpt_neox"])
def test_static_cache_of_gpus_gives_the_same_text(tiny_model, monkeypatch, family_with_graph):
    # Without a GPU nothing is recorded, but the cache, its restart and its growth are the same.
    monkeypatch.setattr("quantstudio.engine.sequence._GRAPH_STEP", 16)
    generator = Generator(loaded(tiny_model(family_with_graph)))
    expected = greedy(generator, prompt_of(20), 40)
    generator._sequence._uses_graph = True
    assert greedy(generator, prompt_of(20), 40) == expected
    capacity = generator._sequence._graph.capacity
    assert greedy(generator, prompt_of(20), 40) == expected
    assert generator._sequence._graph.capacity == capacity > 32


def test_sliding_windows_stay_off_the_graph(tiny_model):
    assert not fits_graph(tiny_model("gemma3").config)
    assert fits_graph(tiny_model("llama").config)


def test_prefill_starts_a_new_sequence(tiny_model):
    generator = Generator(loaded(tiny_model("qwen2")))
    first = generator.prefill(prompt_of(10))
    generator.decode_step(5)
    assert torch.equal(generator.prefill(prompt_of(10)), first)
    assert generator.position == 10


def test_stream_gives_text_then_stats(tiny_model):
    generator = Generator(loaded(tiny_model("llama")))
    *pieces, stats = generator.stream(prompt_of(8), GREEDY, threading.Event())
    tokens = greedy(generator, prompt_of(8), 20)
    assert "".join(pieces) == byte_tokenizer().decode(tokens, skip_special_tokens=True)
    assert isinstance(stats, Stats)
    assert (stats.prompt_tokens, stats.tokens, stats.reason) == (8, 20, "length")
    assert stats.ttft_s > 0
    assert stats.tokens_per_s > 0


def test_stream_ends_at_an_end_token_without_writing_it(tiny_model):
    model = tiny_model("llama")
    tokens = greedy(Generator(loaded(model)), prompt_of(8), 20)
    fifth = tokens[5]
    *_, stats = Generator(loaded(model, frozenset({fifth}))).stream(prompt_of(8), GREEDY, threading.Event())
    assert (stats.reason, stats.tokens) == ("end", tokens.index(fifth))


def test_cancel_stops_within_one_token(tiny_model):
    cancel = threading.Event()
    generator = Generator(loaded(tiny_model("llama")))
    steps = 0
    real = generator.decode_step

    def step(token: int) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:
            cancel.set()
        return real(token)

    generator.decode_step = step  # type: ignore[method-assign]
    *_, stats = generator.stream(prompt_of(8), GREEDY, cancel)
    assert (stats.reason, stats.tokens) == ("stopped", 3)


def test_cancel_before_the_prompt_is_read_writes_nothing(tiny_model):
    cancel = threading.Event()
    cancel.set()
    (stats,) = Generator(loaded(tiny_model("llama"))).stream(prompt_of(8), GREEDY, cancel)
    assert (stats.reason, stats.tokens, stats.tokens_per_s) == ("stopped", 0, 0)


def test_answer_ends_where_the_context_ends(tiny_model):
    generator = Generator(loaded(tiny_model("llama")))
    *_, stats = generator.stream(prompt_of(250), GREEDY, threading.Event())
    assert (stats.reason, stats.tokens) == ("length", 6)


def test_prompt_longer_than_the_context_is_refused_in_words(tiny_model):
    with pytest.raises(PromptTooLong, match="256"):
        Generator(loaded(tiny_model("llama"))).prefill(prompt_of(256))


def test_empty_prompt_is_refused(tiny_model):
    with pytest.raises(QuantStudioError, match="empty"):
        Generator(loaded(tiny_model("llama"))).prefill([])


def test_not_a_number_is_named(tiny_model):
    model = tiny_model("llama")
    model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(BadWeights):
        list(Generator(loaded(model)).stream(prompt_of(4), GREEDY, threading.Event()))


@pytest.mark.parametrize(
    "text", ["plain words", "naïve café", "日本語のテキスト", "🙂🙃 and 👩‍👩‍👧", "  spaces  kept "]
)
def test_pieces_are_whole_characters_and_add_up(text):
    tokenizer = byte_tokenizer()
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + detokenizer.finish() == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_half_a_character_comes_out_at_the_end():
    tokenizer = byte_tokenizer()
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer.encode("a🙂")[:3]
    assert "".join(detokenizer.add(token) for token in tokens) == "a"
    assert set(detokenizer.finish()) == {"\ufffd"}


def draws(sampling: Sampling, logits: torch.Tensor, count: int = 300) -> list[int]:
    sampler = Sampler(sampling, [])
    return [sampler.pick(logits) for _ in range(count)]


PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


def test_same_seed_same_tokens():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3))
    first = draws(Sampling(**PLAIN, seed=11), logits)
    assert first == draws(Sampling(**PLAIN, seed=11), logits)
    assert first != draws(Sampling(**PLAIN, seed=12), logits)


def test_frequencies_follow_the_scores_and_the_temperature():
    logits = torch.tensor([0.9, 0.1]).log()
    share = draws(Sampling(**PLAIN, seed=0), logits, 2000).count(0) / 2000
    assert 0.87 < share < 0.93
    cold = draws(Sampling(**PLAIN | {"temperature": 0.5}, seed=0), logits, 2000).count(0) / 2000
    assert 0.975 < cold < 0.998


def test_top_k_and_top_p_leave_out_the_tail():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert set(draws(Sampling(**PLAIN | {"top_k": 2}, seed=0), logits)) == {1, 3}
    assert set(draws(Sampling(**PLAIN | {"top_p": 0.6}, seed=0), logits)) == {1, 3}
    assert set(draws(Sampling(**PLAIN | {"top_p": 0.01}, seed=0), logits)) == {1}


def test_repetition_penalty_applies_to_prompt_and_answer():
    sampling = Sampling(temperature=0, repetition_penalty=2)
    sampler = Sampler(sampling, [0])
    assert [sampler.pick(torch.tensor([3.0, 2.0, 1.0, -1.0])) for _ in range(2)] == [1, 0]


def forward_lengths(model: PreTrainedModel) -> list[int]:
    """Tokens that each call of the model is given, from now on."""
    lengths: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[-1]))
    return lengths


def test_a_longer_prompt_is_read_from_where_it_differs(tiny_model, family):
    model = tiny_model(family)
    generator, first = Generator(loaded(model)), prompt_of(60)
    generator.prefill(first)
    generator.decode_step(5)
    follow_up = [*first[:50], 9, 8, 7]
    lengths = forward_lengths(model)
    kept = generator.resume(follow_up)
    assert sum(lengths) == 3
    assert generator.position == 53
    torch.testing.assert_close(kept, generator.prefill(follow_up), rtol=1e-4, atol=1e-4)


def test_the_same_prompt_again_reads_its_last_token_only(tiny_model):
    model = tiny_model("llama")
    generator = Generator(loaded(model))
    fresh = generator.prefill(prompt_of(30))
    lengths = forward_lengths(model)
    torch.testing.assert_close(generator.resume(prompt_of(30)), fresh, rtol=1e-4, atol=1e-4)
    assert lengths == [1]
    generator.resume([77, *prompt_of(30)])
    assert lengths == [1, 31]


def test_a_static_cache_is_continued_too(tiny_model):
    generator = Generator(loaded(tiny_model("qwen2")))
    follow_up = [*prompt_of(30)[:20], 4, 5]
    expected = generator.prefill(follow_up)
    generator._sequence._uses_graph = True
    generator.prefill(prompt_of(30))
    torch.testing.assert_close(generator.resume(follow_up), expected, rtol=1e-4, atol=1e-4)
    assert (generator.position, generator._reused) == (22, 20)


def test_an_answer_with_a_seed_does_not_depend_on_what_was_said_before(tiny_model):
    generator = Generator(loaded(tiny_model("llama")))
    prompt = prompt_of(20)
    reused = [list(generator.stream(prompt, GREEDY, threading.Event()))[-1].reused_tokens for _ in range(2)]
    assert reused == [0, 19]
    seeded = GREEDY.model_copy(update={"seed": 1})
    assert list(generator.stream(prompt, seeded, threading.Event()))[-1].reused_tokens == 0


def test_cancel_leaves_a_prompt_between_two_layers(tiny_model, family):
    model = tiny_model(family)
    generator, cancel = Generator(loaded(model)), threading.Event()
    expected = generator.prefill(prompt_of(40))
    generator.prefill(prompt_of(30))
    reached: list[int] = []
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    hooks = [layers[0].register_forward_pre_hook(lambda *_: cancel.set())]
    hooks += [layers[1].mlp.register_forward_pre_hook(lambda *_: reached.append(1))]
    assert generator.resume(prompt_of(40), cancel=cancel).numel() == 0
    assert not reached
    for hook in hooks:
        hook.remove()
    assert generator.position == 30
    torch.testing.assert_close(generator.resume(prompt_of(40)), expected, rtol=1e-4, atol=1e-4)


def test_progress_counts_the_tokens_read(tiny_model, monkeypatch):
    monkeypatch.setattr("quantstudio.engine.generate.PROMPT_CHUNK", 16)
    told: list[int] = []
    generator = Generator(loaded(tiny_model("llama")))
    generator.prefill(prompt_of(40), on_progress=told.append)
    assert told == [16, 32, 40]


def test_a_stop_text_ends_the_answer_and_is_not_shown(tiny_model):
    generator = Generator(loaded(tiny_model("llama")))
    *pieces, _ = generator.stream(prompt_of(8), GREEDY, threading.Event())
    text = "".join(pieces)
    stop = text[4:6]
    *pieces, stats = generator.stream(prompt_of(8), GREEDY.model_copy(update={"stop": (stop,)}), threading.Event())
    assert "".join(pieces) == text[: text.index(stop)]
    assert stats.reason == "end"
    assert stats.tokens < 20


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (("END",), "The ENEND of it", "The EN"),
        (("END",), "The EN", "The EN"),
        (("\\n\\n", "User:"), "one\ntwo\n\nUser: three", "one\ntwo"),
        (("aab", "b"), "aaab", "a"),
        ((), "anything", "anything"),
    ],
)
def test_stop_texts_are_found_across_pieces(stops, text, shown, size):
    found = StopTexts(stops)
    out = "".join(found.add(text[at : at + size]) for at in range(0, len(text), size))
    assert out + found.finish() == shown
    assert found.found == (shown != text)


@pytest.mark.parametrize(
    "settings", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}]
)
def test_the_same_words_are_considered_as_by_transformers(settings):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 2
    given = {"top_k": 40, "top_p": 1.0, "min_p": 0.0} | settings
    scores = logits[None]
    for processor in (
        TemperatureLogitsWarper(0.8),
        TopKLogitsWarper(given["top_k"]),
        TopPLogitsWarper(given["top_p"]),
        MinPLogitsWarper(given["min_p"]),
    ):
        scores = processor(torch.empty(1, 0, dtype=torch.long), scores)
    considered = set(scores[0].isfinite().nonzero().flatten().tolist())
    drawn = draws(Sampling(**PLAIN | {"temperature": 0.8} | settings, seed=0), logits, 3000)
    assert set(drawn) <= considered
    likely = scores[0].softmax(0)
    assert {token for token in considered if likely[token] > 0.005} <= set(drawn)  # missed once in 3 million
