"""Is it worth it to give sensitive layers more bits? Prints what mixed precision loses, beside uniform bits.

    python tests/benchmarks/mixed_precision.py --method gptq --groups 32 128 --out results.json [--ranks]

Sensitivity is measured on calibration text, with the method that is used afterwards; the bits of 3.25, 3.5 and 3.75 on
average, and those with the bytes of uniform 4 bits, follow from it. Every model is then scored on the held-out novels,
which nothing was chosen on. The straight line goes through uniform 3 and 4 bits in KL divergence against bytes; a
mixture below it is better than quantizing some layers to 3 and others to 4 bits at random. Differences are paired over
windows, 95 % intervals.
`--ranks` also compares the ranks of layers by gradients with those of layers measured one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch

from quantstudio.core.library import resolve_model
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.recipe import MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_method import Gptq, Hqq, RoundToNearest
from quantstudio.core.recipe_precision import AverageBits, FileSize, Precision, Uniform
from quantstudio.core.result import Interval
from quantstudio.core.schemes import W3A16, W4A16
from quantstudio.core.sensitivity import Sensitivity, allot, as_precision, spearman
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.measure.bootstrap import BlockSums, draw_totals, percentile_interval
from quantstudio.engine.measure.quality import block_sums, quality_windows, score
from quantstudio.engine.measure.text import Windows, read_text
from quantstudio.engine.pipeline import run_recipe
from quantstudio.engine.reporter import silent
from quantstudio.engine.sensitivity import measure

AVERAGES = (3.25, 3.5, 3.75)
METHODS = {"rtn": RoundToNearest(), "hqq": Hqq(), "gptq": Gptq()}


def main() -> None:
    """Print the tables for each group size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--method", choices=METHODS, default="gptq")
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--tokens", type=int, default=65536, help="held-out tokens to score")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ranks", action="store_true")
    options = parser.parse_args()
    section = ModelSection(id=options.model)
    info = read_model_info(resolve_model(section))
    original = load_model(info.path, options.device, silent())
    measured = MeasureSection(enabled=False, quality_tokens=options.tokens)
    windows = quality_windows(original, read_text(measured.text, options.tokens), measured, 0, silent())
    found = {}
    for group in options.groups:
        recipe = Recipe(model=section, method=METHODS[options.method], measure=measured, scheme=W4A16(group_size=group))
        if options.ranks:
            _compare_ranks(info, recipe.model_copy(update={"method": RoundToNearest()}))
        found[group] = _one_group(info, recipe, original, windows)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _one_group(info: ModelInfo, recipe: Recipe, original: LoadedModel, windows: Windows) -> dict[str, object]:
    group = recipe.scheme.weight_spec().group_size
    sensitivity = _sensitivity(info, recipe)
    print(f"\nSensitivity with {sensitivity.method}, g{group}: {sensitivity.seconds:.1f} s", flush=True)
    scored: dict[str, tuple[int, float, BlockSums]] = {}
    uniform = {3: recipe.model_copy(update={"scheme": W3A16(group_size=group)}), 4: recipe}
    for bits, plain in uniform.items():
        scored[f"uniform {bits}"] = _make_and_score(plain, Uniform(), original, windows)
    targets: dict[str, AverageBits | FileSize] = {f"mixed {each}": AverageBits(average_bits=each) for each in AVERAGES}
    targets["mixed, bytes of 4"] = FileSize(file_size_mb=scored["uniform 4"][0] / 1e6)
    predicted = {}
    for name, target in targets.items():
        started = time.perf_counter()
        chosen = allot(sensitivity, target)
        predicted[name] = (chosen.kl, time.perf_counter() - started)
        scored[name] = _make_and_score(recipe, as_precision(chosen), original, windows)
    return _table(f"{recipe.method.kind} g{group}", scored, predicted)


def _sensitivity(info: ModelInfo, recipe: Recipe, work: float = float("inf")) -> Sensitivity:
    """Measured layer by layer, or with no work allowed predicted from gradients."""
    loaded = load_model(info.path, recipe.machine.device, silent())
    ids = prepare_data(recipe.data, loaded.tokenizer, recipe.machine.seed, silent()).calibration
    model = loaded.model.float()
    measure.CHEAP_WORK[model.device.type] = work
    return measure.measure_sensitivity(info, recipe, model, ids, silent())


def _compare_ranks(info: ModelInfo, recipe: Recipe) -> None:
    each, gradients = _sensitivity(info, recipe), _sensitivity(info, recipe, 0.0)
    ranks = {
        bits: spearman(*([layer.option(bits).kl for layer in found.layers] for found in (each, gradients)))
        for bits in (2, 3, 4)
    }
    print(f"\n{each.scheme}: {each.seconds:.1f} s layer by layer, {gradients.seconds:.1f} s by gradients;")
    print("  Spearman's rank correlation", {bits: round(value, 3) for bits, value in ranks.items()}, flush=True)


def _make_and_score(
    recipe: Recipe, precision: Precision, original: LoadedModel, windows: Windows
) -> tuple[int, float, BlockSums]:
    """Bytes, stored bits per weight of the layers, and scores of the model that the recipe makes."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_recipe(recipe.model_copy(update={"precision": precision}), Path(folder), silent())
        loaded = load_model(Path(folder) / "model", original.device, silent())
        sums = block_sums(score(original.model, loaded.model, windows, silent()))
    return result.quantization.sizes.total, result.quantization.layer_bits_per_weight, sums


def _table(
    title: str, scored: dict[str, tuple[int, float, BlockSums]], predicted: dict[str, tuple[float, float]]
) -> dict[str, object]:
    names = list(scored)
    tokens = scored[names[0]][2].tokens
    totals = draw_totals(np.stack([tokens, *(scored[name][2].kl for name in names)], axis=1), 0).T
    kl = {name: totals[1 + place] / totals[0] for place, name in enumerate(names)}
    low, high = scored["uniform 3"][0], scored["uniform 4"][0]
    print(f"\n{title}, {int(tokens.sum()):,} tokens of held-out text, {len(tokens)} blocks")
    print("| | bytes | bits/weight | KL divergence | predicted | against the line | against uniform 4 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows: dict[str, object] = {}
    for name in names:
        nbytes, bits, sums = scored[name]
        share = (nbytes - low) / (high - low)
        line = percentile_interval(kl[name] - (1 - share) * kl["uniform 3"] - share * kl["uniform 4"], len(tokens))
        four = percentile_interval(kl[name] - kl["uniform 4"], len(tokens))
        value = percentile_interval(kl[name], len(tokens))
        guess = f"{predicted[name][0]:.4f}" if name in predicted else "–"
        compared = [_text(line), _text(four)] if name in predicted else ["–", "–"]
        perplexity = float(np.exp(sums.nll.sum() / sums.tokens.sum()))
        print(
            f"| {name} | {nbytes:,} | {bits:.3f} | {_text(value)} | {guess} | {compared[0]} | {compared[1]} |",
            flush=True,
        )
        rows[name] = {
            "bytes": nbytes,
            "bits_per_weight": bits,
            "perplexity": perplexity,
            "kl": value.model_dump(),
            "against_line": line.model_dump(),
            "against_uniform_4": four.model_dump(),
        }
    slowest = max(seconds for _, seconds in predicted.values())
    print(f"Allotting took at most {slowest * 1e3:.1f} ms.", flush=True)
    return rows


def _text(interval: Interval) -> str:
    return f"{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    main()
