"""Whether a window can open here, and if not, what is missing, in words."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Literal

_DEBIAN_PACKAGES = (
    "libegl1 libgl1 libxkbcommon0 libdbus-1-3 libfontconfig1 libxcb-cursor0 libxkbcommon-x11-0 libxcb-icccm4 "
    "libxcb-keysyms1 libxcb-shape0"
)
_PROBE = "from PySide6.QtWidgets import QApplication; QApplication([])"


def window_problem(*, probe: Literal["quick", "full"]) -> str | None:
    """Why no window can open, or None.

    `quick` looks for a screen and for Qt's package; `full` also starts Qt in a process of its own, because Qt
    aborts the process that asks when it cannot reach the screen.
    """
    if not _has_screen():
        return "There is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set)."
    if importlib.util.find_spec("PySide6") is None:
        return "Qt is not installed. Try: pip install PySide6-Essentials"
    return _start_qt() if probe == "full" else None


def _has_screen() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))


def _start_qt() -> str | None:
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "Qt did not start within 30 seconds."
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "Error" in line or "could not" in line), "")
    advice = f"On Debian or Ubuntu: apt install {_DEBIAN_PACKAGES}" if sys.platform == "linux" else ""
    return f"Qt cannot open a window here: {reason or 'it ended without saying why.'} {advice}".strip()
