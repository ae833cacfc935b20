"""What a worker has to say, kept until the window has read it, without ever making the job wait.

A window that reads slowly fills the pipe; a job that wrote to the pipe itself would then stand still. So the job only
leaves messages here, and one thread writes them in batches. What waits is bounded by three classes:

    state   phases, samples, notices, artifacts, answers, text, the end: never dropped, always in order
    gauge   progress, transfer, memory, heartbeat: only the latest of each waits
    stream  metrics and log lines: at most `MAX_STREAM` wait; the oldest are dropped, and their number is told

Nothing is lost by dropping: the worker writes metrics and log into the run's folder itself. Text of one answer is
joined into one message while it waits, so it needs neither a bound nor a message for each token.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable

from quantstudio.core import protocol
from quantstudio.core.protocol import Message

FLUSH_S = 0.05
MAX_STREAM = 5000
GAUGES = (protocol.Progress, protocol.Transfer, protocol.Memory, protocol.Heartbeat)
STREAMS = (protocol.Metric, protocol.Log)
URGENT = (protocol.Answer, *protocol.TERMINAL)
"""What somebody waits for: not kept for the next batch."""


class Outbox:
    """A sink for messages, callable from any thread. The first terminal message closes it.

    `write` gets whole lines and may block; `broken` is called when it raises OSError, which means that nobody reads.
    """

    def __init__(self, write: Callable[[bytes], None], broken: Callable[[], None]) -> None:
        self._write = write
        self._broken = broken
        self._pending: dict[int | str, Message] = {}
        self._streams: deque[int] = deque()
        self._next_key = 0
        self._dropped = 0
        self._ready = threading.Condition()
        self._ended = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def __call__(self, message: Message) -> None:
        """Leave a message. Never waits for the window; ignored after a terminal message."""
        with self._ready:
            if self._ended.is_set():
                return
            if isinstance(message, GAUGES):
                # Taken out and put in again, so that it stands after what has been said since.
                self._pending.pop(message.type, None)
                self._pending[message.type] = message
            elif not self._join(message):
                self._append(message)
            if isinstance(message, protocol.TERMINAL):
                self._ended.set()
            if isinstance(message, URGENT):
                self._hurry.set()
            self._ready.notify()

    def finish(self, terminal: Message) -> None:
        """Leave the terminal message, unless there was one, and wait until everything is written."""
        self(terminal)
        self._thread.join()

    def _append(self, message: Message) -> None:
        key = self._next_key
        self._next_key += 1
        self._pending[key] = message
        if isinstance(message, STREAMS):
            self._streams.append(key)
            if len(self._streams) > MAX_STREAM:
                del self._pending[self._streams.popleft()]
                self._dropped += 1

    def _join(self, message: Message) -> bool:
        """Join text to text of the same answer that waits last."""
        if not isinstance(message, protocol.Tokens) or not self._pending:
            return False
        key = next(reversed(self._pending))
        last = self._pending[key]
        if not isinstance(last, protocol.Tokens) or last.turn != message.turn:
            return False
        self._pending[key] = dataclasses.replace(message, text=last.text + message.text)
        return True

    def _run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._pending)
                batch = self._take()
            try:
                self._write(b"".join(_line(message) for message in batch))
            except OSError:
                self._broken()
                return
            if isinstance(batch[-1], protocol.TERMINAL):
                return
            self._hurry.wait(FLUSH_S)

    def _take(self) -> list[Message]:
        batch = list(self._pending.values())
        if self._dropped:
            text = f"{self._dropped:,} log lines and figures were left out here; the run's folder has them all."
            batch.insert(0, protocol.Log(t=time.time(), level="warning", text=text))
        self._pending.clear()
        self._streams.clear()
        self._dropped = 0
        self._hurry.clear()
        return batch


def _line(message: Message) -> bytes:
    """The message as a line; one that cannot be a line becomes one that says so."""
    try:
        line = protocol.encode(message)
    except (TypeError, ValueError) as error:
        return _instead(message, str(error))
    if len(line) > protocol.MAX_LINE_BYTES:
        return _instead(message, f"it has {len(line):,} bytes")
    return line


def _instead(message: Message, why: str) -> bytes:
    if isinstance(message, protocol.TERMINAL):
        what = "The job ended, but what it found could not be sent."
        return protocol.encode(
            protocol.Error(t=message.t, kind="internal", what=what, why=f"The {message.type}: {why}.")
        )
    text = f"A message of the kind {message.type} could not be sent: {why}."
    return protocol.encode(protocol.Log(t=message.t, level="warning", text=text))
