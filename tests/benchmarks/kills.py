"""Kill a calibrating and a training run at random moments, resume each, and compare with a run left in peace.

    python tests/benchmarks/kills.py [KILLS] [METHOD ...]

Rounds go on until so many kills have happened. Each round starts the real command in a session of its own and kills the
session with SIGKILL at a random moment between the first file that the run could go on from and its end; it is then
resumed with `quantstudio resume`, and two of three times killed once more on the way. A round ends when the run is
done: every file of its model must be the undisturbed run's, byte for byte. One line tells of each kill, and of a run
that had ended before it could be killed, which counts for nothing. At the end a run is cancelled with SIGINT and the
seconds until its process is gone are printed. Exits with 1 when a run could not be resumed or gave other bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

FLAGS = {
    "gptq": ["--method.kind", "gptq", "--data.calibration_sequences", "32", "--data.sequence_length", "256"],
    "qat": [
        *("--method.kind", "qat", "--method.steps", "12", "--method.batch_sequences", "4"),
        *("--method.evaluations", "6", "--data.sequence_length", "128", "--data.held_out_sequences", "8"),
    ],
}
COMMON = ["--measure.enabled", "no", "--machine.device", "cpu"]
INTERRUPTED = 130
AGAIN = 2 / 3
"""Share of the rounds that are killed a second time, while they resume."""
EARLIER = 0.85
"""Moments lie in so much less time once a run has ended before its own came: the machine has become faster."""
PATIENCE_S = 900


@dataclass
class Tally:
    """What happened to the runs of one method."""

    expected: dict[str, str]
    seconds: float
    """From the first file to go on from until the end, undisturbed."""
    chance: random.Random
    kills: int = 0
    rounds: int = 0
    same: int = 0
    """Runs that gave the expected bytes."""
    failed: list[str] = field(default_factory=list)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quantstudio", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def new_run(home: Path, flags: list[str]) -> subprocess.Popen[bytes]:
    return start("quantize", "starter", *flags, *COMMON, "--runs-folder", str(home))


def finished(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run that must succeed. Raises AssertionError with what it said."""
    said = process.communicate()[1].decode(errors="replace")
    assert process.returncode == 0, said[-2000:]


def checksums(home: Path) -> dict[str, str]:
    model = next(home.glob("*/model"))
    files = [path for path in sorted(model.iterdir()) if path.suffix in (".safetensors", ".json") and path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if "manifest" not in path.name}


def has_work(home: Path) -> bool:
    return any(home.glob("*/work/*"))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def undisturbed(home: Path, flags: list[str]) -> float:
    """Seconds from the first file that the run could go on from until its end."""
    process = new_run(home, flags)
    wait_until(lambda: has_work(home), process)
    started = time.monotonic()
    finished(process)
    return time.monotonic() - started


def kill(process: subprocess.Popen[bytes], home: Path, tally: Tally) -> bool:
    """At a random moment; whether the run had not ended by then."""
    if process.args[3] == "quantize":  # type: ignore[index]
        wait_until(lambda: has_work(home), process)
    else:
        before = _messages(home)
        wait_until(lambda: _messages(home) > before, process)
    try:
        process.wait(tally.chance.uniform(0.0, tally.seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        tally.kills += 1
        print(f"  kill {tally.kills} of run {tally.rounds}: {_where(home)}", flush=True)
        return True
    print(f"  run {tally.rounds} had ended", flush=True)
    tally.seconds *= EARLIER
    return False


def _messages(home: Path) -> int:
    return sum(path.stat().st_size for path in home.glob("*/events.jsonl"))


def _where(home: Path) -> str:
    """The phase that a killed run was in, and how far it had come."""
    phase, progress = "", ""
    for line in next(home.glob("*/events.jsonl")).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            message = json.loads(line)
        except ValueError:  # half a line
            continue
        if message.get("type") == "phase":
            phase, progress = message["title"], ""
        elif message.get("type") == "progress":
            progress = f", {message['done']:g} of {message['total']:g} {message['unit']}"
    return phase + progress


def one_round(home: Path, flags: list[str], tally: Tally) -> None:
    """Kill, resume, perhaps kill again, compare. Raises AssertionError when the run cannot be resumed."""
    tally.rounds += 1
    process = new_run(home, flags)
    killed = kill(process, home, tally)
    again = tally.chance.random() < AGAIN
    while killed:
        run = next(path.parent.name for path in home.glob("*/run.json"))
        process = start("resume", run, "--runs-folder", str(home))
        killed = again and kill(process, home, tally)
        again = False
    finished(process)
    assert checksums(home) == tally.expected, "other bytes than the undisturbed run's"
    tally.same += 1


def cancelled(home: Path, flags: list[str], seconds: float) -> float:
    process = new_run(home, flags)
    wait_until(lambda: has_work(home), process)
    time.sleep(0.4 * seconds)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode(errors="replace")
    if process.returncode != INTERRUPTED:
        raise SystemExit(f"the run ended with {process.returncode} before it was cancelled: {said[-500:]}")
    return time.monotonic() - started


def attempt(method: str, wanted: int, base: Path) -> Tally:
    flags = FLAGS[method]
    seconds = undisturbed(base / "peace", flags)
    print(f"{method}: {seconds:.0f} s of work in peace", flush=True)
    tally = Tally(checksums(base / "peace"), seconds, random.Random(0))  # noqa: S311 - moments, no secrets
    while tally.kills < wanted:
        home = base / f"round{tally.rounds}"
        home.mkdir()
        try:
            one_round(home, flags, tally)
        except AssertionError as error:
            tally.failed.append(f"run {tally.rounds}: {error}")
            print(f"  run {tally.rounds} FAILED: {error}", flush=True)
    stop = cancelled(base / "stopped", flags, seconds)
    print(
        f"{method}: {tally.kills} kills of {tally.rounds} runs, {tally.same} of {tally.rounds} gave the same bytes; "
        f"cancelled in {stop:.1f} s",
        flush=True,
    )
    return tally


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    failed: list[str] = []
    for method in sys.argv[2:] or list(FLAGS):
        with tempfile.TemporaryDirectory() as folder:
            failed += attempt(method, wanted, Path(folder)).failed
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
