"""How good are the estimates? Real runs of generated models, predicted against measured.

    python tests/benchmarks/estimates.py [--set published] [--measured 4] [--methods gptq,awq] [--keep FOLDER]

Two sets of models and recipes have nothing in common: `develop` is what the formulas were looked at with while they
were written, `published` has other widths, depths, vocabularies and schemes, and is what the table in the docs shows.
Models are Llamas of random weights with the starter model's tokenizer. Each run is a process of its own in a fresh
home, so the first estimate of a kind is the formula's and later ones are corrected by the runs before them, as on a
person's machine. Runs that are in `--keep` already are not run again; `--again` runs nothing, and works out what
today's formulas would have predicted for the runs in that folder, in their order. Calibrated and trained methods get
little text and few steps: what is judged is the estimate of memory. Prints a Markdown table of every pair and the
median and worst error of peak memory and time, by the formula alone and as predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantstudio.core.estimate import estimate
from quantstudio.core.estimate_learning import Observation, errors, fit, kind_of, read_observations
from quantstudio.core.machine import read_machine
from quantstudio.core.model_info import read_model_info
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import LayersSection, MeasureSection, ModelSection, OnMisfit, OutputSection, Recipe
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.recipe_io import load_recipe, recipe_to_toml
from quantstudio.core.recipe_method import AnyMethod, Awq, FineTune, Gptq, Hqq, Qat, RoundToNearest, SmoothQuant
from quantstudio.core.run_store import RECIPE
from quantstudio.core.schemes import W3A16, W4A8, W4A16, W8A8, W8A16, AnyScheme

METHODS: dict[str, AnyMethod] = {
    "rtn": RoundToNearest(),
    "hqq": Hqq(),
    "gptq": Gptq(),
    "awq": Awq(),
    "smoothquant": SmoothQuant(),
    "qat": Qat(steps=2, evaluations=1, batch_sequences=8),
    "lora": Qat(train="lora", steps=2, evaluations=1, batch_sequences=8),
    "finetune": FineTune(steps=2, evaluations=1, batch_sequences=8),
}
SHIFT = {"awq": 1, "gptq": 2, "finetune": 3}
"""So that no model meets one scheme alone."""
COMMAND = [sys.executable, "-P", "-m", "quantstudio", "run"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama: words, width, width inside, blocks, heads of 64 that have keys and values of their own."""

    name: str
    words: int
    width: int
    inner: int
    blocks: int
    shared_heads: int
    tied: bool


@dataclass(frozen=True, slots=True)
class Set:
    """Models, schemes and text; every method is run with each model that is small enough for it."""

    shapes: tuple[Shape, ...]
    schemes: tuple[AnyScheme, ...]
    data: DataSection


SETS = {
    "develop": Set(
        (
            Shape("8m", 8192, 256, 768, 6, 4, tied=True),
            Shape("18m", 8192, 512, 1536, 4, 8, tied=True),
            Shape("45m", 16384, 768, 2048, 3, 6, tied=False),
        ),
        (W4A16(), W8A16()),
        DataSection(sequence_length=256, calibration_sequences=16, held_out_sequences=8),
    ),
    "published": Set(
        (
            Shape("14m", 12288, 384, 1024, 3, 2, tied=False),
            Shape("20m", 8192, 448, 1152, 7, 7, tied=True),
            Shape("51m", 32768, 640, 1728, 2, 5, tied=False),
            Shape("47m", 24576, 896, 2432, 3, 2, tied=True),
            Shape("76m", 10240, 1152, 3072, 4, 9, tied=True),
        ),
        (
            W4A16(group_size=32),
            W8A8(),
            W3A16(group_size=64),
            W4A8(group_size=64),
            W4A16(group_size=64, symmetric=False),
        ),
        DataSection(sequence_length=384, calibration_sequences=12, held_out_sequences=6),
    ),
}


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="quantstudio-estimates-") as name:
        home = options.keep or Path(name)
        runs = home / "runs"
        if not options.again:
            run_all(options, home)
        found = sorted(read_observations(runs), key=lambda observation: observation.run.created)
        report(again(found) if options.again else found)
    return 0


