"""How much of what rounding to nearest loses do HQQ, GPTQ, AWQ and SmoothQuant win back? Prints a ladder.

    python tests/benchmarks/calibrated.py [--model starter] [--grids 4:128 3:32 …] [--methods hqq gptq …] [--tokens N]
                                          [--sequences 128] [--device auto] [--tune]

A grid is bits:group, with "a8" behind it for int8 activations (4:32a8). Calibration text comes from the built-in books;
models are scored on the held-out novels, which nothing was chosen on, in the order of the command line. `--tune` scores
on held-out pieces of the books instead: choose options there, never on the novels. The share of the gap that is closed
is 1 - (perplexity - original) / (rounded to nearest - original), with 95 % intervals from blocks of text drawn again,
the same for all models.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np

from quantstudio.core.library import resolve_model
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.recipe_method import AnyMethod, Awq, Gptq, Hqq, RoundToNearest, SmoothQuant
from quantstudio.core.schemes import W2A8, W2A16, W3A8, W3A16, W4A8, W4A16, W8A8, W8A16, AnyScheme
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.data.prepared import PreparedData
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.measure.bootstrap import BlockSums, draw_totals, percentile_interval
from quantstudio.engine.measure.quality import block_sums, quality_windows, score
from quantstudio.engine.measure.text import Windows, read_text
from quantstudio.engine.methods.choose import choose_weights
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

METHODS: dict[str, AnyMethod] = {"hqq": Hqq(), "gptq": Gptq(), "awq": Awq(), "smoothquant": SmoothQuant()}
SCHEMES = {
    (2, False): W2A16,
    (3, False): W3A16,
    (4, False): W4A16,
    (2, True): W2A8,
    (3, True): W3A8,
    (4, True): W4A8,
}
GRIDS = ("2:32", "3:32", "3:128", "4:32", "4:128", "4:32a8", "8", "8a8")


def main() -> None:
    """Print one table for each grid."""
    options = _options()
    info = read_model_info(resolve_model(ModelSection(id=options.model)))
    original = load_model(info.path, options.device, silent())
    section = DataSection(calibration_sequences=options.sequences)
    data = prepare_data(section, original.tokenizer, 0, silent(), options.cache)
    windows = _windows(original, data, options)
    print("| grid | method | perplexity | KL divergence | gap closed | KL closed | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for grid in options.grids:
        recipe = Recipe(scheme=_scheme(grid), machine=MachineSection(device=options.device))
        rounded, _ = _scored(info, recipe, original, data, windows)
        print(_line(grid, "RTN", rounded, rounded, 0.0), flush=True)
        for name in options.methods:
            calibrated = recipe.model_copy(update={"method": METHODS[name]})
            sums, seconds = _scored(info, calibrated, original, data, windows)
            print(_line(grid, name, sums, rounded, seconds), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--grids", nargs="+", default=GRIDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tokens", type=int, default=65536, help="held-out tokens to score")
    parser.add_argument("--sequences", type=int, default=128, help="calibration sequences of 512 tokens")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, help="folder in which the tokenized text is kept")
    parser.add_argument("--tune", action="store_true")
    return parser.parse_args()


def _scheme(grid: str) -> AnyScheme:
    found = re.fullmatch(r"(\d)(?::(\w+?))?(a8)?", grid)
    if not found:
        raise SystemExit(f"{grid} is no grid; write bits:group, such as 4:128 or 4:32a8")
    bits, group, rounded = int(found[1]), found[2], bool(found[3])
    if bits == 8:
        return W8A8() if rounded else W8A16()
    return SCHEMES[bits, rounded](group_size=int(group) if group.isdigit() else "channel")


def _windows(original: LoadedModel, data: PreparedData, options: argparse.Namespace) -> Windows:
    if options.tune:
        ids = data.held_out.numpy()
        return Windows(
            ids, np.ones((len(ids), ids.shape[1] - 1), bool), np.ones((len(ids), ids.shape[1] - 1), np.int64)
        )
    measure = MeasureSection(quality_tokens=options.tokens)
    return quality_windows(original, read_text(measure.text, options.tokens), measure, 0, silent())


def _scored(
    info: ModelInfo, recipe: Recipe, original: LoadedModel, data: PreparedData, windows: Windows
) -> tuple[BlockSums, float]:
    """What the recipe's model scores, and the seconds that choosing its integers took."""
    plan = make_plan(info, recipe)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        text = None if isinstance(recipe.method, RoundToNearest | Hqq) else data
        chosen = choose_weights(info, plan, recipe, Path(folder), text, lambda _phase: None, silent())
        seconds = time.perf_counter() - started
        out = Path(folder) / "model"
        out.mkdir()
        quantize_model(info, plan, recipe, out, silent(), chosen)
        quantized = load_model(out, recipe.machine.device, silent(), "reference")
        return block_sums(score(original.model, quantized.model, windows, silent())), seconds


def _line(grid: str, name: str, sums: BlockSums, rounded: BlockSums, seconds: float) -> str:
    columns = np.stack((sums.tokens, sums.nll_original, rounded.nll, sums.nll, rounded.kl, sums.kl), axis=1)
    tokens, *totals = draw_totals(columns, 0).T
    original, plain, found, plain_kl, found_kl = (total / tokens for total in totals)
    start = np.exp(original)
    closed = percentile_interval((np.exp(plain) - np.exp(found)) / (np.exp(plain) - start), len(columns))
    closed_kl = percentile_interval(1 - found_kl / plain_kl, len(columns))
    shares = " | ".join(f"{share.value:.0%} ({share.low:.0%} … {share.high:.0%})" for share in (closed, closed_kl))
    return f"| {grid} | {name} | {np.exp(found[0]):.3f} | {found_kl[0]:.5f} | {shares} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
