"""What a process of ours and the one that started it have in common: `python -m …` that speaks protocol messages.

The child gets what it is to do as one line on stdin, and answers on stdout. It stays in its parent's process group, so
whoever kills that group kills it too; and when its stdin closes, its parent is gone, and it ends at once.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import BinaryIO

from quantstudio.core import errors, protocol
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.job_environment import JOB_ENVIRONMENT
from quantstudio.core.paths import PACKAGE

_LAST_WORDS = 20
_KINDS = {cls.kind: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, QuantStudioError)}


class ChildFailed(QuantStudioError):
    """A child reports an error of no named class."""

    kind = "internal"


def as_error(message: protocol.Error) -> QuantStudioError:
    """The error that a child has reported."""
    kind = _KINDS.get(message.kind, ChildFailed)
    return kind(message.what, why=message.why, hint=message.hint, field=message.field)


def child_environment() -> dict[str, str]:
    """This process's environment with what a job needs, and with this package where it will be found."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return os.environ | JOB_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}


class Child:
    """A running child, with threads that read what it says, so that it never waits for a full pipe.

    `lines` holds what it says on stdout, line by line, and None at the end.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], task: bytes) -> None:
        """Start `command` and hand it `task`, one line. Raises OSError."""
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        self.lines: queue.Queue[bytes | None] = queue.Queue()
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._keep_words)]
        for thread in self._threads:
            thread.start()
        if self.process.stdin is not None:
            # Left open: the child ends when it closes, that is when this process dies. When it cannot even read this,
            # whoever waits for its messages finds out why.
            with suppress(BrokenPipeError):
                self.process.stdin.write(task + b"\n")

    def last_words(self) -> str:
        """The end of what it wrote to its log. Waits for the log's end."""
        self._threads[1].join()
        return "\n".join(self._words)

    def end(self) -> None:
        """Kill it if it lives, and wait until nothing of it is left."""
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self.lines.put(line)
        self.lines.put(None)

    def _keep_words(self) -> None:
        for line in self.process.stderr or ():
            if text := line.decode("utf-8", "replace").strip():
                self._words.append(text)


def take_stdio() -> tuple[BinaryIO, int]:
    """In a child: private copies of descriptors 0 and 1, not inherited; then 0 reads nothing and 1 is the log."""
    commands, messages = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, messages


def send(messages: int, message: protocol.Message) -> None:
    """In a child: say this to the parent. Raises OSError when it is gone."""
    data = memoryview(protocol.encode(message))
    while data:
        data = data[os.write(messages, data) :]


def end_with_parent(commands: BinaryIO) -> None:
    """In a child: end this process, writing nothing, when its parent is gone. Returns at once."""

    def wait() -> None:
        while commands.read(1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
