"""How long does it take from "cancel" until the worker's process is gone? Real workers, at random moments.

    python tests/benchmarks/cancel_latency.py [--moments 10] [--jobs gptq qat sensitivity contest] [--model starter]

Each moment is a share of the seconds that the job is given (`--within`), counted from the worker's first word of the
job's phases, so that importing libraries is not among them. As the window does it, a process that has not ended when
its patience has is terminated, and counted. A job that had ended by then counts for nothing, and the
next moments are earlier. Prints the median of each kind, and the longest wait with the step that it hit.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quantstudio.client.worker_process import Patience
from quantstudio.core import protocol, run_store
from quantstudio.core.contest import Contestant
from quantstudio.core.jobs import AnyJob, ContestJob, RunJob, SensitivityJob
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_method import AnyMethod, Awq, FineTune, Gptq, Hqq, Qat, RoundToNearest, SmoothQuant

METHODS: dict[str, AnyMethod] = {
    "rtn": RoundToNearest(),
    "hqq": Hqq(),
    "gptq": Gptq(),
    "awq": Awq(),
    "smoothquant": SmoothQuant(),
    "qat": Qat(steps=50),
    "lora": Qat(steps=50, train="lora"),
    "finetune": FineTune(steps=50),
}
MEASURED = "measured"
"""A run that is measured afterwards: the time goes into processes of their own."""
JOBS = (*METHODS, MEASURED, "sensitivity", "contest")
EARLIER = 0.7


def make_job(kind: str, model: str, home: Path) -> AnyJob:
    recipe = Recipe(
        model=ModelSection(id=model),
        method=METHODS.get(kind, RoundToNearest() if kind == MEASURED else Gptq()),
        measure=MeasureSection(enabled=kind == MEASURED),
        machine=MachineSection(device="cpu"),
    )
    if kind == "sensitivity":
        return SensitivityJob(model=model, recipe=recipe)
    if kind == "contest":
        return ContestJob(recipe=recipe, folder=str(home), contestants=(Contestant.GPTQ, Contestant.QAT))
    return RunJob(recipe=recipe, run_folder=str(run_store.create_run(home, recipe)))


@dataclass(frozen=True)
class Wait:
    """How long it took, what the job was doing, and whether it was terminated."""

    seconds: float
    where: str
    forced: bool


def seconds_to_cancel(job: AnyJob, after: float) -> Wait | None:
    """Start the job, cancel it `after` seconds into its phases, and wait for the process.

    None when it had ended by then. Raises AssertionError when it failed.
    """
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "quantstudio.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    begun = threading.Event()
    seen: list[protocol.Message | None] = []

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
    where = _where(seen)
    started = time.perf_counter()
    with suppress(BrokenPipeError):
        worker.stdin.write(protocol.Command(name="cancel").encode())
        worker.stdin.flush()
    forced = not _ends(worker, Patience().cancel)
    if forced:
        worker.terminate()
        worker.wait(300)
    seconds = time.perf_counter() - started
    listener.join()
    if any(isinstance(message, protocol.Result) for message in seen):
        return None
    assert forced or any(isinstance(message, protocol.CancelledMessage) for message in seen), seen[-1]
    return Wait(seconds, where, forced)


def _ends(worker: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        worker.wait(seconds)
        return True
    return False


def _where(seen: list[protocol.Message | None]) -> str:
    phase = next((each.title for each in reversed(seen) if isinstance(each, protocol.Phase)), "")
    at = next((each for each in reversed(seen) if isinstance(each, protocol.Progress)), None)
    return f"{phase}, {at.done:g} of {at.total:g} {at.unit} {at.detail}".strip() if at else phase


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
        waits: list[Wait] = []
        within = options.within
        while len(waits) < options.moments:
            with tempfile.TemporaryDirectory() as home:
                wait = seconds_to_cancel(make_job(kind, options.model, Path(home)), chance.uniform(0, within))
            if wait:
                waits.append(wait)
            else:
                within *= EARLIER
        longest = max(waits, key=lambda wait: wait.seconds)
        median, forced = statistics.median(wait.seconds for wait in waits), sum(wait.forced for wait in waits)
        print(
            f"{kind}: median {median:.2f} s, longest {longest.seconds:.2f} s ({longest.where}); "
            f"{forced} of {len(waits)} terminated",
            flush=True,
        )


if __name__ == "__main__":
    main()
