"""What QAT wins back and what it costs, measured on a GPU. Each part is chosen by name and takes a few minutes at most.

    python tests/benchmarks/qat_gpu.py OUT w4 w4a8 w3 w2        the ladder on the starter model, by scheme
    python tests/benchmarks/qat_gpu.py OUT tune                 learning rates, judged on held-out training text only
    python tests/benchmarks/qat_gpu.py OUT cost lora big        step time and memory on 0.5B and 1.5B shapes
    python tests/benchmarks/qat_gpu.py OUT run                  whole trainings of a 0.5B shape, compiled and not;
                                                                --train lora, --gpus 2, --run-steps 12

Each part prints a table and writes OUT/PART.json. The ladder is scored as a run scores its result: windows of
evaluation.txt, which nothing here learns from; "recovered" is the share of the perplexity gap between the original and
rounding to nearest, with a paired 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from quantstudio.core import protocol
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.paths import resources
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, MeasureSection, Recipe
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.recipe_method import STEP_TOKENS, FineTune, Gptq, Qat
from quantstudio.core.schemes import W2A16, W3A16, W4A8, W4A16
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.measure.bootstrap import draw_totals, percentile_interval, sum_blocks
from quantstudio.engine.measure.quality import score
from quantstudio.engine.measure.text import BUILTIN_NAME, Text, cut_windows
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import Reporter, silent
from quantstudio.engine.train import rates
from quantstudio.engine.train.loss import Objective
from quantstudio.engine.train.objective import Lesson
from quantstudio.engine.train.student import Training, make_student

SCHEMES = {
    "w4": W4A16(group_size=128),
    "w4a8": W4A8(group_size=32),
    "w3": W3A16(group_size=32),
    "w2": W2A16(group_size=32),
}
GOALS = {"w4": 0.90, "w4a8": 0.90, "w3": 0.85, "w2": 0.95}
TOKENS = 131_072
LENGTH = 512


class Listener:
    """Collects metrics; prints evaluations as they come."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        self.reporter = Reporter(self)

    def __call__(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Metric):
            self.metrics.setdefault(message.name, []).append((message.step, message.value))
            if message.name == "eval/loss":
                print(f"  {self.label}: step {message.step}, held-out loss {message.value:.5f}", flush=True)
        elif isinstance(message, protocol.Notice | protocol.Log):
            print(f"  {self.label}: {message.text}", flush=True)


def prepared(model: LoadedModel, options: argparse.Namespace) -> Any:
    from quantstudio.engine.data.prepare import prepare_data

    section = DataSection(calibration_sequences=options.sequences)
    return prepare_data(section, model.tokenizer, options.seed, silent())


def write_model(info: ModelInfo, recipe: Recipe, out: Path, chosen: Chosen | None) -> LoadedModel:
    out.mkdir()
    quantize_model(info, make_plan(info, recipe), recipe, out, silent(), chosen)
    return load_model(out, recipe.machine.device, silent(), kernels="reference")


