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
from contextlib import contextmanager
from typing import IO

import psutil

from quantstudio.core import errors, protocol
from quantstudio.core.errors import OutOfMemory, QuantStudioError, WorkerLost
from quantstudio.core.humanize import human_bytes
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
    with _process(spec) as process:
        lines: queue.Queue[bytes | None] = queue.Queue()
        last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        threads = [
            threading.Thread(target=_pass_lines, args=(process.stdout, lines.put), daemon=True),
            threading.Thread(target=_pass_lines, args=(process.stderr, _keep(last_words)), daemon=True),
        ]
        for thread in threads:
            thread.start()
        peak = 0
        while True:
            reporter.check_cancel()
            peak = max(peak, _rss(process.pid))
            try:
                line = lines.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if line is None:
                break
            message = protocol.decode(line)
            if isinstance(message, protocol.Result):
                return Measured.model_validate(message.data)
            if message is not None:
                _pass_on(message, reporter, on_quality)
        threads[1].join()
        raise _lost(process.wait(), peak, last_words, reporter)


@contextmanager
def _process(spec: MeasureSpec) -> Iterator[subprocess.Popen[bytes]]:
    """The running process; however the block is left, it is dead and waited for afterwards."""
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(spec),
    )
    try:
        assert process.stdin is not None  # noqa: S101 - for the type checker; it is a pipe
        # Left open: the process ends when it closes, that is when this one dies.
        process.stdin.write(spec.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _environment(spec: MeasureSpec) -> dict[str, str]:
    threads = str(thread_count(spec.machine))
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _pass_lines(pipe: IO[bytes], put: Callable[[bytes | None], None]) -> None:
    for line in pipe:
        put(line)
    put(None)


def _keep(words: deque[str]) -> Callable[[bytes | None], None]:
    def keep(line: bytes | None) -> None:
        text = line.decode("utf-8", "replace").strip() if line else ""
        if text:
            words.append(text)

    return keep


def _pass_on(message: protocol.Message, reporter: Reporter, on_quality: Callable[[], None]) -> None:
    match message:
        case protocol.Error(kind=kind, what=what, why=why, hint=hint, field=field):
            raise _KINDS.get(kind, MeasureFailed)(what, why=why, hint=hint, field=field)
        case protocol.Phase(id=id):
            if id == QUALITY_PHASE:
                on_quality()
        case _:
            reporter.emit(message)


def _lost(status: int, peak: int, last_words: deque[str], reporter: Reporter) -> QuantStudioError:
    """Why a process ended without a terminal message, as well as its exit status can tell."""
    if last_words:
        reporter.log(without_secrets("\n".join(last_words)), level="debug")
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
