"""Kill a calibrating and a training run at random moments, resume each, and compare with a run left in peace.

    python tests/benchmarks/kills.py [ROUNDS] [METHOD ...]

Each round starts the real command in a session of its own, kills the session with SIGKILL after a random part of the
time that an undisturbed run takes, resumes it with `quantstudio resume`, and compares every file of the model. Two of
three rounds are killed a second time while they resume. At the end a run is cancelled and the seconds until its
process is gone are printed.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = {
    "gptq": ["--method.kind", "gptq", "--data.calibration_sequences", "32", "--data.sequence_length", "256"],
    "qat": [
        *("--method.kind", "qat", "--method.steps", "12", "--method.batch_sequences", "4"),
        *("--method.evaluations", "6", "--data.sequence_length", "128", "--data.held_out_sequences", "8"),
    ],
}
COMMON = ["--measure.enabled", "no", "--machine.device", "cpu"]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quantstudio", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def checksums(home: Path) -> dict[str, str]:
    model = next(home.glob("*/model"))
    files = [path for path in sorted(model.iterdir()) if path.suffix in (".safetensors", ".json") and path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if "manifest" not in path.name}


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it was still alive, and is not any more."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def undisturbed(home: Path, flags: list[str]) -> float:
    started = time.perf_counter()
    if start("quantize", "starter", *flags, *COMMON, "--runs-folder", str(home)).wait() != 0:
        raise SystemExit("the undisturbed run failed")
    return time.perf_counter() - started


def killed_round(home: Path, flags: list[str], seconds: float, chance: random.Random) -> tuple[int, bool]:
    """How often it was killed, and whether it had to begin anew because nothing was finished yet."""
    process = start("quantize", "starter", *flags, *COMMON, "--runs-folder", str(home))
    kills = int(kill_after(process, chance.uniform(0.3, 1.0) * seconds))
    again = chance.random() < 2 / 3
    anew = False
    while True:
        run = next((path.parent.name for path in home.glob("*/run.json")), "")
        if list(home.glob("*/result.json")):
            return kills, anew
        process = start("resume", run, "--runs-folder", str(home))
        if again:
            kills += kill_after(process, chance.uniform(0.3, 1.0) * seconds)
            again = False
        elif process.wait() != 0:
            anew = True
            for path in home.iterdir():
                path.rename(home.parent / f"{home.name}-{path.name}-given-up")
            undisturbed(home, flags)


def cancelled(home: Path, flags: list[str], seconds: float) -> float:
    process = start("quantize", "starter", *flags, *COMMON, "--runs-folder", str(home))
    time.sleep(0.7 * seconds)
    started = time.perf_counter()
    process.send_signal(signal.SIGINT)
    process.wait(60)
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    chance = random.Random(0)  # noqa: S311 - moments, no secrets
    for method in sys.argv[2:] or list(FLAGS):
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder)
            seconds = undisturbed(base / "peace", FLAGS[method])
            expected = checksums(base / "peace")
            same = kills = anew = 0
            for number in range(rounds):
                home = base / f"round{number}"
                home.mkdir()
                count, again = killed_round(home, FLAGS[method], seconds, chance)
                kills, anew = kills + count, anew + again
                same += checksums(home) == expected
            stop = cancelled(base / "stopped", FLAGS[method], seconds)
            print(f"{method}: {seconds:.0f} s in peace; {kills} kills in {rounds} rounds, {anew} began anew, ", end="")
            print(f"{same} of {rounds} gave the same bytes; cancelled in {stop:.1f} s", flush=True)


if __name__ == "__main__":
    main()
