"""Time and peak memory of quantizing, loading and chatting on the shape of a 0.5B model, each in fresh processes.

    GOMP_SPINCOUNT=10000 python tests/benchmarks/load_and_memory.py [--trials 5] [--threads 2] [--model FOLDER]

Weights are random in Qwen2.5-0.5B's shape, with a made-up tokenizer of as many tokens. Files are in the system's cache.
Times count from after the imports, that of the first token (after a prompt of 512) from the start of the process; wall
seconds and processor seconds stand side by side: on a busy machine only the latter mean anything. Peaks are of the
whole process, libraries included. The aims: quantizing 4 s and 1.3 GB, loading 1 s, a chat 900 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

PROMPT, ANSWER = 512, 64
AIMS = {
    "quantize": "4 s, 1,300 MB",
    "load W4A16": "1 s",
    "chat W4A16": "900 MB",
    "chat W4A16, int8 cache": "900 MB",
}
STARTED = "BENCHMARK_STARTED"
Figures = dict[str, float]
"""Seconds (`wall`, `processor`) and bytes (`peak`)."""


def main() -> None:
    """Run every task in fresh processes, in turn, and print the table."""
    options = _options()
    if options.task:
        print(json.dumps(TASKS[options.task](options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        original = options.model or _random_model(Path(folder) / "original")
        os.environ["QUANTSTUDIO_HOME"] = folder
        found: dict[str, list[Figures]] = {name: [] for name in TASKS}
        for number in range(options.trials + 1):
            quantized = Path(folder) / f"quantized-{number}"
            for name in TASKS:
                place = quantized if "W4A16" in name else original
                figures = _fresh(name, place, quantized, options.threads)
                if number:  # the first is a warm-up: kernels are tried, files come into the cache
                    found[name].append(figures)
                print(f"{number} {name}: {figures}", file=sys.stderr, flush=True)
    print("| | wall, s | processor, s | peak memory, MB | aim |\n| --- | --- | --- | --- | --- |")
    for name, trials in found.items():
        wall, processor = (statistics.median(trial[part] for trial in trials) for part in ("wall", "processor"))
        peak = max(trial["peak"] for trial in trials) / 1e6
        print(f"| {name} | {wall:.2f} | {processor:.2f} | {peak:,.0f} | {AIMS.get(name, '')} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="an original model folder instead of the random one")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def _fresh(task: str, place: Path, out: Path, threads: int) -> Figures:
    command = [sys.executable, __file__, "--task", task, "--folder", str(place), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    _touch_memory()
    environment[STARTED] = str(time.time())
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _touch_memory() -> None:
    """As much as any task needs: what lay idle, a virtual machine gets back from its host at many times the cost."""
    import numpy as np

    np.ones(1_600_000_000, dtype=np.uint8)


def _timed(work: Callable[[], Any]) -> Figures:
    from quantstudio.engine.measure.memory import peak_rss

    wall, processor = time.perf_counter(), time.process_time()
    kept = work()
    figures = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor, "peak": peak_rss()}
    del kept
    return {name: round(value, 3) for name, value in figures.items()}


def _import_engine() -> None:
    """Everything that the tasks use, with the modelling code that transformers would fetch later."""
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    import quantstudio.engine.generate
    import quantstudio.engine.quantize  # noqa: F401


def _imports(folders: list[Path]) -> Figures:
    return _timed(_import_engine)


def _quantize(folders: list[Path]) -> Figures:
    _import_engine()
    from quantstudio.core.model_info import read_model_info
    from quantstudio.core.plan import make_plan
    from quantstudio.core.recipe import Recipe
    from quantstudio.engine.quantize import quantize_model
    from quantstudio.engine.reporter import silent

    original, out = folders
    out.mkdir()

    def work() -> object:
        info, recipe = read_model_info(original), Recipe()
        return quantize_model(info, make_plan(info, recipe), recipe, out, silent())

    return _timed(work)


def _load(folders: list[Path]) -> Figures:
    _import_engine()
    from quantstudio.engine.load import load_model
    from quantstudio.engine.reporter import silent

    return _timed(lambda: load_model(folders[0], "cpu", silent()))


def _weights_alone(folders: list[Path]) -> Figures:
    with patch("quantstudio.engine.load.load_tokenizer", return_value=None):
        return _load(folders)


def _tokenizer_alone(folders: list[Path]) -> Figures:
    _import_engine()
    from quantstudio.engine.load_tokenizer import load_tokenizer

    return _timed(lambda: load_tokenizer(folders[0]))


def _chat(folders: list[Path], kv_cache: str = "bf16") -> Figures:
    _import_engine()
    import threading

    from quantstudio.core.jobs import Sampling
    from quantstudio.core.recipe import KvCache
    from quantstudio.engine.generate import Generator
    from quantstudio.engine.load import load_model
    from quantstudio.engine.reporter import silent

    def work() -> list[object]:
        generator = Generator(load_model(folders[0], "cpu", silent()), KvCache(kv_cache))
        prompt = list(range(1000, 1000 + PROMPT))
        return list(generator.stream(prompt, Sampling(temperature=0, max_tokens=ANSWER), threading.Event()))

    return _timed(work)


def _first_token(folders: list[Path]) -> Figures:
    """From the start of the process, imports included, to the first token after the prompt."""
    import threading

    from quantstudio.core.jobs import Sampling
    from quantstudio.engine.memory import importing
    from quantstudio.engine.reporter import silent

    with importing():
        from quantstudio.engine.generate import Generator
        from quantstudio.engine.load import load_model

    def work() -> object:
        generator = Generator(load_model(folders[0], "cpu", silent()))
        prompt = list(range(1000, 1000 + PROMPT))
        return next(iter(generator.stream(prompt, Sampling(temperature=0, max_tokens=ANSWER), threading.Event())))

    figures = _timed(work)
    whole = {"wall": time.time() - float(os.environ[STARTED]), "processor": time.process_time()}
    return figures | {name: round(value, 3) for name, value in whole.items()}


TASKS: dict[str, Callable[[list[Path]], Figures]] = {
    "imports": _imports,
    "quantize": _quantize,
    "load the tokenizer alone": _tokenizer_alone,
    "load the weights alone, bf16": _weights_alone,
    "load the weights alone, W4A16": _weights_alone,
    "load bf16": _load,
    "load W4A16": _load,
    "first token bf16, imports and all": _first_token,
    "first token W4A16, imports and all": _first_token,
    "chat bf16": _chat,
    "chat W4A16": _chat,
    "chat W4A16, int8 cache": lambda folders: _chat(folders, "int8"),
}


def _random_model(folder: Path) -> Path:
    import decode_speed

    decode_speed._random_model(folder)
    _tokenizer(151_643).save_pretrained(folder)
    return folder


def _tokenizer(size: int) -> Any:
    """Bytes, then pairs of bytes, then some triples: as many entries and merges as the real one has."""
    from itertools import islice, product

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(product(letters, letters))
    pairs = ["".join(merge) for merge in merges]
    merges += islice(product(pairs, letters), size - len(letters) - len(pairs))
    vocabulary = {token: number for number, token in enumerate([*letters, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


if __name__ == "__main__":
    main()
