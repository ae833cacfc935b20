"""Measures a model in a fresh process and waits for it: the parent's side of `python -m quantstudio.engine.measure`.

Fresh, because a process that has quantized or measured before holds memory that the next figure would include, and
because one that dies of too large a model should not take the job with it. Costs about 3 s of imports each time.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil

from quantstudio.core import protocol
from quantstudio.core.errors import OutOfMemory, QuantStudioError, WorkerLost
from quantstudio.core.humanize import human_bytes
from quantstudio.engine.child import Child, as_error, child_environment
from quantstudio.engine.failures import without_secrets
from quantstudio.engine.measure.environment import thread_count
from quantstudio.engine.measure.spec import QUALITY_PHASE, Measured, MeasureSpec
from quantstudio.engine.reporter import Reporter

COMMAND = (sys.executable, "-P", "-m", "quantstudio.engine.measure")
_POLL_S = 0.1


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


@contextmanager
def _running(spec: MeasureSpec) -> Iterator[Child]:
    """A running process that has its spec; however the block is left, it is dead afterwards."""
    child = Child(COMMAND, _environment(spec), spec.model_dump_json().encode())
    try:
        yield child
    finally:
        child.end()


def _environment(spec: MeasureSpec) -> dict[str, str]:
    threads = str(thread_count(spec.machine))
    return child_environment() | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def _pass_on(message: protocol.Message, reporter: Reporter, on_quality: Callable[[], None]) -> None:
    match message:
        case protocol.Error():
            raise as_error(message)
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
