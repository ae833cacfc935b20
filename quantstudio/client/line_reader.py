"""Bytes from a pipe become messages, however they are cut.

Tolerant of everything: a line that is no message is counted, never raised. A line beyond the
protocol's limit is passed over without being kept, so a worker gone mad cannot fill the window's memory.
"""

from __future__ import annotations

from quantstudio.core.protocol import MAX_LINE_BYTES, Message, decode


class LineReader:
    """Feed it bytes; it returns the messages that are complete."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False
        self.broken = 0
        """Lines so far that were no messages."""

    def feed(self, data: bytes) -> list[Message]:
        """Take in what was read; messages in order."""
        self._rest += data
        if b"\n" not in data:
            self._limit_rest()
            return []
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        messages: list[Message] = []
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif len(line) > self._limit:
                self.broken += 1
            elif line.strip():
                self._take(line, messages)
        self._limit_rest()
        return messages

    def _limit_rest(self) -> None:
        if len(self._rest) > self._limit:
            self._rest.clear()
            self.broken += not self._skipping
            self._skipping = True

    def _take(self, line: bytearray, messages: list[Message]) -> None:
        try:
            message = decode(bytes(line))
        except (ValueError, TypeError, RecursionError):
            self.broken += 1
            return
        if message is not None:
            messages.append(message)
