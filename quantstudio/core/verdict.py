"""A run's measurements in sentences: what was gained, what was lost, and how far the numbers can be trusted.

A difference is claimed only when the quartiles of the timings, or the 95 % interval of the quality, stay apart.
When the quantized model is not faster on this machine, that is the sentence.
"""

from __future__ import annotations

from collections.abc import Iterable

from quantstudio.core.comparison import NEAR, SAME, baseline
from quantstudio.core.engines import engine_words
from quantstudio.core.humanize import human_bytes, human_count, human_rate, human_seconds, plural
from quantstudio.core.result import Interval, KvCacheCost, Performance, Quality, RunResult, Spread
from quantstudio.core.sensitivity import KNEE_KL
from quantstudio.core.speed_words import BACKGROUND, speed_details

DRIFT = 0.05
"""From this relative difference between the first and the last measurement of the original, it is mentioned."""
GREAT_DRIFT = 1.5
"""From this ratio between the two on, one figure would be false precision: what each of them says stands beside it."""


def verdict(result: RunResult) -> tuple[str, ...]:
    """Sentences for a person, the most important first. Needs nothing but the measurements in `result`."""
    sentences = [_size(result), *_removed(result)]
    original, quantized = baseline(result), result.quantized
    if original and quantized:
        sentences += [_decode(original, quantized), _prompt(original, quantized), _memory(original, quantized)]
    if result.quality:
        sentences += _quality(result.quality, removed_layers=result.quantization.removed_layers)
    if result.kv_cache:
        sentences.append(kv_cache_cost(result.kv_cache))
    if result.original_first and result.original_last:
        sentences += _drift(result.original_first, result.original_last)
        if quantized:
            sentences += _two_answers(result.original_first, result.original_last, quantized)
    if original and quantized:
        sentences += speed_details(result, original, quantized)
        if result.other_engine:
            sentences.append(engine_words(result.other_engine, quantized))
    if not quantized:
        sentences.append("Speed, memory and quality were not measured.")
    return tuple(sentences)


def split_verdict(sentences: Iterable[str]) -> tuple[list[str], list[str]]:
    """What was gained and lost; and how it was measured and what lies behind it. Knows older versions' words, too."""
    gained: list[str] = []
    background: list[str] = []
    for sentence in sentences:
        (background if sentence.startswith(BACKGROUND) else gained).append(sentence)
    return gained, background


def summary(result: RunResult) -> str:
    """One line for a list of runs: `3.9× smaller, 2.1× as fast, perplexity +5.3 %`. Claims no more than `verdict`."""
    made = result.quantization
    parts = [f"{made.original_sizes.total / max(1, made.sizes.total):.1f}× smaller"]
    original = baseline(result)
    if original and result.quantized:
        before, after = original.decode_tps, result.quantized.decode_tps
        apart = not (_unclear(before, after) or _same(before, after))
        parts.append(f"{_ratio(after, before):.2g}× as fast" if apart else "speed within the noise")
    if result.quality:
        parts.append(f"perplexity {result.quality.perplexity_change.value * 100:+.2g} %".replace("-", "−"))
    return ", ".join(parts)


def _size(result: RunResult) -> str:
    made = result.quantization
    before, after = made.original_sizes.total, made.sizes.total
    sizes = f"{human_bytes(before)} → {human_bytes(after)}"
    if after >= before:
        return f"Not smaller: {sizes}."
    return f"{before / max(1, after):.1f} times smaller: {sizes}."


def _removed(result: RunResult) -> list[str]:
    """That layers are gone, when they are."""
    made = result.quantization
    if not made.removed_layers:
        return []
    return [
        f"Only the first {made.layers} of {made.layers + made.removed_layers} layers are left, as the recipe asked: "
        f"{human_count(made.parameters)} of {human_count(made.original_parameters)} weights."
    ]


def _decode(original: Performance, quantized: Performance) -> str:
    before, after = original.decode_tps, quantized.decode_tps
    rates = f"{human_rate(before.median)} → {human_rate(after.median)}"
    ratio = _ratio(after, before)
    if _unclear(before, after):
        return f"Writing speed: no clear difference ({rates}); the timings scatter too much to tell."
    if _same(before, after):
        return f"Not faster on this machine: writes text as fast as the original ({rates}, within the spread)."
    if ratio < 1:
        return f"Not faster on this machine: writes text at {_share(ratio)} of the original's speed ({rates})."
    return f"Writes text {_times(ratio)} as fast as the original ({rates})."


def _prompt(original: Performance, quantized: Performance) -> str:
    before, after = original.ttft_s, quantized.ttft_s
    prompt = f"a prompt of {plural(quantized.prompt_tokens, 'token')}"
    times = f"{human_seconds(before.median)} → {human_seconds(after.median)}"
    ratio = _ratio(before, after)
    if _unclear(before, after):
        return f"Reading {prompt}: no clear difference (first token {times}); the timings scatter too much to tell."
    if _same(before, after):
        return f"Reads {prompt} as fast as the original (first token {times}, within the spread)."
    if ratio < 1:
        return f"Not faster at reading {prompt}: {_share(ratio)} of the original's speed (first token {times})."
    return f"Reads {prompt} {_times(ratio)} as fast (first token {times})."


