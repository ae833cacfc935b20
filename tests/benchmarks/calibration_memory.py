"""Peak memory of the calibrated methods, on a model of Qwen2.5-0.5B's shape with random weights.

    python tests/benchmarks/calibration_memory.py [--methods gptq awq smoothquant hqq] [--sequences 16]

Each method runs in a process of its own, on random tokens in sequences of 512. The aim: six times the largest decoder
block of the source, the activations that go from block to block (bf16), and 1 GB, libraries included. What the model
would take in fp32 stands beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import decode_speed
import torch

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.core.recipe_method import AnyMethod, Awq, Gptq, Hqq, SmoothQuant
from quantstudio.core.schemes import W4A16, W8A8
from quantstudio.engine.calibrate import choose
from quantstudio.engine.measure.memory import peak_rss
from quantstudio.engine.methods.choose import choose_weights
from quantstudio.engine.reporter import silent

LENGTH = 512
CPU = MachineSection(device="cpu")
METHODS: dict[str, AnyMethod] = {"gptq": Gptq(), "awq": Awq(), "smoothquant": SmoothQuant(), "hqq": Hqq()}


def main() -> None:
    options = _options()
    if options.model:
        print(json.dumps(_peak(options.model, options.methods[0], options.sequences)))
        return
    print("| method | peak, MB | aim, MB | the model in fp32, MB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        decode_speed._random_model(model)
        for method in options.methods:
            command = [sys.executable, __file__, "--model", str(model), "--methods", method]
            command += ["--sequences", str(options.sequences)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            print(f"| {method} | {figures['peak'] / 1e6:,.0f} | {figures['aim'] / 1e6:,.0f} | "
                  f"{figures['fp32'] / 1e6:,.0f} |", flush=True)  # fmt: skip


def _peak(model: Path, name: str, sequences: int) -> dict[str, int]:
    info = read_model_info(model)
    scheme = W8A8() if name == "smoothquant" else W4A16(group_size=128)
    recipe = Recipe(scheme=scheme, method=METHODS[name], machine=CPU)
    plan = make_plan(info, recipe)
    with tempfile.TemporaryDirectory() as work:
        if name == "hqq":
            choose_weights(info, plan, recipe, Path(work), None, lambda phase: None, silent())
        else:
            ids = torch.randint(0, 100_000, (sequences, LENGTH), generator=torch.Generator().manual_seed(0))
            choose(info, plan, recipe, Path(work), ids, silent())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    block = 2 * (info.parameters - config["vocab_size"] * config["hidden_size"]) // config["num_hidden_layers"]
    activations = 2 * sequences * LENGTH * config["hidden_size"]
    return {"peak": peak_rss(), "aim": 6 * block + activations + 10**9, "fp32": 4 * info.parameters}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
