"""What a speed was measured with, what runs the model, how near it is to the machine's limit, and what is faster.

Nothing here is known beforehand: every sentence rests on a figure of this run, and is left out where it has none.
"""

from __future__ import annotations

from collections.abc import Iterator

from quantstudio.core.humanize import human_bytes, human_rate, human_seconds, plural
from quantstudio.core.recipe import HeadChoice
from quantstudio.core.result import KernelUse, Performance, RunResult

NEAR_LIMIT = 0.6
"""From this share of the memory's speed on, fewer bytes are the way to more tokens."""


def speed_details(result: RunResult, original: Performance, quantized: Performance) -> Iterator[str]:
    """The sentences for those who want to know why: they follow all that says what was gained and lost."""
    yield conditions(quantized)
    if quantized.kernel_uses:
        yield f"Kernels: {'; '.join(kernel_words(use) for use in quantized.kernel_uses)}."
    if share := bandwidth_share(quantized):
        yield (
            f"Each token reads {human_bytes(quantized.bytes_per_token)} of weights: {share * 100:.0f} % of what the "
            f"memory can deliver ({human_bytes(int(quantized.bandwidth))} a second, measured here)."
        )
    yield from _what_is_faster(result, original, quantized)


def conditions(measured: Performance) -> str:
    """At which lengths and on what the speed was measured."""
    last = measured.prompt_tokens + measured.decode_tokens
    where = "the GPU" if measured.device == "cuda" else f"the CPU with {plural(measured.threads, 'thread')}"
    return (
        f"Measured with a prompt of {plural(measured.prompt_tokens, 'token')} and an answer of "
        f"{measured.decode_tokens:,}, so at context lengths of {measured.prompt_tokens:,} to {last:,}, on {where}."
    )


def kernel_words(use: KernelUse) -> str:
    """What runs the layers of one scheme, and how it did in its trial: `W4A16 g128: …_mm_for_cpu, 3.1× bf16`."""
    if use.decode_ratio is None or use.prompt_ratio is None:
        return f"{use.scheme}: {use.operator} (not tried here)"
    return (
        f"{use.scheme}: {use.operator}, {use.decode_ratio:.2g}× bf16 for one token, "
        f"{use.prompt_ratio:.2g}× for a prompt of {use.prompt_tokens} (a short trial here)"
    )


def bandwidth_share(measured: Performance) -> float | None:
    """How much of the memory's speed writing uses; None when it was not measured."""
    if not measured.bandwidth or not measured.bytes_per_token:
        return None
    return measured.decode_tps.median * measured.bytes_per_token / measured.bandwidth


def _what_is_faster(result: RunResult, original: Performance, quantized: Performance) -> Iterator[str]:
    saved = result.quantization.original_sizes.total - result.quantization.sizes.total
    if quantized.decode_tps.high < original.decode_tps.low:
        yield (
            f"What would be faster: the original ({human_rate(original.decode_tps.median)} here); "
            f"{result.quantization.label} saves {human_bytes(max(0, saved))}."
        )
        return
    if quantized.ttft_s.low > original.ttft_s.high:
        yield (
            f"What would be faster: for long prompts with short answers the original (first token after "
            f"{human_seconds(original.ttft_s.median)} here)."
        )
    share = bandwidth_share(quantized)
    if share is None:
        return
    if share < NEAR_LIMIT:
        yield (
            "What would be faster: fewer bits hardly; the memory is not what limits the speed of this model on this "
            "machine. Larger models gain more from few bits."
        )
    elif result.recipe.layers.head is HeadChoice.INT8 and result.recipe.scheme.weight_spec().bits < 8:
        yield "What would be faster: fewer bytes for each token, such as the output head in the bits of the layers."
    else:
        yield "What would be faster: fewer bytes for each token, that is fewer bits or a smaller model."