def _memory(original: Performance, quantized: Performance) -> str:
    on_gpu = bool(original.peak_cuda and quantized.peak_cuda)
    before, after = (original.peak_cuda, quantized.peak_cuda) if on_gpu else (original.peak_rss, quantized.peak_rss)
    what = "GPU memory" if on_gpu else "memory"
    sizes = f"{human_bytes(before)} → {human_bytes(after)} at its peak"
    change = after / max(1, before) - 1
    if abs(change) < SAME:
        return f"Needs about the same {what} to run ({sizes})."
    return f"Needs {abs(change) * 100:.0f} % {'less' if change < 0 else 'more'} {what} to run ({sizes})."


def _quality(quality: Quality, *, removed_layers: int) -> list[str]:
    change = quality.perplexity_change
    values = f"{quality.original_perplexity.value:.2f} → {quality.perplexity.value:.2f}"
    if change.low <= 0 <= change.high:
        first = f"Quality: no measurable loss; perplexity {values}, a change within noise ({_range(change)})."
    else:
        direction = "higher" if change.value > 0 else "lower"
        percent = f"{abs(change.value) * 100:.{_digits(change)}f} %"
        first = f"Quality: perplexity {percent} {direction} ({_range(change)} with 95 % confidence; {values})."
    same = f"{quality.top1.value * 100:.1f} %"
    sentences = [first, f"Agrees with the original on the likeliest next token {same} of the time."]
    if quality.kl.low > KNEE_KL and removed_layers:
        sentences.append(
            f"The layers that were removed are missed: a KL divergence of {quality.kl.value:.2g} nats is much (above "
            f"{KNEE_KL:g}). A longer training wins more back; so does keeping more layers."
        )
    elif quality.kl.low > KNEE_KL:
        sentences.append(
            f"These are fewer bits than this model bears: a KL divergence of {quality.kl.value:.2g} nats is much "
            f"(above {KNEE_KL:g}). More bits, smaller groups, GPTQ or training may do better, or a smaller model."
        )
    return sentences


def kv_cache_cost(cost: KvCacheCost) -> str:
    """What remembering in int8 saves and costs, measured, in one sentence."""
    share = cost.bytes_per_token / max(1, cost.bf16_bytes_per_token)
    change = cost.perplexity_change
    seen = "no measurable change" if change.low <= 0 <= change.high else f"{change.value * 100:+.{_digits(change)}f} %"
    return (
        f"int8 key-value cache: {share * 100:.0f} % of the memory for each token of the text; perplexity {seen} "
        f"({_range(change)} with 95 % confidence)."
    ).replace(" -", " −")


def _drift(first: Performance, last: Performance) -> list[str]:
    """Whether the original ran at another speed after the quantized model than before it."""
    changes = [_ratio(last.decode_tps, first.decode_tps) - 1, _ratio(first.ttft_s, last.ttft_s) - 1]
    largest = max(changes, key=abs)
    if abs(largest) <= DRIFT:
        return []
    return [
        f"The machine changed speed by {abs(largest) * 100:.0f} % during the measurement; "
        "times are uncertain by that much. For better numbers, close other programs and run again."
    ]


def _two_answers(first: Performance, last: Performance, quantized: Performance) -> list[str]:
    """How fast the result is by either measurement of the original, where these are far apart."""
    drift = _ratio(first.decode_tps, last.decode_tps)
    if 1 / GREAT_DRIFT < drift < GREAT_DRIFT:
        return []
    before, after = (_times(_ratio(quantized.decode_tps, one.decode_tps)) for one in (first, last))
    return [
        f"Beside the first measurement of the original the result writes {before} as fast, beside the last {after}: "
        "measure again before you rely on either."
    ]


def _same(first: Spread, second: Spread) -> bool:
    return _overlap(first, second) or abs(_ratio(first, second) - 1) < SAME


def _unclear(first: Spread, second: Spread) -> bool:
    """Whether the medians lie far apart, and yet the ranges overlap: neither equal nor different."""
    small, large = sorted((first.median, second.median))
    return _overlap(first, second) and large > small * (1 + NEAR)


def _overlap(first: Spread, second: Spread) -> bool:
    return first.low <= second.high and second.low <= first.high


def _ratio(first: Spread, second: Spread) -> float:
    return first.median / second.median if second.median else 1.0


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 2 else f"{ratio:.1f} times"


def _share(ratio: float) -> str:
    return f"{ratio * 100:.0f} %"


def _digits(change: Interval) -> int:
    """Decimals of a percentage, so that small changes do not all read as 0.0."""
    return 1 if abs(change.value) >= 0.01 else 2


def _range(change: Interval) -> str:
    digits = _digits(change)
    low, high = (round(share * 100, digits) + 0.0 for share in (change.low, change.high))  # + 0.0: no "-0.00"
    return f"{low:.{digits}f} to {high:.{digits}f} %".replace("-", "−")