def run_all(options: argparse.Namespace, home: Path) -> None:
    environ = os.environ | {"QUANTSTUDIO_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = {observation.run.name for observation in read_observations(home / "runs")}
    for number, recipe in enumerate(pairs(options, home)):
        if recipe.output.name in done:
            continue
        path = home / "recipe.toml"
        path.write_text(recipe_to_toml(recipe), encoding="utf-8")
        ended = subprocess.run([*COMMAND, str(path)], env=environ, capture_output=True, text=True, check=False)
        print(f"{number + 1}: {recipe.output.name}, status {ended.returncode}", file=sys.stderr, flush=True)
        if ended.returncode:
            print(ended.stderr[-400:], file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against measured costs of real runs.")
    parser.add_argument("--set", default="published", choices=sorted(SETS), help="models and recipes")
    parser.add_argument("--measured", type=int, default=4, help="runs that measure too, beside the others")
    parser.add_argument("--methods", default=",".join(METHODS), help="of " + ", ".join(METHODS))
    parser.add_argument("--shift", type=int, default=0, help="take schemes so many further on, for other pairs")
    parser.add_argument("--shapes", default="", help="names of the models; all when empty")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for models and runs that stays")
    parser.add_argument("--again", action="store_true", help="only work out the estimates of the runs in --keep again")
    return parser.parse_args()


def pairs(options: argparse.Namespace, home: Path) -> Iterator[Recipe]:
    """A recipe for every method and model; schemes are taken in turn. Then some that measure too."""
    chosen = SETS[options.set]
    for method in options.methods.split(","):
        for number, shape in enumerate(chosen.shapes, start=1 + SHIFT.get(method, 0) + options.shift):
            if not options.shapes or shape.name in options.shapes.split(","):
                yield recipe(home, chosen, shape, fitting(method, chosen.schemes, number), method, measured=False)
    for number in range(options.measured):
        shape = chosen.shapes[number % len(chosen.shapes)]
        yield recipe(home, chosen, shape, chosen.schemes[number % len(chosen.schemes)], "rtn", measured=True)


def fitting(method: str, schemes: Sequence[AnyScheme], number: int) -> AnyScheme:
    """The next scheme that the method does something for: HQQ leaves 8 bits as they are, SmoothQuant is for A8."""
    wanted = {
        "hqq": lambda s: s.weight_spec().bits < 8,
        "smoothquant": lambda s: s.kind.endswith("a8"),
    }.get(method, lambda s: True)
    useful = [scheme for scheme in schemes if wanted(scheme)] or [W8A8()]
    return useful[number % len(useful)]


def recipe(home: Path, chosen: Set, shape: Shape, scheme: AnyScheme, method: str, *, measured: bool) -> Recipe:
    folder = home / "models" / shape.name
    if not folder.exists():
        make_model(folder, shape)
    ending = " measured" if measured else ""
    return Recipe(
        model=ModelSection(id=str(folder)),
        scheme=scheme,
        method=METHODS[method],
        data=chosen.data,
        layers=LayersSection(on_misfit=OnMisfit.SMALLER),
        measure=MeasureSection(enabled=measured, prompt_tokens=128, decode_tokens=16, quality_tokens=16384),
        output=OutputSection(name=f"{shape.name} {method} {scheme.weight_spec().label}{ending}"),
    )


def make_model(folder: Path, shape: Shape) -> None:
    import torch
    from safetensors.torch import save_file

    width, inner, narrow = shape.width, shape.inner, shape.shared_heads * 64
    shapes = {"model.embed_tokens.weight": (shape.words, width)}
    if not shape.tied:
        shapes["lm_head.weight"] = (shape.words, width)
    for block in range(shape.blocks):
        at = f"model.layers.{block}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (narrow, width) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (width, inner)
    tensors = {name: torch.randn(size).mul_(0.02).to(torch.bfloat16) for name, size in shapes.items()}
    norms = [
        f"model.layers.{block}.{at}_layernorm" for block in range(shape.blocks) for at in ("input", "post_attention")
    ]
    tensors |= {f"{name}.weight": torch.ones(width, dtype=torch.bfloat16) for name in ("model.norm", *norms)}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.words,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": width // 64,
        "num_key_value_heads": shape.shared_heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": shape.tied,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(starter_model() / name, folder / name)


def again(found: Sequence[Observation]) -> list[Observation]:
    """The same runs as today's formulas and what they learn would have predicted them."""
    replayed: list[Observation] = []
    for observation in found:
        run = observation.run
        recipe = load_recipe(run.path / RECIPE)
        info, machine = read_model_info(Path(recipe.model.id)), read_machine(run.path)
        formula = estimate(info, recipe, machine, run.path)
        told = estimate(info, recipe, machine, run.path, fit(replayed, kind_of(recipe)))
        costs = observation.costs.model_copy(
            update={
                "formula_memory": formula.peak_memory_bytes,
                "formula_seconds": formula.seconds,
                "predicted_memory": told.peak_memory_bytes,
                "predicted_seconds": told.seconds,
            }
        )
        replayed.append(Observation(run, observation.kind, costs))
    return replayed


def report(found: Sequence[Observation]) -> None:
    print("| run | kind | peak memory, MB: formula | predicted | measured | off by | time, s: predicted | measured |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for observation in found:
        c = observation.costs
        memory = f"{c.formula_memory / 1e6:.0f} | {c.predicted_memory / 1e6:.0f} | {c.measured_memory / 1e6:.0f}"
        memory += f" | {c.predicted_memory / c.measured_memory - 1:+.0%}"
        seconds = f"{c.predicted_seconds:.0f} | {c.measured_seconds:.0f}"
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


if __name__ == "__main__":
    sys.exit(main())
