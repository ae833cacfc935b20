"""Measures a model in a fresh process and waits for it: the parent's side of `python -m quantstudio.engine.measure`.

Fresh, because a process that has quantized or measured before holds memory that the next figure would include, and
because one that dies of too large a model should not take the job with it. Costs about 3 s of imports each time.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import psutil

from quantstudio.core import errors, protocol
from quantstudio.core.errors import OutOfMemory, QuantStudioError, WorkerLost
from quantstudio.core.humanize import human_bytes
from quantstudio.core.job_environment import JOB_ENVIRONMENT
from quantstudio.core.paths import PACKAGE
from quantstudio.engine.failures import without_secrets
from quantstudio.engine.measure.environment import thread_count
from quantstudio.engine.measure.spec import QUALITY_PHASE, Measured, MeasureSpec
from quantstudio.engine.reporter import Reporter

COMMAND = (sys.executable, "-P", "-m", "quantstudio.engine.measure")
_POLL_S = 0.1
_LAST_WORDS = 20
_KINDS = {cls.kind: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, QuantStudioError)}


class MeasureFailed(QuantStudioError):
    """The measuring process reports an error of no named class."""

    kind = "internal"


def measure_isolated(spec: MeasureSpec, reporter: Reporter, on_quality: Callable[[], None]) -> Measured:
    """Measure in a fresh process; its progress, notices, metrics and log go to `reporter`.

    `on_quality` is called when it turns to the quality. Raises what the process reports, `Cancelled` (the process is
    killed at once), OutOfMemory or WorkerLost (it was killed or died without a word).
    """
    with _running(spec) as child:
        peak = 0
        while True:
            reporter.check_cancel()
            peak = max(peak, _rss(child.process.pid))
            try:
                line = child.lines.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if line is None:
                break
            message = protocol.decode(line) if line.endswith(b"\n") else None  # it may be killed within a line
            if isinstance(message, protocol.Result):
                return Measured.model_validate(message.data)
            if message is not None:
                _pass_on(message, reporter, on_quality)
        raise _lost(child.process.wait(), peak, child.last_words(), reporter)


class _Child:
    """A measuring process with threads that read what it says, so that it never waits for a full pipe."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: queue.Queue[bytes | None] = queue.Queue()
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._keep_words)]
        for thread in self._threads:
            thread.start()

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


@contextmanager
def _running(spec: MeasureSpec) -> Iterator[_Child]:
    """A running process that has its spec; however the block is left, it is dead afterwards."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(COMMAND, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(spec))
    child = _Child(process)
    try:
        if process.stdin is not None:
            # Left open: the process ends when it closes, that is when this one dies. When it cannot even read this,
            # the loop that waits for its messages finds out why.
            with suppress(BrokenPipeError):
                process.stdin.write(spec.model_dump_json().encode() + b"\n")
        yield child
    finally:
        child.end()


def _environment(spec: MeasureSpec) -> dict[str, str]:
    threads = str(thread_count(spec.machine))
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return (
        os.environ
        | JOB_ENVIRONMENT
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
    )


def _pass_on(message: protocol.Message, reporter: Reporter, on_quality: Callable[[], None]) -> None:
    match message:
        case protocol.Error(kind=kind, what=what, why=why, hint=hint, field=field):
            raise _KINDS.get(kind, MeasureFailed)(what, why=why, hint=hint, field=field)
        case protocol.Phase(id=id):
            if id == QUALITY_PHASE:
                on_quality()
        case protocol.Memory(rss=rss):
            reporter.emit(replace(message, rss=rss + _rss(os.getpid())))
        case _:
            reporter.emit(message)


def _lost(status: int, peak: int, last_words: str, reporter: Reporter) -> QuantStudioError:
    """Why a process ended without a terminal message, as well as its exit status can tell."""
    if last_words:
        reporter.log(without_secrets(last_words), level="debug")
    if sys.platform != "win32" and status == -signal.SIGKILL:
        free = psutil.virtual_memory().available
        return OutOfMemory(
            "The measuring process was ended by the system, most likely because memory ran out.",
            why=f"It last held {human_bytes(peak)}; {human_bytes(free)} are free now.",
            hint="Close other programs, use a shorter window or prompt, or take a smaller model.",
        )
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return WorkerLost(
        "The measuring process ended without saying how.",
        why=f"It ended with {how}, holding {human_bytes(peak)} of memory.",
        hint="Its last words are in the log. Try again; if it happens again, please report it.",
    )


def _rss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended
