"""Speed and memory of one model: load, prompt, answer, repeated and summed up as median and quartiles.

Must run in a process that has done nothing else: the peak counts everything that the process ever held. The weight
files are read once before loading, so that the first model measured does not pay for the disk and the others not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.recipe import KvCache, MeasureSection
from quantstudio.core.result import Performance, Spread
from quantstudio.engine.generate import Generator
from quantstudio.engine.load import LoadedModel
from quantstudio.engine.measure.bandwidth import bytes_per_token, memory_bandwidth
from quantstudio.engine.measure.memory import peak_rss
from quantstudio.engine.measure.text import Text, prompt_ids
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.sequence import Running

_READ_BYTES = 8 << 20


def load_timed(folder: Path, reporter: Reporter, load: Callable[[], LoadedModel]) -> tuple[LoadedModel, float]:
    """What `load` makes of `folder`, and the seconds it took from files in the system's cache, trials not counted."""
    warm_up_files(folder, reporter)
    started = time.perf_counter()
    loaded = load()
    if loaded.device == "cuda":
        torch.cuda.synchronize()
    return loaded, time.perf_counter() - started - loaded.trial_s


def warm_up_files(folder: Path, reporter: Reporter) -> None:
    """Read the weights once, so that the system has them at hand. Raises `Cancelled`."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                reporter.check_cancel()


def measure_performance(
    loaded: Running,
    load_s: float,
    label: str,
    text: Text,
    measure: MeasureSection,
    seed: int,
    reporter: Reporter,
    kv_cache: KvCache = KvCache.BF16,
) -> Performance:
    """One warm-up, then `measure.trials` trials of a prompt and an answer. Times include picking each token."""
    generator = Generator(loaded, kv_cache)
    prompt_tokens, decode_tokens = _lengths(generator, measure, reporter)
    prompt = prompt_ids(text, _tokenizer(loaded), prompt_tokens, seed)
    trials: list[tuple[float, float]] = []
    for trial in range(measure.trials + 1):
        reporter.progress(trial, measure.trials + 1, "trials", label)
        trials.append(_trial(generator, prompt, decode_tokens))
    del trials[0]  # the warm-up
    most = peak_rss()  # before the memory's speed is measured, which takes some itself
    return Performance(
        label=label,
        load_s=load_s,
        peak_rss=most,
        peak_cuda=torch.cuda.max_memory_allocated() if loaded.device == "cuda" else 0,
        ttft_s=spread([first for first, _ in trials]),
        prompt_tps=spread([prompt_tokens / first for first, _ in trials]),
        decode_tps=spread([decode_tokens / rest for _, rest in trials]),
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        device=loaded.device,
        threads=torch.get_num_threads(),
        kernels=loaded.kernels,
        kernel_uses=loaded.kernel_uses,
        bandwidth=memory_bandwidth(torch.device(loaded.device)),
        bytes_per_token=bytes_per_token(loaded.model) if isinstance(loaded, LoadedModel) else loaded.bytes_per_token,
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high, trials=tuple(values))


def _lengths(generator: Generator, measure: MeasureSection, reporter: Reporter) -> tuple[int, int]:
    """Lengths of prompt and answer, cut to what the model can read, which is then said."""
    context = generator.context_length
    decode_tokens = min(measure.decode_tokens, max(1, context // 2))
    prompt_tokens = min(measure.prompt_tokens, context - decode_tokens)
    if (prompt_tokens, decode_tokens) != (measure.prompt_tokens, measure.decode_tokens):
        reporter.notice(
            f"The model reads at most {context} tokens: speed is measured with a prompt of {prompt_tokens} "
            f"and an answer of {decode_tokens}."
        )
    return prompt_tokens, decode_tokens


def _tokenizer(loaded: Running) -> PreTrainedTokenizerBase:
    if loaded.tokenizer is None:
        raise ModelUnsupported(
            "This model cannot be measured.",
            why="Its folder has no tokenizer.",
            hint="Copy the tokenizer's files into the folder, or turn off the measurement.",
            field="measure.enabled",
        )
    return loaded.tokenizer


def _trial(generator: Generator, prompt: Sequence[int], decode_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and for `decode_tokens` more. Fetching each token waits for the GPU."""
    started = time.perf_counter()
    token = int(generator.prefill(prompt, reserve=decode_tokens).argmax())
    first = time.perf_counter()
    for _ in range(decode_tokens):
        token = int(generator.decode_step(token).argmax())
    return first - started, time.perf_counter() - first
