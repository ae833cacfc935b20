"""How good are the estimates? Real runs of generated models, predicted against measured.

    python tests/benchmarks/estimates.py [--pairs 32] [--measured 8] [--largest 120] [--methods rtn] [--keep FOLDER]

Models are Llamas of random weights with the starter model's tokenizer, from 5 to `--largest` million weights; schemes
and methods are taken in turn. Each run is a process of its own in a fresh home, so the first estimate is the formula's
and later ones are corrected by the runs before them, as on a person's machine; with `--keep` a second call adds to the
runs of the first. Calibrated and trained methods get little text and few steps: what is judged is the estimate.
Prints a Markdown table of every pair and the median and worst error of peak memory and time, by the formula alone and
as predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from quantstudio.core.estimate_learning import errors, kind_of, read_observations
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import LayersSection, MeasureSection, ModelSection, OnMisfit, OutputSection, Recipe
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.recipe_io import recipe_to_toml
from quantstudio.core.recipe_method import Awq, Gptq, Hqq, Qat, RoundToNearest
from quantstudio.core.schemes import W4A8, W4A16, W8A8, W8A16

VOCAB = 8192
METHODS = {
    "rtn": RoundToNearest(),
    "hqq": Hqq(),
    "gptq": Gptq(),
    "awq": Awq(),
    "qat": Qat(steps=4, evaluations=1),
    "lora": Qat(train="lora", steps=4, evaluations=1),
}
DATA = DataSection(sequence_length=256, calibration_sequences=32, held_out_sequences=8)
SCHEMES = (W4A16(), W8A16(), W4A16(group_size=32), W8A8(), W4A8(), W4A16(group_size=64, symmetric=False))
COMMAND = [sys.executable, "-P", "-m", "quantstudio", "run"]


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="quantstudio-estimates-") as name:
        home = options.keep or Path(name)
        environ = os.environ | {"QUANTSTUDIO_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        for number, recipe in enumerate(pairs(options, home)):
            path = home / "recipe.toml"
            path.write_text(recipe_to_toml(recipe), encoding="utf-8")
            done = subprocess.run([*COMMAND, str(path)], env=environ, capture_output=True, text=True, check=False)
            print(f"{number + 1}: {recipe.output.name}, status {done.returncode}", file=sys.stderr, flush=True)
            if done.returncode:
                print(done.stderr[-400:], file=sys.stderr)
        report(home / "runs")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against measured costs of real runs.")
    parser.add_argument("--pairs", type=int, default=32, help="runs in all")
    parser.add_argument("--measured", type=int, default=8, help="of them, runs that measure too")
    parser.add_argument("--largest", type=float, default=120, help="millions of weights of the largest model")
    parser.add_argument("--methods", default="rtn", help=f"taken in turn, of {', '.join(METHODS)}")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for models and runs that stays")
    return parser.parse_args()


def pairs(options: argparse.Namespace, home: Path) -> Iterator[Recipe]:
    """A model and a recipe for each run; those that measure are spread among the others."""
    every = max(1, options.pairs // max(1, options.measured))
    methods = options.methods.split(",")
    sizes = [5e6 * (options.largest / 5) ** (step / 7) for step in range(8)]
    for number in range(options.pairs):
        folder = home / "models" / f"model-{number % 8}"
        if not folder.exists():
            make_model(folder, sizes[number % 8])
        measured = options.measured > 0 and number % every == every - 1
        method = methods[number % len(methods)]
        scheme = SCHEMES[number % len(SCHEMES)] if method == "rtn" else SCHEMES[2 * (number % 2)]
        yield Recipe(
            model=ModelSection(id=str(folder)),
            scheme=scheme,
            method=METHODS[method],
            data=DATA,
            layers=LayersSection(on_misfit=OnMisfit.SMALLER),
            measure=MeasureSection(enabled=measured, prompt_tokens=128, decode_tokens=16, quality_tokens=16384),
            output=OutputSection(name=f"{number:02} {method} {scheme.weight_spec().label}"),
        )


def make_model(folder: Path, weights: float) -> None:
    """A Llama of about so many weights: twelve blocks, as wide as it takes."""
    import torch
    from safetensors.torch import save_file

    blocks = 12
    # weights = V h + blocks (4 h² + 3 h · 3 h)
    width = (-VOCAB + math.sqrt(VOCAB**2 + 4 * 13 * blocks * weights)) / (2 * 13 * blocks)
    hidden = max(128, round(width / 64) * 64)
    shapes = {"model.embed_tokens.weight": (VOCAB, hidden)}
    for block in range(blocks):
        at = f"model.layers.{block}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (3 * hidden, hidden) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, 3 * hidden)
    tensors = {name: torch.randn(shape).mul_(0.02).to(torch.bfloat16) for name, shape in shapes.items()}
    norms = [
        f"model.layers.{block}.{name}_layernorm" for block in range(blocks) for name in ("input", "post_attention")
    ]
    tensors |= {f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in ("model.norm", *norms)}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(starter_model() / name, folder / name)


def report(runs: Path) -> None:
    found = sorted(read_observations(runs), key=lambda observation: observation.run.created)
    print("| run | kind | peak memory, MB: predicted | measured | off by | time, s: predicted | measured | off by |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for observation in found:
        c = observation.costs
        memory = f"{c.predicted_memory / 1e6:.0f} | {c.measured_memory / 1e6:.0f}"
        memory += f" | {c.predicted_memory / c.measured_memory - 1:+.0%}"
        seconds = f"{c.predicted_seconds:.0f} | {c.measured_seconds:.0f}"
        seconds += f" | {c.predicted_seconds / c.measured_seconds - 1:+.0%}"
        print(f"| {observation.run.name} | {observation.kind} | {memory} | {seconds} |")
    print("\n| figure | runs | formula: median | worst | predicted: median | worst |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    costs = [observation.costs for observation in found]
    for what, name in (("peak memory", "memory"), ("time", "seconds")):
        cells = []
        for kind in ("formula", "predicted"):
            off = errors((getattr(c, f"{kind}_{name}"), getattr(c, f"measured_{name}")) for c in costs)
            cells += [f"{off.median:.1%}", f"{off.worst:.1%}"]
        print(f"| {what} | {len(costs)} | {' | '.join(cells)} |")
    if costs:
        print(f"\nKinds: {', '.join(sorted({observation.kind for observation in found} | {kind_of(Recipe())}))}")


if __name__ == "__main__":
    sys.exit(main())
