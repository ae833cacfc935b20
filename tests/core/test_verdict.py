"""Sentences that say what was measured, and no more."""

import pytest

from quantstudio.core.result import Interval, KernelUse, KvCacheCost, Spread
from quantstudio.core.speed_words import speed_details
from quantstudio.core.verdict import split_verdict, summary, verdict


def timings(median, width=0.01):
    return Spread(median=median, low=median * (1 - width), high=median * (1 + width))


def with_speed(result, decode=1.0, ttft=1.0, width=0.01):
    """The result with originals at 100 tokens/s and 0.2 s, and a quantized model at `decode` and `ttft` times that."""
    original = {"decode_tps": timings(100, width), "ttft_s": timings(0.2, width)}
    quantized = {"decode_tps": timings(100 * decode, width), "ttft_s": timings(0.2 * ttft, width)}
    first, last = (part.model_copy(update=original) for part in (result.original_first, result.original_last))
    changed = result.quantized.model_copy(update=quantized)
    return result.model_copy(update={"original_first": first, "original_last": last, "quantized": changed})


def with_change(result, value, low, high):
    quality = result.quality.model_copy(update={"perplexity_change": Interval(value=value, low=low, high=high)})
    return result.model_copy(update={"quality": quality})


def only(sentences, word):
    (found,) = [sentence for sentence in sentences if word in sentence]
    return found


def test_a_faster_smaller_model(make_result):
    found = verdict(with_speed(make_result("int4"), decode=2.6, ttft=0.5))
    assert found[0] == "3.1 times smaller: 16.8 MB → 5.46 MB."
    assert found[1] == "Writes text 2.6 times as fast as the original (100 tok/s → 260 tok/s)."
    assert found[2] == "Reads a prompt of 512 tokens 2.0 times as fast (first token 200 ms → 100 ms)."
    assert found[3] == "Needs 8 % less memory to run (512 MB → 470 MB at its peak)."
    assert "changed speed" not in " ".join(found)


def test_a_slower_model_is_called_not_faster_on_this_machine(make_result):
    found = verdict(with_speed(make_result("int4"), decode=0.6, ttft=2.0))
    text = "Not faster on this machine: writes text at 60 % of the original's speed (100 tok/s → 60 tok/s)."
    assert only(found, "writes text") == text
    assert only(found, "Not faster at reading").startswith("Not faster at reading a prompt of 512 tokens: 50 %")


@pytest.mark.parametrize(("decode", "width"), [(1.1, 0.06), (0.9, 0.06), (1.02, 0.001)])
def test_a_difference_within_the_spread_is_not_claimed(make_result, decode, width):
    found = verdict(with_speed(make_result("int4"), decode=decode, ttft=1 / decode, width=width))
    assert "as fast as the original" in only(found, "writes text")
    assert only(found, "writes text").startswith("Not faster on this machine")
    assert "within the spread" in only(found, "Reads a prompt")


@pytest.mark.parametrize("decode", [1.6, 0.6])
def test_medians_far_apart_in_overlapping_spreads_are_called_neither_equal_nor_different(make_result, decode):
    found = verdict(with_speed(make_result("int4"), decode=decode, ttft=1 / decode, width=0.5))
    assert only(found, "Writing speed").startswith("Writing speed: no clear difference (100 tok/s → ")
    assert "no clear difference" in only(found, "Reading a prompt of 512 tokens")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((0.021, 0.018, 0.024), "perplexity 2.1 % higher (1.8 to 2.4 % with 95 % confidence"),
        ((0.0012, 0.0008, 0.0016), "perplexity 0.12 % higher (0.08 to 0.16 %"),
        ((-0.02, -0.03, -0.01), "perplexity 2.0 % lower (−3.0 to −1.0 %"),
        ((0.0005, -0.0001, 0.0011), "no measurable loss"),
        ((0.0003, -0.00001, 0.0006), "within noise (0.00 to 0.06 %)"),
    ],
)
def test_quality_in_words(make_result, change, words):
    sentence = only(verdict(with_change(make_result("int4"), *change)), "Quality:")
    assert words in sentence
    assert ("within noise" in sentence) == (change[1] <= 0 <= change[2])


@pytest.mark.parametrize(("factor", "said"), [(1.04, False), (1.08, True), (0.9, True)])
def test_a_machine_that_changed_its_speed_is_mentioned(make_result, factor, said):
    result = with_speed(make_result("int4"))
    last = result.original_last.model_copy(update={"decode_tps": timings(100 * factor)})
    text = " ".join(verdict(result.model_copy(update={"original_last": last})))
    assert ("The machine changed speed by" in text) is said
    assert (f"by {abs(factor - 1) * 100:.0f} %" in text) is said


@pytest.mark.parametrize(("factor", "said"), [(0.8, False), (0.25, True), (2.0, True)])
def test_where_the_originals_are_far_apart_both_answers_are_told(make_result, factor, said):
    result = with_speed(make_result("int4"), decode=3.0)
    last = result.original_last.model_copy(update={"decode_tps": timings(100 * factor)})
    told = verdict(result.model_copy(update={"original_last": last}))
    answers = [sentence for sentence in told if sentence.startswith("Beside the first measurement")]
    assert bool(answers) is said
    if said:
        last_words = {0.25: "12.0 times", 2.0: "1.50 times"}[factor]
        assert f"writes 3.0 times as fast, beside the last {last_words}:" in answers[0]
        assert answers[0] in split_verdict(told)[0], "it belongs to what was gained, not behind it"


