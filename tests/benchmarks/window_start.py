"""Seconds from the start of Python to the window's first paint, beside a bare start of Qt; interleaved.

    python tests/benchmarks/window_start.py [ROUNDS]

Offscreen where there is no display. The first start of each compiles Python files and is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "firstpaint.py"
KINDS: dict[str, tuple[str, ...]] = {"empty Qt window": ("bare",), "QuantStudio": ()}


def seconds_to_paint(*arguments: str) -> float:
    """One start; wall time until the first paint was handled."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, SCRIPT, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if line.strip() != b"painted":
        raise SystemExit("the window was never painted")
    return seconds


def main() -> None:
    """Print medians and ranges."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(rounds + 1):
        for name, arguments in KINDS.items():
            times[name].append(seconds_to_paint(*arguments))
    for name, values in times.items():
        kept = sorted(values[1:])
        print(f"{name:16} {statistics.median(kept):.2f} s ({kept[0]:.2f} to {kept[-1]:.2f}, {len(kept)} starts)")


if __name__ == "__main__":
    main()
