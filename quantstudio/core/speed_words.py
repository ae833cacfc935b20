"""What a speed was measured with, what runs the model, how near it is to the machine's limit, and what is faster.

Nothing here is known beforehand: every sentence rests on a figure of this run, and is left out where it has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantstudio.core.comparison import SAME
from quantstudio.core.humanize import human_bytes, human_rate, human_seconds, plural
from quantstudio.core.recipe import HeadChoice
from quantstudio.core.result import KernelUse, Performance, RunResult

DEQUANTIZED = "dequantized"
"""The kernel that expands weights to bf16: no name to look up, no gain to tell."""
BACKGROUND = (
    "Measured with ",
    "How fast low-bit weights ",
    "Kernels: ",
    "Runs on ",
    "Each token reads ",
    "What would be faster",
    "On ONNX Runtime ",
)
"""How sentences of `speed_details` and about other engines begin, and those of older versions."""
OWN_CODE = "quantstudio_"
"""How operators of this program's own C++ begin: nobody could look those up."""
NEAR_LIMIT = 0.6
"""From this share of the memory's speed on, fewer bytes are the way to more tokens."""


def speed_details(result: RunResult, original: Performance, quantized: Performance) -> Iterator[str]:
    """The sentences for those who want to know why: they follow all that says what was gained and lost."""
    yield conditions(quantized)
    if quantized.kernel_uses:
        yield f"How fast low-bit weights are multiplied here: {kernels_words(quantized.kernel_uses)}."
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


def kernels_words(uses: Sequence[KernelUse]) -> str:
    """What each kernel does for its weights, and behind it, for those who look them up, the operators' own names."""
    names = ", ".join(dict.fromkeys(_operator(use) for use in uses if use.kernel != DEQUANTIZED))
    tried = "a short trial here" if any(use.decode_ratio is not None for use in uses) else ""
    aside = "; ".join(part for part in (tried, names and f"run by {names}") if part)
    return "; ".join(map(kernel_words, uses)) + (f" ({aside})" if aside else "")


def kernel_words(use: KernelUse) -> str:
    """`int4 weights (W4A16 g128) 3.1 times as fast as bf16 for one token, at 70 % of bf16's speed for a prompt …`."""
    weights = f"{_weights(use)} ({use.scheme})"
    if use.kernel == DEQUANTIZED:
        return f"{weights} computed in bf16, as no faster kernel was found for them"
    if use.decode_ratio is None or use.prompt_ratio is None:
        return f"{weights} not timed"
    prompt = _as_fast(use.prompt_ratio).removesuffix(" as fast as bf16")
    return f"{weights} {_as_fast(use.decode_ratio)} for one token, {prompt} for a prompt of {use.prompt_tokens}"


def kernel_line(use: KernelUse) -> str:
    """As little of it as fits a status line: `int4 weights 3.1 times as fast as bf16`."""
    if use.kernel == DEQUANTIZED:
        return f"{_weights(use)} computed in bf16"
    return _weights(use) if use.decode_ratio is None else f"{_weights(use)} {_as_fast(use.decode_ratio)}"


def _weights(use: KernelUse) -> str:
    """`W4A16 g128` → `int4 weights`."""
    return f"int{use.scheme.removeprefix('W').partition('A')[0]} weights"


def _operator(use: KernelUse) -> str:
    return "this program's own C++" if use.operator.startswith(OWN_CODE) else use.operator


def _as_fast(ratio: float) -> str:
    if abs(ratio - 1) < SAME:
        return "as fast as bf16"
    return f"{ratio:.2g} times as fast as bf16" if ratio > 1 else f"at {ratio * 100:.0f} % of bf16's speed"


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
