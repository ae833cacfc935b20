"""How a worker's process ended, in words.

Used only when the worker did not say it itself: a worker that sends a terminal message has the last word, whatever
its exit status.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass

from quantstudio.core.errors import WorkerLost
from quantstudio.core.humanize import human_bytes
from quantstudio.core.protocol import Error, Memory

_RETRY = "Run it again; nothing half-written is kept."
_REPORT = "Run it again. If it happens again, please report it with the log."
_MEMORY = (
    "Close other programs, choose a smaller model, or measure with a shorter window and prompt. Then run it again."
)
_WINDOWS_CODES = {
    0xC0000005: "it read memory that is not its own (access violation)",
    0xC000001D: "this processor lacks an instruction that a library uses",
    0xC00000FD: "its stack overflowed",
    0xC0000135: "a library (DLL) that it needs was not found",
    0xC0000142: "a library (DLL) could not be started",
    0xC0000409: "a library stopped it after a fatal error",
    0x40010004: "the system was shutting down",
}
_SIGNAL_WORDS = {
    "SIGSEGV": "a library read memory that is not its own",
    "SIGBUS": "a file it had mapped into memory became shorter, or the disk failed",
    "SIGILL": "this processor lacks an instruction that a library uses",
    "SIGABRT": "a library gave up after a fatal error",
    "SIGFPE": "a library divided by zero",
    "SIGTERM": "another program asked it to end",
    "SIGHUP": "its session was closed",
    "SIGINT": "it was interrupted",
    "SIGXCPU": "it used more processor time than it is allowed",
    "SIGXFSZ": "it wrote a larger file than it is allowed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOutcome:
    """The exit of a process and what was last known of it.

    `code` is the exit status, or the signal's number (on Windows the exception's code) when `crashed`.
    `log_tail` is the end of what it wrote to stderr.
    """

    code: int
    crashed: bool
    memory: Memory | None = None
    log_tail: str = ""
    platform: str = sys.platform

    def error(self) -> Error:
        """The terminal message in place of the one that the worker did not send."""
        why, hint = self._why(), self._hint()
        what = (
            "The process that did the work was lost." if self.crashed else "The process that did the work ended early."
        )
        return Error(t=time.time(), kind=WorkerLost.kind, what=what, why=why, hint=hint)

    @property
    def _killed(self) -> bool:
        return self.crashed and self.platform != "win32" and self.code == 9

    @property
    def _no_memory(self) -> bool:
        """What C++ says before it aborts, and what Windows says by its code."""
        windows = self.platform == "win32" and self.code & 0xFFFFFFFF == 0xC0000017
        return self.crashed and (windows or "bad_alloc" in self.log_tail)

    def _why(self) -> str:
        if self._killed:
            return self._killed_words()
        if self._no_memory:
            return "There was not enough memory."
        if self.crashed:
            return f"It crashed: {self._crash_words()}."
        if self.code == 0:
            return f"It ended without saying how.{self._last_words()}"
        return f"It ended with status {self.code}.{self._last_words()}"

    def _hint(self) -> str:
        if self._no_memory or (self._killed and self.platform == "linux"):
            return _MEMORY
        return _REPORT if self.crashed or self.code else _RETRY

    def _killed_words(self) -> str:
        if self.platform != "linux":
            return "Something killed it (signal 9)."
        memory = self.memory
        if memory is None:
            return "The system killed it (signal 9), which usually means that memory ran out."
        free = f", with {human_bytes(memory.available)} free on the machine" if memory.available else ""
        return (
            "The system killed it (signal 9), which usually means that memory ran out. "
            f"It last used {human_bytes(memory.rss)}{free}."
        )

    def _crash_words(self) -> str:
        if self.platform == "win32":
            code = self.code & 0xFFFFFFFF
            return _WINDOWS_CODES.get(code, f"the system ended it with code 0x{code:08X}")
        try:
            name = signal.Signals(self.code).name
        except ValueError:
            return f"signal {self.code}"
        return f"{_SIGNAL_WORDS[name]} (signal {self.code}, {name})" if name in _SIGNAL_WORDS else f"signal {name}"

    def _last_words(self) -> str:
        """The last line that it wrote, where a Python error names itself."""
        lines = [line.strip() for line in self.log_tail.splitlines() if line.strip()]
        return f" Its last words: {lines[-1][:300]}" if lines else ""
