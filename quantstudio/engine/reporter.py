"""How the engine tells its caller what happens, without knowing who listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled

Sink = Callable[[protocol.Message], None]


class Reporter:
    """Stamps messages with the time and hands them to a sink; carries the request to cancel the other way.

    The engine never sends terminal messages: a function that returns, raises, or raises `Cancelled` is one.
    """

    def __init__(self, sink: Sink, cancel: threading.Event | None = None) -> None:
        self._sink = sink
        self.cancel = cancel or threading.Event()
        self._phase_started = time.monotonic()
        self.peak_memory = 0
        """The most memory that the job was told to have held so far, in bytes; 0 when nobody samples it."""

    def watch_memory(self, message: protocol.Message) -> None:
        """Pass on what a sampler of memory says, and remember the peak."""
        if isinstance(message, protocol.Memory):
            self.peak_memory = max(self.peak_memory, message.rss)
        self._sink(message)

    def emit(self, message: protocol.Message) -> None:
        """Send any message as it is."""
        self._sink(message)

    def check_cancel(self) -> None:
        """Raise `Cancelled` when the person asked to stop. Call between layers and batches."""
        if self.cancel.is_set():
            raise Cancelled

    def phase(self, id: str, title: str, index: int, total: int) -> None:
        self.check_cancel()
        self._phase_started = time.monotonic()
        self._sink(protocol.Phase(t=time.time(), id=id, title=title, index=index, total=total))

    def progress(self, done: float, total: float, unit: str = "", detail: str = "") -> None:
        """Progress of the phase; the time left is extrapolated from its own pace. Raises `Cancelled`."""
        self.check_cancel()
        elapsed = time.monotonic() - self._phase_started
        eta = elapsed / done * (total - done) if done > 0 and elapsed > 0.5 else None
        self._sink(protocol.Progress(t=time.time(), done=done, total=total, unit=unit, detail=detail, eta_s=eta))

    def metric(self, name: str, value: float, step: int = 0, unit: str = "") -> None:
        self._sink(protocol.Metric(t=time.time(), name=name, value=value, step=step, unit=unit))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """What the model writes after `prompt` at this step of its training; `text` without the prompt."""
        self._sink(protocol.Sample(t=time.time(), step=step, prompt=prompt, text=text))

    def notice(self, text: str, level: str = "info") -> None:
        self._sink(protocol.Notice(t=time.time(), level=level, text=text))

    def artifact(self, kind: str, path: str) -> None:
        self._sink(protocol.Artifact(t=time.time(), kind=kind, path=path))

    def log(self, text: str, level: str = "info") -> None:
        self._sink(protocol.Log(t=time.time(), level=level, text=text))


def silent() -> Reporter:
    """A reporter for notebooks and tests that do not listen."""
    return Reporter(lambda message: None)