def ladder(name: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """RTN, GPTQ and QAT at three lengths, all scored on the same windows."""
    folder = resources() / "starter"
    info = read_model_info(folder)
    machine = MachineSection(device=options.device, seed=options.seed)
    original = load_model(folder, options.device, silent())
    data = prepared(original, options)
    recipes = {"RTN": Recipe(scheme=SCHEMES[name], machine=machine)}
    if options.gptq:
        recipes["GPTQ"] = Recipe(scheme=SCHEMES[name], machine=machine, method=Gptq())
    for steps in options.steps:
        method = Qat(steps=steps, learning_rate=options.rate)
        recipes[f"QAT {steps} steps"] = Recipe(scheme=SCHEMES[name], machine=machine, method=method)
    rows: dict[str, Any] = {}
    text = Text(BUILTIN_NAME, (resources() / "text" / "evaluation.txt").read_text(encoding="utf-8"))
    windows = cut_windows(text, original.tokenizer, MeasureSection().window, options.tokens, 0)
    columns = [sum_blocks(windows.scored)]
    with tempfile.TemporaryDirectory() as work:
        for label, recipe in recipes.items():
            listener, started = Listener(label), time.monotonic()
            try:
                chosen = choose(info, recipe, Path(work) / label, data, listener.reporter)
            except ImportError:
                print(f"  {label}: not there yet")
                continue
            seconds = time.monotonic() - started
            model = write_model(info, recipe, Path(work) / f"{label} model", chosen)
            scores = score(original.model, model.model, windows, silent())
            if len(columns) == 1:
                columns.append(sum_blocks(scores.nll_original * windows.scored))
            columns.append(sum_blocks(scores.nll * windows.scored))
            kl = float((scores.kl * windows.scored).sum() / windows.scored.sum())
            rows[label] = {"kl": kl, "seconds": seconds, "metrics": listener.metrics}
    add_shares(rows, np.stack(columns, axis=1))
    show_ladder(name, rows)
    return {"scheme": name, "goal": GOALS[name], "rows": rows}


def choose(info: ModelInfo, recipe: Recipe, folder: Path, data: Any, reporter: Reporter) -> Chosen | None:
    folder.mkdir()
    plan = make_plan(info, recipe)
    if recipe.method.kind == "rtn":
        return None
    from quantstudio.engine.methods.choose import choose_weights

    return choose_weights(info, plan, recipe, folder, data, lambda phase: None, reporter)


def add_shares(rows: dict[str, Any], columns: Any) -> None:
    """Perplexities and recovered shares with intervals. Columns: tokens, nll of the original, of RTN, of the others."""
    totals = draw_totals(columns, 0)
    perplexity = np.exp(totals[:, 1:] / totals[:, :1])
    blocks = len(columns)
    original, rounded = perplexity[:, 0], perplexity[:, 1]
    for place, row in enumerate(rows.values()):
        own = perplexity[:, 1 + place]
        share = (rounded - own) / (rounded - original)
        row["perplexity"] = percentile_interval(own, blocks).model_dump()
        row["recovered"] = percentile_interval(share, blocks).model_dump()
        row["minus_original"] = percentile_interval(own - original, blocks).model_dump()
        row["original_perplexity"] = float(original[0])


def show_ladder(name: str, rows: dict[str, Any]) -> None:
    print(f"\n### {SCHEMES[name].weight_spec().label} (goal {GOALS[name]:.0%}; recovered, 95 % interval)\n")
    print("| method | perplexity | gap recovered | KL | seconds |\n| --- | --- | --- | --- | --- |")
    first = next(iter(rows.values()))
    print(f"| original | {first['original_perplexity']:.3f} | | | |")
    for label, row in rows.items():
        share, value = row["recovered"], row["perplexity"]["value"]
        interval = f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"
        print(f"| {label} | {value:.3f} | {interval} | {row['kl']:.5f} | {row['seconds']:.0f} |")
    print(flush=True)


def tune(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out loss (of training text) by learning rate, rate of the scales, and whether scales learn."""
    from quantstudio.engine.train import run

    folder = resources() / "starter"
    info = read_model_info(folder)
    data = prepared(load_model(folder, "cpu", silent()), options)
    found = {}
    for case in options.cases:
        name, steps, rate, gain_rate, learned = case.split(",")
        rates.GAIN_RATE, run.LEARNED_BELOW = float(gain_rate), int(learned)
        method = Qat(steps=int(steps), learning_rate=float(rate), evaluations=4)
        recipe = Recipe(scheme=SCHEMES[name], method=method, machine=MachineSection(device=options.device))
        listener = Listener(case)
        with tempfile.TemporaryDirectory() as work:
            choose(info, recipe, Path(work) / "run", data, listener.reporter)
        scores, last = listener.metrics["eval/perplexity"], listener.metrics["eval/loss"][-1][1]
        original = listener.metrics["reference/original"][0][1]
        rounded = listener.metrics["reference/rtn"][0][1]
        share = (rounded - scores[-1][1]) / (rounded - original)
        found[case] = {"loss": last, "perplexity": scores[-1][1], "recovered on held-out": share}
        print(f"| {case} | {last:.5f} | {scores[-1][1]:.3f} | {share:.1%} |", flush=True)
    return found


SHAPES = {
    "0.5B": Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
    ),
    "1.5B": Qwen2Config(
        vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
    ),
    "tiny": Qwen2Config(
        vocab_size=1024, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
    ),
}  # fmt: skip


def shaped(shape: str, folder: Path) -> Path:
    """A model of this shape with random weights."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.bfloat16)
    model.save_pretrained(folder / shape)
    return folder / shape


def one_cost(folder: Path, training: Training, case: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step and peak bytes of GPU memory, everything counted, optimizer included."""
    info = read_model_info(folder)
    recipe = Recipe(scheme=SCHEMES[case.get("scheme", "w4")])
    teacher = load_model(folder, options.device, silent())
    student = make_student(teacher.model, make_plan(info, recipe), inspect_architecture(info), training)
    student.model.to(teacher.device)
    objective = Objective() if case["distil"] else Objective(0.0, 1.0)
    lesson = Lesson(student.model, teacher.model if case["distil"] else None, objective)
    if not case["distil"]:
        del teacher
    if case.get("recompute"):
        from quantstudio.engine.train.fit import set_recompute

        set_recompute(lesson, recompute=True)
    if case["compiled"]:
        for block in student.model.model.layers:
            block.compile()
    optimizer = torch.optim.AdamW(student.trained(), lr=1e-5, weight_decay=0.0)
    lesson.train()
    ids = torch.randint(0, 1000, (case["micro"], LENGTH), device=options.device)
    synchronize, seconds = _cuda(torch.cuda.synchronize), []
    for number in range(4 + options.trials):
        if number == 4:
            _cuda(torch.cuda.reset_peak_memory_stats)()
        synchronize()
        started = time.perf_counter()
        for _ in range(case["batch"] // case["micro"]):
            (lesson(ids, ids)[0] / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    del lesson, student, optimizer
    gc.collect()
    torch._dynamo.reset()
    _cuda(torch.cuda.empty_cache)()
    return {"seconds": float(np.median(seconds[4:])), "peak": peak}


def _cuda(call: Callable[[], Any]) -> Callable[[], Any]:
    return call if torch.cuda.is_available() else lambda: None


def cost(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """QAT against the same fine-tune without rounding: with and without a teacher, eager and compiled."""
    found: dict[str, Any] = {}
    print("\n| shape, step of 8,192 tokens | fine-tune | QAT | time | memory |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        model = shaped(options.shape, Path(folder))
        for compiled in (True, False):
            for distil in (False, True):
                case = {"distil": distil, "compiled": compiled, "batch": 16, "micro": options.micro, "scheme": "w4"}
                try:
                    plain = one_cost(model, Training(rounds=False), case, options)
                    for learned in (0, 8):
                        qat = one_cost(model, Training(learned_below=learned), case, options)
                        label = (
                            f"{'compiled' if compiled else 'eager'}, {'distillation' if distil else 'cross entropy'}"
                        )
                        label += f", {'learned' if learned else 'nearest'} scales"
                        found[label] = show_cost(label, plain, qat)
                except Exception as error:
                    print(f"| {case} | failed: {type(error).__name__}: {str(error)[:300]} |", flush=True)
                    _cuda(torch.cuda.empty_cache)()
    return found


def show_cost(label: str, plain: dict[str, float], other: dict[str, float]) -> dict[str, Any]:
    time_ratio, memory = other["seconds"] / plain["seconds"], other["peak"] / max(1, plain["peak"])
    sizes = " | ".join(f"{cost['seconds']:.3f} s, {cost['peak'] / 1e9:.2f} GB" for cost in (plain, other))
    print(f"| {label} | {sizes} | {time_ratio:.2f}× | {memory:.2f}× |", flush=True)
    return {"plain": plain, "other": other, "time": time_ratio, "memory": memory}


def lora(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Memory of LoRA-QAT against QAT of all weights, same micro-batch, with the teacher."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = shaped(options.shape, Path(folder))
        for micro, recompute in ((1, True), (1, False), (4, True), (4, False)):
            case = {"distil": True, "compiled": False, "batch": micro, "micro": micro, "recompute": recompute}
            whole = one_cost(model, Training(), case, options)
            small = one_cost(model, Training(lora_rank=16), case, options)
            found[f"{micro} × {LENGTH}{', recomputed' if recompute else ''}"] = show_cost(
                f"all → LoRA, {micro} × {LENGTH}{', recomputed' if recompute else ''}", whole, small
            )
    return found


def big(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of LoRA-QAT on a 1.5B shape."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = shaped(options.big_shape, Path(folder))
        for micro, recompute in ((1, False), (1, True), (4, True)):
            case = {"distil": True, "compiled": False, "batch": 16, "micro": micro, "recompute": recompute}
            cost = one_cost(model, Training(lora_rank=16), case, replace_trials(options, 2))
            found[f"{micro}, recompute {recompute}"] = cost
            print(f"| {options.big_shape} LoRA, {micro} × {LENGTH}, recompute {recompute} | {cost['seconds']:.2f} s | "
                  f"{cost['peak'] / 1e9:.2f} GB (goal: 16) |", flush=True)  # fmt: skip
    return found


def replace_trials(options: argparse.Namespace, trials: int) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | {"trials": trials})


def run(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Whole trainings as a run does them, each in a process of its own; compiled ones share what is on the disk."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        shaped(options.shape, Path(home))
        gc.collect()
        _cuda(torch.cuda.empty_cache)()
        for label, more in (
            ("QAT", []),
            ("QAT, compiled", ["--compiled"]),
            ("QAT, compiled again", ["--compiled"]),
            ("fine-tune, compiled", ["--compiled", "--no-rounding"]),
        ):
            command = [sys.executable, __file__, home, "once", "--shape", options.shape, "--device", options.device,
                       "--train", options.train, "--gpus", str(options.gpus), "--run-steps", str(options.run_steps),
                       *more]  # fmt: skip
            done = subprocess.run(command, env=os.environ | {"QUANTSTUDIO_HOME": home}, check=False)
            if done.returncode:
                print(f"| {label} | failed with exit status {done.returncode} |", flush=True)
                continue
            found[label] = json.loads((Path(home) / "once.json").read_text(encoding="utf-8"))
    print(f"\n| {options.shape}, {options.train} | step | of QAT | peak | of QAT | loss at the end | said |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for label, own in found.items():
        base = found.get("QAT", own)
        print(f"| {label} | {own['seconds']:.3f} s | {own['seconds'] / base['seconds']:.2f}x | "
              f"{own['peak'] / 1e9:.2f} GB | {own['peak'] / max(1, base['peak']):.2f}x | {own['losses'][-1]:.5f} | "
              f"{' '.join(own['said'])} |", flush=True)  # fmt: skip
    return found


def once(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training of a model that lies in OUT; a part of `run`."""
    from types import SimpleNamespace

    from quantstudio.engine.train.run import train_weights

    info = read_model_info(out / options.shape)
    more = {"steps": options.run_steps, "evaluations": 1, "train": options.train, "loss": "distil"}
    method = FineTune(**more) if options.no_rounding else Qat(**more)
    machine = MachineSection(device=options.device, compile=options.compiled, gpus=options.gpus)
    recipe = Recipe(scheme=SCHEMES["w4"], method=method, machine=machine)
    ids = torch.randint(0, 1000, (64, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    data: Any = SimpleNamespace(training=ids[8:], training_mask=mask[8:], held_out=ids[:8], held_out_mask=mask[:8])
    said: list[str] = []
    listener = Listener("once")

    def sink(message: protocol.Message) -> None:
        listener(message)
        if isinstance(message, protocol.Notice) and "compiled" in message.text:
            said.append(message.text)

    with tempfile.TemporaryDirectory(dir=out) as work:
        train_weights(info, make_plan(info, recipe), recipe, Path(work), data, Reporter(sink))
    rates = [value for _, value in listener.metrics["train/tokens_per_s"]]
    return {
        "seconds": STEP_TOKENS / float(np.median(rates[2:])),
        "peak": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "losses": [value for _, value in listener.metrics["train/loss"]],
        "said": said,
    }


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "tune": tune, "cost": cost, "lora": lora, "big": big, "run": run, "once": once,
}  # fmt: skip


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        started = time.monotonic()
        found = ladder(part, options.out, options) if part in SCHEMES else PARTS[part](options.out, options)
        (options.out / f"{part}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="+", choices=[*SCHEMES, *PARTS])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 800, 1600])
    parser.add_argument("--no-gptq", dest="gptq", action="store_false", help="leave GPTQ out of the ladder")
    parser.add_argument("--sequences", type=int, default=128, help="calibration sequences of GPTQ, where QAT starts")
    parser.add_argument("--seed", type=int, default=0, help="of the text's pieces, their order and the training")
    parser.add_argument("--rate", type=float, default=0.0, help="learning rate; 0 is the automatic one")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of evaluation text")
    parser.add_argument("--shape", default="0.5B", choices=SHAPES)
    parser.add_argument("--big-shape", default="1.5B", choices=SHAPES)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--train", default="all", choices=("all", "lora"), help="of run")
    parser.add_argument("--gpus", type=int, default=1, help="of run")
    parser.add_argument("--run-steps", type=int, default=12)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-rounding", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[
            "w2,200,3.5e-4,2,8", "w2,200,5e-4,2,8", "w2,200,1e-3,2,8", "w2,200,3.5e-4,1,0",
            "w4,200,1.2e-4,2,8", "w4,200,2.5e-4,2,8", "w4,200,5e-4,2,8", "w4,200,1.2e-4,1,0",
            "w3,200,2e-4,2,8", "w3,200,5e-4,2,8", "w3,200,2e-4,1,0",
        ],
        help="scheme,steps,rate,rate of scales,bits below which scales learn",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