def test_on_a_gpu_its_memory_counts(make_result):
    result = make_result("int4")
    parts = {
        "original_first": result.original_first.model_copy(update={"peak_cuda": 2_000_000_000}),
        "original_last": result.original_last.model_copy(update={"peak_cuda": 2_000_000_000}),
        "quantized": result.quantized.model_copy(update={"peak_cuda": 1_000_000_000}),
    }
    assert "Needs 50 % less GPU memory to run (2 GB → 1 GB" in only(verdict(result.model_copy(update=parts)), "memory")


def test_what_was_not_measured_is_not_claimed(make_result):
    nothing = dict.fromkeys(("original_first", "quantized", "original_last", "quality"))
    result = make_result("int4", **nothing)
    assert verdict(result) == (
        "3.1 times smaller: 16.8 MB → 5.46 MB.",
        "Speed, memory and quality were not measured.",
    )
    assert summary(result) == "3.1× smaller"


def test_a_model_that_did_not_shrink_is_not_called_smaller(make_result):
    result = make_result("int4")
    made = result.quantization.model_copy(update={"sizes": result.quantization.original_sizes})
    assert verdict(result.model_copy(update={"quantization": made}))[0].startswith("Not smaller")


def test_one_line_for_the_list(make_result):
    assert summary(with_speed(make_result("int4"), decode=2.6)) == "3.1× smaller, 2.6× as fast, perplexity +5.3 %"


def test_the_line_for_the_list_claims_no_speed_that_the_noise_hides(make_result):
    noisy = with_speed(make_result("int4"), decode=0.6, width=0.9)
    assert "speed within the noise" in summary(noisy)
    assert "as fast" not in summary(noisy)


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.0002, -0.0003, 0.0007, "perplexity no measurable change (−0.03 to 0.07 % with 95 % confidence)."),
        (0.012, 0.01, 0.014, "perplexity +1.2 % (1.0 to 1.4 % with 95 % confidence)."),
        (-0.0004, -0.0006, -0.0002, "perplexity −0.04 % (−0.06 to −0.02 % with 95 % confidence)."),
    ],
)
def test_an_int8_cache_is_told_with_its_cost(make_result, value, low, high, words):
    change = Interval(value=value, low=low, high=high)
    cost = KvCacheCost(
        tokens=9, perplexity_change=change, kl=change, top1=change, bytes_per_token=33, bf16_bytes_per_token=64
    )
    told = only(verdict(make_result(kv_cache=cost)), "int8 key-value")
    assert told == f"int8 key-value cache: 52 % of the memory for each token of the text; {words}"


def with_limit(result, share, **changes):
    """The quantized model reads `share` of what the memory delivers."""
    speed = result.quantized
    moved = speed.decode_tps.median * 1_000_000
    limit = {"bandwidth": moved / share, "bytes_per_token": 1_000_000}
    return result.model_copy(update={"quantized": speed.model_copy(update=limit | changes)})


def test_lengths_kernels_and_the_limit_are_told(make_result):
    use = KernelUse(
        scheme="W4A16 g128", kernel="a", operator="an_operator", layers=42, decode_ratio=2.71, prompt_ratio=0.56,
        prompt_tokens=128,
    )  # fmt: skip
    found = verdict(with_limit(make_result("int4"), 0.71, kernel_uses=(use,)))
    assert only(found, "Measured with").endswith(
        "a prompt of 512 tokens and an answer of 64, so at context lengths of 512 to 576, on the CPU with 2 threads."
    )
    assert only(found, "How fast low-bit weights") == (
        "How fast low-bit weights are multiplied here: int4 weights (W4A16 g128) 2.7 times as fast as bf16 for one "
        "token, at 56 % of bf16's speed for a prompt of 128 (a short trial here; run by an_operator)."
    )
    own = use.model_copy(update={"operator": "quantstudio_product"})
    told = only(verdict(with_limit(make_result("int4"), 0.71, kernel_uses=(own,))), "How fast low-bit weights")
    assert told.endswith("(a short trial here; run by this program's own C++).")
    assert "Each token reads 1 MB of weights: 71 % of what the memory can deliver" in only(found, "Each token")
    assert "the output head in the bits of the layers" in only(found, "What would be faster")


@pytest.mark.parametrize("decode", [0.6, 2.0])
def test_what_was_gained_stands_apart_from_what_lies_behind_it(make_result, decode):
    use = KernelUse(scheme="W4A16 g128", kernel="a", operator="b", layers=42)
    result = with_limit(with_speed(make_result("int4"), decode, 1.5), 0.9, kernel_uses=(use,))
    told = verdict(result)
    behind = list(speed_details(result, result.original_first, result.quantized))
    assert len(behind) >= 4
    gained, background = split_verdict(["In words of an older version.", *told])
    assert background == behind
    assert gained == ["In words of an older version.", *(sentence for sentence in told if sentence not in behind)]


@pytest.mark.parametrize(
    ("decode", "ttft", "share", "words"),
    [
        (0.6, 1.0, 0.9, ["the original (100 tok/s here); W4A16 g128 saves 11.4 MB."]),
        (2.0, 1.5, 0.9, ["for long prompts with short answers the original (first token after 200 ms", "fewer bytes"]),
        (2.0, 1.0, 0.3, ["fewer bits hardly"]),
        (2.0, 1.0, 0.9, ["fewer bytes for each token"]),
    ],
)
def test_what_would_be_faster_rests_on_what_was_measured(make_result, decode, ttft, share, words):
    found = verdict(with_limit(with_speed(make_result("int4"), decode, ttft), share))
    told = [sentence for sentence in found if sentence.startswith("What would be faster")]
    assert len(told) == len(words)
    assert all(word in sentence for word, sentence in zip(words, told, strict=True))


def test_without_the_memorys_speed_no_share_of_it_is_told(make_result):
    found = " ".join(verdict(with_speed(make_result("int4"), 2.0, 0.5)))
    assert "memory can deliver" not in found
    assert "What would be faster" not in found
