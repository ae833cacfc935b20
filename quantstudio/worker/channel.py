"""The worker's private line to its window, out of reach of every library.

Whatever a library prints (Python's print, C's printf, a child process) goes to file descriptor 1, and whatever asks a
question ("Do you wish to run the custom code? [y/N]") reads descriptor 0. So the two descriptors of the protocol are
duplicated first of all, and 0 and 1 are pointed elsewhere: 0 reads nothing, 1 writes to the log. The duplicates are
not inherited, so a child process can neither speak for the worker nor keep its pipe open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper

from quantstudio.core.protocol import MAX_LINE_BYTES


@dataclass(frozen=True, slots=True)
class Channel:
    """Two file descriptors: commands are read from one, messages written to the other."""

    commands: int
    messages: int

    def write(self, data: bytes) -> None:
        """Write all of `data`, waiting while the pipe is full. Raises OSError when nobody reads any more."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.messages, view) :]

    def lines(self) -> Iterator[bytes]:
        """Command lines until the other end closes. A line beyond the protocol's limit is passed over."""
        with os.fdopen(self.commands, "rb", closefd=False) as reader:
            whole = True
            while line := reader.readline(MAX_LINE_BYTES):
                ended = line.endswith(b"\n")
                if whole and ended:
                    yield line
                whole = ended


def take_stdio() -> Channel:
    """Take descriptors 0 and 1 for the protocol; from then on 0 is empty and 1 is the log (descriptor 2)."""
    sys.stdout.flush()
    channel = Channel(commands=os.dup(0), messages=os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Whatever a library prints must not raise for want of a character in the log's encoding.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    return channel
