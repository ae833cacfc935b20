"""What the window has told this worker so far: one job, the wish to cancel, and what a chat is asked."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from quantstudio.core import protocol
from quantstudio.core.jobs import ChatRequest, Turn
from quantstudio.core.protocol import Message


class Session:
    """Commands go in by `take`, from the thread that reads them; the job's thread reads the rest.

    `sink` takes the job's messages; `cancel` is set by the command of that name; `requests` holds what a chat is
    asked, in order, and None at its end.
    """

    def __init__(self, sink: Callable[[Message], None]) -> None:
        self.sink = sink
        self.cancel = threading.Event()
        self.requests: queue.Queue[Turn | None] = queue.Queue()
        self._jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._turns: list[Turn] = []

    def wait_for_job(self) -> dict[str, Any] | None:
        """The payload of `start`; None when the job was cancelled before it came."""
        return self._jobs.get()

    def take(self, line: bytes) -> None:
        """Carry out one command. Broken and unknown ones are logged and otherwise ignored."""
        try:
            command = protocol.decode_command(line)
            match command.name:
                case "start":
                    self._jobs.put(command.payload)
                case "cancel":
                    self._cancel()
                case "generate":
                    self._ask(command.payload)
                case "stop":
                    self._stop()
                case unknown:
                    self._log(f"The command {unknown!r} is not known.")
        except (ValueError, RecursionError) as error:
            self._log(f"A command could not be read: {error}")

    def _cancel(self) -> None:
        self.cancel.set()
        self._stop()
        self._jobs.put(None)
        self.requests.put(None)

    def _ask(self, payload: dict[str, Any]) -> None:
        turn = Turn(ChatRequest.model_validate(payload))
        self._turns.append(turn)
        self.requests.put(turn)

    def _stop(self) -> None:
        """End every answer asked for so far, and none asked for later: a question right behind a stop is safe."""
        for turn in self._turns:
            turn.stop.set()
        self._turns.clear()

    def _log(self, text: str) -> None:
        self.sink(protocol.Log(t=time.time(), level="warning", text=text))
