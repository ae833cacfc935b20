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

PAINT = """
import sys
from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QApplication, QWidget
class FirstPaint(QObject):
    def eventFilter(self, watched, event):
        if event.type() == QEvent.Type.Paint:
            print("painted", flush=True)
            sys.stdin.read()
            import os
            os._exit(0)
        return False
spy = FirstPaint()
"""
BARE = (
    PAINT
    + """
app = QApplication([])
app.installEventFilter(spy)
window = QWidget()
window.show()
sys.exit(app.exec())
"""
)
WHOLE = (
    PAINT
    + """
from quantstudio.gui import app as entry
from quantstudio.gui.main_window import MainWindow
show = MainWindow.show
def spied(self):
    QApplication.instance().installEventFilter(spy)
    show(self)
MainWindow.show = spied
sys.exit(entry.run_app([]))
"""
)


def seconds_to_paint(program: str) -> float:
    """One start; wall time until the first paint was handled."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.communicate(b"")
    if line.strip() != b"painted":
        raise SystemExit("the window was never painted")
    return seconds


def main() -> None:
    """Print medians and ranges."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    times: dict[str, list[float]] = {"empty Qt window": [], "QuantStudio": []}
    for _ in range(rounds + 1):
        for name, program in zip(times, (BARE, WHOLE), strict=True):
            times[name].append(seconds_to_paint(program))
    for name, values in times.items():
        kept = sorted(values[1:])
        print(f"{name:16} {statistics.median(kept):.2f} s ({kept[0]:.2f} to {kept[-1]:.2f}, {len(kept)} starts)")


if __name__ == "__main__":
    main()
