"""How long does it take from "cancel" until the worker's process is gone? Real workers, at random moments.

    python tests/benchmarks/cancel_latency.py [--moments 10] [--jobs gptq qat sensitivity contest] [--model starter]

Each moment is a share of the seconds that the job is given (`--within`), counted from the worker's first word of the
job's phases, so that importing libraries is not among them. Prints the median and the longest wait of each kind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from quantstudio.core import protocol, run_store
from quantstudio.core.contest import Contestant
from quantstudio.core.jobs import AnyJob, ContestJob, RunJob, SensitivityJob
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_method import AnyMethod, Gptq, Qat

METHODS: dict[str, AnyMethod] = {"gptq": Gptq(), "qat": Qat(steps=50)}
JOBS = ("gptq", "qat", "sensitivity", "contest")


def make_job(kind: str, model: str, home: Path) -> AnyJob:
    recipe = Recipe(
        model=ModelSection(id=model),
        method=METHODS.get(kind, Gptq()),
        measure=MeasureSection(enabled=False),
        machine=MachineSection(device="cpu"),
    )
    if kind == "sensitivity":
        return SensitivityJob(model=model, recipe=recipe)
    if kind == "contest":
        return ContestJob(recipe=recipe, folder=str(home), contestants=(Contestant.GPTQ, Contestant.QAT))
    return RunJob(recipe=recipe, run_folder=str(run_store.create_run(home, recipe)))


def seconds_to_cancel(job: AnyJob, after: float) -> float:
    """Start the job, cancel it `after` seconds into its phases, and wait for the process. Raises AssertionError."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "quantstudio.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    begun, seen = threading.Event(), []

    def listen(lines: object = worker.stdout) -> None:
        for line in lines:  # type: ignore[attr-defined]
            message = protocol.decode(line)
            seen.append(message)
            if isinstance(message, protocol.Progress):
                begun.set()

    listener = threading.Thread(target=listen)
    listener.start()
    worker.stdin.write(protocol.Command(name="start", payload=job.model_dump(mode="json")).encode())
    worker.stdin.flush()
    begun.wait(300)
    time.sleep(after)
    started = time.perf_counter()
    worker.stdin.write(protocol.Command(name="cancel").encode())
    worker.stdin.flush()
    worker.wait(300)
    seconds = time.perf_counter() - started
    listener.join()
    assert any(isinstance(message, protocol.CancelledMessage) for message in seen), seen[-1]
    return seconds


def main() -> None:
    """Print a line for each kind of job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--within", type=float, default=40.0, help="seconds in which the moments lie")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    chance = random.Random(0)  # noqa: S311 - moments, no secrets
    for kind in options.jobs:
        waits = []
        for _ in range(options.moments):
            with tempfile.TemporaryDirectory() as home:
                after = chance.uniform(0, options.within)
                waits.append(seconds_to_cancel(make_job(kind, options.model, Path(home)), after))
        print(
            f"{kind}: median {statistics.median(waits):.2f} s, longest {max(waits):.2f} s of {len(waits)}", flush=True
        )


if __name__ == "__main__":
    main()
