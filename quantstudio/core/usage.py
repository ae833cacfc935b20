"""When a model was last used by a job here.

The system's own times of reading do not say it: listing models reads their headers, and many systems
keep no such times.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from quantstudio.core.disk import write_atomically
from quantstudio.core.paths import data_home


def mark_used(folder: Path) -> None:
    """Remember that a job loads this model now. Raises OSError."""
    mark = _mark(folder)
    mark.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, f"{time.time():.0f}\n")


def last_used(folder: Path) -> float:
    """When that was, in seconds since the epoch; 0 for never."""
    try:
        return float(_mark(folder).read_text(encoding="ascii")[:20])
    except (OSError, ValueError):
        return 0.0


def _mark(folder: Path) -> Path:
    """A name made of the model's place, which may be long and hold anything."""
    return data_home() / "used" / hashlib.sha256(str(folder.absolute()).encode("utf-8", "replace")).hexdigest()[:32]
