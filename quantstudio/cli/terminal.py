"""A job's messages as lines and progress bars in a terminal."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Never

from tqdm import tqdm

from quantstudio.core import protocol
from quantstudio.core.humanize import human_seconds
from quantstudio.core.protocol import Message

_BAR = "  {desc:<28.28} {percentage:3.0f}% |{bar:24}| {unit}"  # not {postfix}: tqdm puts a comma before it


class Terminal:
    """A sink for messages: one progress bar for each phase, notices and errors in full, the rest left out."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self._done = 0.0
        self._peak = 0
        self._lock = threading.Lock()  # the memory sampler speaks from a thread of its own

    def __call__(self, message: Message) -> None:
        with self._lock:
            self._show(message)

    def _show(self, message: Message) -> None:
        match message:
            case protocol.Phase():
                self._open(message)
            case protocol.Progress():
                self._advance(message)
            case protocol.Memory():
                self._peak = max(self._peak, message.rss)
            case protocol.Notice():
                tqdm.write(f"  {'! ' if message.level == 'warning' else ''}{message.text}", file=sys.stderr)
            case protocol.Result():
                self._close()
            case protocol.Error() | protocol.CancelledMessage():
                self._leave()
            case _:
                pass

    def _open(self, phase: protocol.Phase) -> None:
        self._close()
        self._done = 0.0
        if not sys.stderr.isatty():  # a log: a bar would leave a line for each of its states
            print(f"  {phase.title}", file=sys.stderr, flush=True)
            return
        self._bar = tqdm(total=1.0, desc=phase.title, bar_format=_BAR, unit="", file=sys.stderr, leave=True)

    def _advance(self, progress: protocol.Progress) -> None:
        if self._bar is None or not progress.total:
            return
        left = "" if progress.eta_s is None else f"{human_seconds(round(progress.eta_s))} left"
        memory = f"{self._peak / 1e6:,.0f} MB" if self._peak else ""
        self._bar.unit = "  ".join(part for part in (left, memory) if part)
        self._fill(self._bar, min(1.0, progress.done / progress.total))

    def _fill(self, bar: tqdm[Never], share: float) -> None:
        bar.update(share - self._done)
        self._done = share

    def _close(self) -> None:
        if self._bar is not None:
            self._fill(self._bar, 1.0)
        self._leave()

    def _leave(self) -> None:
        """Let the bar stand where it is: its phase was not finished."""
        if self._bar is not None:
            self._bar.unit = ""
            self._bar.close()
            self._bar = None


def print_error(error: protocol.Error) -> None:
    """What happened, why, and what to try, each on a line of its own."""
    print(f"\nError: {error.what}", file=sys.stderr)
    for line in (error.why, error.hint):
        if line:
            print(f"  {line}", file=sys.stderr)


def quiet_libraries() -> None:
    """Keep out what libraries say at import of missing compiled parts and changing names: nobody can act on it."""
    for library in ("torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)


@contextmanager
def interrupt_cancels(cancel: threading.Event) -> Iterator[None]:
    """Ctrl+C asks the job to stop and clean up; a second Ctrl+C interrupts as usual."""
    previous: Callable[[int, FrameType | None], object] | int | None = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.write("Stopping; once more to stop at once.", file=sys.stderr)
        cancel.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
