"""The engines that run a quantized model on the CPU, and which of them a run found to be the faster one."""

from __future__ import annotations

from importlib.util import find_spec

from quantstudio.core.humanize import human_bytes, human_rate, human_seconds
from quantstudio.core.result import EngineTrial, Performance, RunResult

TORCH, ONNX_RUNTIME = "torch", "onnxruntime"
NAMES = {TORCH: "torch", ONNX_RUNTIME: "ONNX Runtime"}
FAST_ENOUGH = 100.0
"""Tokens per second from which another engine is not tried by itself: nobody reads as fast."""
OTHER_ENGINE_TOKENS = 4096
"""Scored at most to see whether another engine agrees: a wrong graph shows in the first hundred, and rounding is nearly
the same everywhere."""
AGREES = 0.05
"""Largest KL divergence, in nats, from torch's own scores of the same model. Activations rounded to int8 cost about
0.002 on the starter model; a graph that is wrong is off by several nats."""
ONNX_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Values of `model_type` whose models ONNX Runtime can run; whether one really can, the engine finds out."""
_ONNX_PACKAGES = ("onnxruntime", "onnx")
_CLEARLY = 1.05
_SLOWEST_PROMPT = 1.5
"""How many times as long the first token may take where writing is faster."""


def onnx_runtime_is_installed() -> bool:
    """Whether ONNX Runtime and what writes its graphs are there."""
    return all(find_spec(package) for package in _ONNX_PACKAGES)


def preferred_engine(result: RunResult | None) -> str:
    """What the chat takes for a run's model when it may choose: the other engine where it was measured and is better.

    Better is: agrees with torch, writes clearly faster, and does not make a person wait much longer for the first word.
    """
    if result is None or result.quantized is None or result.other_engine is None:
        return TORCH
    return result.other_engine.engine if is_better(result.other_engine, result.quantized) else TORCH


def is_better(trial: EngineTrial, own: Performance) -> bool:
    """Whether the other engine is the one to take; `own`: the same model on torch."""
    other = trial.performance
    clear = other.decode_tps.low > own.decode_tps.high and other.decode_tps.median > _CLEARLY * own.decode_tps.median
    return trial.kl.high <= AGREES and clear and other.ttft_s.median <= _SLOWEST_PROMPT * own.ttft_s.median


def engine_words(trial: EngineTrial, own: Performance) -> str:
    """How the other engine did beside torch, in two sentences."""
    name, other = NAMES.get(trial.engine, trial.engine), trial.performance
    figures = (
        f"On {name} the model writes {human_rate(other.decode_tps.median)} instead of "
        f"{human_rate(own.decode_tps.median)}; the first token comes after {human_seconds(other.ttft_s.median)} "
        f"instead of {human_seconds(own.ttft_s.median)}; at its peak it holds {human_bytes(other.peak_rss)} "
        f"instead of {human_bytes(own.peak_rss)}"
    )
    change = trial.perplexity_change.value * 100
    cost = f"it rounds activations to int8: perplexity {change:+.2f} %, KL divergence {trial.kl.value:.4f} from torch"
    if trial.kl.high > AGREES:
        ending = f"Its scores differ too much to be used by itself (KL divergence {trial.kl.value:.3f} from torch)."
    else:
        ending = "The chat takes it by itself." if is_better(trial, own) else "The chat stays with torch."
    return f"{figures}; {cost}. {ending}".replace(" -", " −")
