"""QAT on several GPUs of one machine against one: the same losses, less memory on each, and no hang when one dies.

    python tests/benchmarks/qat_several_gpus.py OUT [--gpus 2] [--device cuda] [--parts curve big killed …]

curve      the starter model, W4A16 g128, 60 steps: losses of one and of several GPUs, step by step. How far apart they
           may be is shown by one GPU with other micro-batches, which differs in nothing but the order of sums.
big        a shape of 1.5B parameters with random weights, all of them trained, a few steps: memory of each GPU
killed     the process of the last GPU is killed within a step: seconds until the one error, and what is left
resumed    the killed training goes on from its checkpoint
cancelled  seconds until a training is gone
orphaned   the first process is killed: seconds until the others are gone

Each part runs in a process of its own, within a time limit, and prints what went wrong with tracebacks. `--device cpu`
tries all of it on small shapes, with processes instead of GPUs. OUT/PART.json holds the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))
from qat_gpu import prepared, shaped

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled, QuantStudioError
from quantstudio.core.model_info import read_model_info
from quantstudio.core.paths import resources
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import W4A16
from quantstudio.engine.load import load_model
from quantstudio.engine.reporter import Reporter, silent
from quantstudio.engine.train import run
from quantstudio.engine.train.checkpoints import Checkpoints

LIMITS = {"curve": 110.0, "big": 110.0, "killed": 60.0, "resumed": 60.0, "cancelled": 60.0, "orphaned": 60.0}
"""Seconds for each part; all together get `TOTAL`."""
TOTAL = 235.0
GB = 1e9


class Enough(Exception):
    """Ends a training from outside, before it is written to disk."""


class Watch:
    """Listens to a training: metrics with their times, log lines, and what the GPUs hold meanwhile."""

    def __init__(self, act: Callable[[protocol.Metric], None] | None = None) -> None:
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        self.cancel = threading.Event()
        self.used: list[int] = []
        self._act = act
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.reporter = Reporter(self, self.cancel)

    def __call__(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Metric):
            self.metrics.setdefault(message.name, []).append((message.step, message.value))
            if self._act:
                self._act(message)
        elif isinstance(message, protocol.Notice | protocol.Log):
            print(f"    {message.text}", flush=True)

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.metrics.get(name, [])]

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        """Bytes in use on each GPU, at most; by the driver's own tool, which sees every process."""
        tool = shutil.which("nvidia-smi")
        command = [tool or "", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while tool and not self._over.wait(0.2):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            now = [int(line) << 20 for line in done.stdout.split() if line.isdigit()]
            self.used = [max(pair) for pair in zip(now, self.used or now, strict=True)]


def train(folder: Path, method: Qat, data: Any, work: Path, watch: Watch, count: int, device: str) -> dict[str, Any]:
    """One training over `count` GPUs (processes on a CPU); its figures."""
    on_gpu = device == "cuda"
    machine = MachineSection(device=device, gpus=count if on_gpu else 1)
    recipe = Recipe(scheme=W4A16(group_size=128), method=method, machine=machine)
    info = read_model_info(folder)
    work.mkdir(parents=True, exist_ok=True)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    with watch:
        try:
            processes = 0 if on_gpu else count
            run.train_weights(info, make_plan(info, recipe), recipe, work, data, watch.reporter, processes)
        except Enough:
            print("    ended here: enough has been seen")
    speeds = sorted(watch.values("train/tokens_per_s")[2:]) or [0.0]
    return {
        "gpus": count,
        "seconds": time.monotonic() - started,
        "loss": watch.values("train/loss"),
        "held_out": watch.values("eval/loss"),
        "tokens_per_s": speeds[len(speeds) // 2],
        "peak_allocated_first": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "peak_used": watch.used,
    }


def show(label: str, found: dict[str, Any]) -> None:
    used = ", ".join(f"{value / GB:.2f}" for value in found["peak_used"]) or "–"
    held_out = " → ".join(f"{value:.5f}" for value in (found["held_out"][:1] + found["held_out"][-1:]))
    print(
        f"| {label} | {found['tokens_per_s']:,.0f} | {found['seconds']:.1f} | {held_out} | "
        f"{found['peak_allocated_first'] / GB:.2f} | {used} |",
        flush=True,
    )


HEAD = (
    "\n| | tokens/s | s in all | held-out loss, nats | peak of the first, allocated GB | of each GPU, in use GB |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def apart(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How far two curves are from each other."""
    away = [abs(a - b) for a, b in zip(one["loss"], other["loss"], strict=True)]
    held_out = [abs(a - b) for a, b in zip(one["held_out"], other["held_out"], strict=True)]
    mean = sum(one["loss"]) / len(one["loss"])
    return {
        "largest": max(away),
        "mean": sum(away) / len(away),
        "mean_loss": mean,
        "held_out_last": held_out[-1],
        "first_step": away[0],
    }


def starter_data(options: argparse.Namespace) -> Any:
    """The built-in books, as a run reads them; on a CPU only a little of them."""
    data = prepared(load_model(resources() / "starter", "cpu", silent()))
    if options.device == "cuda":
        return data
    return SimpleNamespace(
        training=data.training[:64, :64].contiguous(),
        training_mask=data.training_mask[:64, :64].contiguous(),
        held_out=data.held_out[:4, :64].contiguous(),
        held_out_mask=data.held_out_mask[:4, :64].contiguous(),
    )


def curve(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Loss curves of one and several GPUs."""
    small = options.device == "cpu"
    method = Qat(steps=6, batch_sequences=4, evaluations=2) if small else Qat(steps=60, evaluations=3)
    data, folder = starter_data(options), resources() / "starter"
    fit = run.fit
    found: dict[str, Any] = {}
    for label, count, divisor in (("one", 1, 1), ("one, smaller micro-batch", 1, 2), ("several", options.gpus, 1)):
        if divisor > 1:
            run.fit = lambda lesson, batch, *rest, by=divisor: (batch // by, False)
        try:
            found[label] = train(folder, method, data, work / f"curve {label}", Watch(), count, options.device)
        finally:
            run.fit = fit
    print(HEAD)
    for label, figures in found.items():
        show(label, figures)
    print("\n| against one | largest difference | mean | of a mean loss of | held-out, last | first step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for label in list(found)[1:]:
        gap = found[label]["apart"] = apart(found["one"], found[label])
        cells = " | ".join(f"{gap[key]:.6f}" for key in ("largest", "mean", "mean_loss", "held_out_last", "first_step"))
        print(f"| {label} | {cells} |")
    print("\nstep: loss on one, on several")
    pairs = list(zip(found["one"]["loss"], found["several"]["loss"], strict=True))
    for step in sorted({1, 2, 3, 5, 10, 20, 30, 40, 50, len(pairs)} & set(range(1, len(pairs) + 1))):
        print(f"  {step}: {pairs[step - 1][0]:.6f}, {pairs[step - 1][1]:.6f}")
    found["chosen_bytes"] = compare_results(work / "curve one", work / "curve several")
    return found


def compare_results(one: Path, other: Path) -> dict[str, float]:
    """How much of what is handed over to be saved is the same."""
    from safetensors.torch import load_file

    same = total = 0
    for path in sorted((one / "work" / "chosen").glob("*.safetensors")):
        first, second = load_file(path), load_file(other / "work" / "chosen" / path.name)
        for name, value in first.items():
            same += int((value == second[name]).sum())
            total += value.numel()
    print(f"\nCodes, scales and other values that are equal: {same / max(1, total):.4%} of {total:,}")
    return {"same": same, "total": total}


def big(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Memory of each GPU when all weights of a larger model are trained."""
    small = options.device == "cpu"
    folder = shaped("tiny" if small else "1.5B", work)
    length, steps = (64, 3) if small else (512, 8)
    ids = torch.randint(0, 1000, (64, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    data = SimpleNamespace(training=ids[:60], training_mask=mask[:60], held_out=ids[60:], held_out_mask=mask[60:])
    method = Qat(steps=steps, batch_sequences=8, evaluations=1)
    Checkpoints.keep_best = lambda *_: None  # type: ignore[method-assign]  # 6 GB of random weights

    def stop(metric: protocol.Metric) -> None:
        if metric.name == "train/learning_rate" and metric.step == steps:
            raise Enough

    found: dict[str, Any] = {}
    for label, count in (("several", options.gpus), ("one", 1)):
        try:
            place = Path(tempfile.mkdtemp(dir=work))
            found[label] = train(folder, method, data, place, Watch(stop), count, options.device)
        except Exception:
            traceback.print_exc()
    print(HEAD)
    for label, figures in found.items():
        show(label, figures)
    if len(found) == 2:
        print(json.dumps({"losses": {label: figures["loss"] for label, figures in found.items()}}))
        peaks = [found[label]["peak_allocated_first"] for label in ("several", "one")]
        print(f"\nallocated on the first GPU: {peaks[0] / max(1, peaks[1]):.2f} × of what one GPU alone needs")
    return found


def interrupted(options: argparse.Namespace, work: Path, at: int, act: Callable[[Watch], None]) -> dict[str, Any]:
    """A training on several GPUs to which something happens in a step; how and when it ends."""
    small = options.device == "cpu"
    method = Qat(steps=12, batch_sequences=4, evaluations=4) if small else Qat(steps=40, evaluations=8)
    happened: list[float] = []

    def on_metric(metric: protocol.Metric) -> None:
        if metric.name == "train/learning_rate" and metric.step == at:
            happened.append(time.monotonic())
            act(watch)

    watch = Watch(on_metric)
    ended = "it came to its end"
    try:
        folder = resources() / "starter"
        train(folder, method, starter_data(options), work, watch, options.gpus, options.device)
    except Cancelled:
        ended = "cancelled"
    except QuantStudioError as error:
        ended = f"{type(error).__name__} ({error.kind}): {error}"
    except BaseException as error:
        traceback.print_exc()
        ended = f"NO NAMED ERROR: {type(error).__name__}: {error}"
    seconds = time.monotonic() - happened[0] if happened else float("nan")
    left = [child.cmdline()[-1] for child in psutil.Process().children(recursive=True)]
    print(f"\nended {seconds:.2f} s after: {ended}\nprocesses left: {left}\nsteps: {len(watch.values('train/loss'))}")
    return {"seconds": seconds, "ended": ended, "left": left, "steps": len(watch.values("train/loss"))}


def killed(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The last process dies."""

    def kill(_watch: Watch) -> None:
        ranks = [child for child in psutil.Process().children() if "beside" in " ".join(child.cmdline())]
        ranks[-1].send_signal(signal.SIGKILL)

    return interrupted(options, work / "killed", 8 if options.device == "cpu" else 12, kill)


def resumed(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Goes on where `killed` was: the steps before its last checkpoint are not done again."""
    return interrupted(options, work / "killed", -1, lambda watch: None)


def cancelled(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The person asks to stop."""
    return interrupted(options, work / "cancelled", 3, lambda watch: watch.cancel.set())


def orphaned(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The first process is killed; the others must not stay on their GPUs."""
    command = [sys.executable, __file__, *sys.argv[1 : sys.argv.index("--part")], "--part", "suicide", "--limit", "50"]
    first = subprocess.Popen(command)
    others: list[psutil.Process] = []
    while first.poll() is None:
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(first.pid).children(recursive=True)
            others = [child for child in found if "beside" in " ".join(child.cmdline())] or others
        time.sleep(0.05)
    started = time.monotonic()
    left = psutil.wait_procs(others, timeout=20)[1]
    seconds = time.monotonic() - started
    print(f"\nthe first ended with {first.returncode}; {len(others)} others, gone {seconds:.2f} s later; left: {left}")
    for child in left:
        child.kill()
    return {"seconds": seconds, "others": len(others), "left": len(left)}


def suicide(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A training whose first process is killed in its third step."""
    return interrupted(options, work / "orphaned", 3, lambda watch: os.kill(os.getpid(), signal.SIGKILL))


PARTS = {
    "curve": curve,
    "big": big,
    "killed": killed,
    "resumed": resumed,
    "cancelled": cancelled,
    "orphaned": orphaned,
}
HIDDEN = {"suicide": suicide}


def versions(options: argparse.Namespace) -> None:
    import accelerate
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}")
    print(f"Python {sys.version.split()[0]}, FSDP2 (torch.distributed.fsdp.fully_shard)")
    if options.device == "cuda":
        print(f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
        print([torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())])
        subprocess.run(["nvidia-smi", "topo", "-m"], check=False)
    print({name: value for name, value in os.environ.items() if name.startswith(("NCCL", "TORCH_NCCL", "CUDA_"))})


def one_part(name: str, options: argparse.Namespace) -> None:
    faulthandler.dump_traceback_later(options.limit - 5, exit=True)
    work = options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    found = (PARTS | HIDDEN)[name](options, work)
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--part", choices=PARTS | HIDDEN, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        try:
            one_part(options.part, options)
        except BaseException:
            traceback.print_exc()
            sys.stdout.flush()
            os._exit(1)
    versions(options)
    slow = 10.0 if options.device == "cpu" else 1.0
    deadline = time.monotonic() + TOTAL * slow
    for name in options.parts:
        limit = min(LIMITS[name] * slow, deadline - time.monotonic())
        print(f"\n## {name}\n", flush=True)
        if limit < 20:
            print("no time is left for it")
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--limit", str(limit)]
        started = time.monotonic()
        try:
            status = subprocess.run(command, stderr=subprocess.STDOUT, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            status = -1
        print(f"\n{name}: status {status}, {time.monotonic() - started:.1f} s", flush=True)
    shutil.rmtree(options.out / "work", ignore_errors=True)


if __name__ == "__main__":
    main()
