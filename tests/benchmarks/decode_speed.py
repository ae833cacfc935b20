"""Decode speed, time to first token and memory of low-bit weights against bf16, on a model of Qwen2.5-0.5B's shape.

    python tests/benchmarks/decode_speed.py [--trials 7] [--tokens 32] [--prompt 512] [--threads 2] [--model FOLDER]

The model's weights are random: speed does not depend on them. All variants are in memory at once and take turns, trial
by trial, so that drift of the machine hits all alike; ratios are medians over trials of the ratio within one trial. Two
baselines: this program's own loop running the bf16 model, and plain transformers (`generate`, its own cache and
attention). The table is Markdown; the README shows it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, StoppingCriteria

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, Recipe
from quantstudio.core.schemes import W4A8, W4A16, W8A8, W8A16
from quantstudio.engine.generate import Generator
from quantstudio.engine.load import load_model
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

RECIPES = {
    "W4A16 g128, int4 head": Recipe(scheme=W4A16(), layers=LayersSection(head="same")),
    "W4A16 g128, int8 head": Recipe(scheme=W4A16()),
    "W8A16": Recipe(scheme=W8A16()),
    "W8A8": Recipe(scheme=W8A8()),
    "W4A8 g128": Recipe(scheme=W4A8()),
}
OURS, THEIRS = "bf16, this program", "bf16, transformers"
Trial = tuple[float, float]
"""Seconds to the first token; seconds per later token (median)."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _random_model(Path(folder) / "model")
        prompt = torch.randint(0, 100_000, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
        runs, sizes = _variants(model, Path(folder), prompt, options.tokens)
        trials: dict[str, list[Trial]] = {name: [] for name in runs}
        for number in range(options.trials + 1):
            for name, run in runs.items():
                trial = run()
                if number:  # the first is a warm-up
                    trials[name].append(trial)
                print(f"{number} {name}: {trial[0]:.3f} s, {1 / trial[1]:.1f} tokens/s", flush=True)
    print(_table(trials, sizes, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="an original model folder instead of the random one")
    return parser.parse_args()


def _random_model(folder: Path) -> Path:
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def _variants(
    original: Path, folder: Path, prompt: list[int], tokens: int
) -> tuple[dict[str, Callable[[], Trial]], dict[str, int]]:
    """What to run, and the bytes of each variant's weights in memory."""
    models = {OURS: load_model(original, "cpu", silent())}
    info = read_model_info(original)
    for number, (name, recipe) in enumerate(RECIPES.items()):
        out = folder / str(number)
        out.mkdir()
        quantize_model(info, make_plan(info, recipe), recipe, out, silent())
        models[name] = load_model(out, "cpu", silent())
        print(name, models[name].kernels, flush=True)
    plain = AutoModelForCausalLM.from_pretrained(
        original, dtype=torch.bfloat16, trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa"
    ).eval()
    runs: dict[str, Callable[[], Trial]] = {THEIRS: partial(_time_transformers, plain, prompt, tokens)}
    for name, loaded in models.items():
        runs[name] = partial(_time_ours, Generator(loaded), prompt, tokens)
    return runs, {name: _weight_bytes(loaded.model) for name, loaded in models.items()} | {THEIRS: _weight_bytes(plain)}


def _time_ours(generator: Generator, prompt: list[int], tokens: int) -> Trial:
    stamps = [time.perf_counter()]
    logits = generator.prefill(prompt, reserve=tokens)
    for _ in range(tokens):
        token = int(logits.argmax())
        stamps.append(time.perf_counter())
        logits = generator.decode_step(token)
    return _trial(stamps)


class _Stamps(StoppingCriteria):
    def __init__(self) -> None:
        self.stamps = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.stamps.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def _time_transformers(model: PreTrainedModel, prompt: list[int], tokens: int) -> Trial:
    stamps = _Stamps()
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            stopping_criteria=[stamps],
        )
    return _trial(stamps.stamps)


def _trial(stamps: list[float]) -> Trial:
    steps = [later - earlier for earlier, later in pairwise(stamps[1:])]
    return stamps[1] - stamps[0], statistics.median(steps)


def _weight_bytes(model: PreTrainedModel) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _table(trials: dict[str, list[Trial]], sizes: dict[str, int], options: argparse.Namespace) -> str:
    lines = [
        f"{_cpu()}, {options.threads} threads, torch {torch.__version__}; prompt of {options.prompt}, "
        f"{options.tokens} tokens, {options.trials} trials in turn",
        "",
        f"| | decode, tokens/s | × {OURS} | × {THEIRS} | first token, s | × {OURS} | × {THEIRS} | weights, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, own in trials.items():
        first, step = (statistics.median(trial[part] for trial in own) for part in (0, 1))
        speed = [_ratio(trials[base], own, part=1) for base in (OURS, THEIRS)]
        start = [_ratio(trials[base], own, part=0) for base in (OURS, THEIRS)]
        cells = [f"{1 / step:.1f}", *(f"{x:.2f}" for x in speed), f"{first:.2f}", *(f"{x:.2f}" for x in start)]
        lines.append(f"| {name} | {' | '.join(cells)} | {sizes[name] / 1e6:,.0f} |")
    return "\n".join(lines)


def _ratio(base: list[Trial], own: list[Trial], part: int) -> float:
    """How many times faster than the base, median over the trials."""
    return statistics.median(b[part] / o[part] for b, o in zip(base, own, strict=True))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
