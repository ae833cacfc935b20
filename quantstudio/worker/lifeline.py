"""No worker outlives its window, and no child outlives its worker.

The window closes the worker's stdin by dying, however it dies; the worker then kills its whole process group at once.
That needs a Python thread to run, which a library that holds the interpreter's lock for minutes prevents; so on Linux
the kernel is also asked to kill the worker with its parent. And because a worker that is killed can kill nobody, a
shell of 1 MB waits beside it for the end of a pipe, which comes with the worker's, and then kills the group.

On Windows only the first holds: children of a worker that crashes there must notice by themselves.
The worker also offers itself first when memory runs out: losing a job is better than losing the window.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"
_held: list[object] = []
"""The guard and the pipe's end that tells it of our death; kept for as long as we live."""


def tie_to_parent(parent: int) -> None:
    """Ask the system to end this process with its parent, whose id was `parent` at the start. Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        die()


def guard_children() -> None:
    """Start the shell that kills this process's group when this process is gone. POSIX, and only in our own group."""
    if sys.platform == "win32" or os.getpgrp() != os.getpid():
        return
    reading, writing = os.pipe()  # neither end is inherited by other children; the writing one is closed by our death
    guard = subprocess.Popen(
        ["/bin/sh", "-c", "read line; kill -KILL 0"],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(reading)
    _held.extend((writing, guard))


def offer_to_oom_killer() -> None:
    """Let the kernel take this process first when memory runs out. Linux only; refused in some containers."""
    try:
        if sys.platform == "linux":
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    except OSError as error:
        print(f"oom_score_adj stays as it is: {error}", file=sys.stderr)  # noqa: T201


def die() -> NoReturn:
    """End this process and its children at once, writing nothing."""
    kill_children()
    os._exit(1)


def kill_children() -> None:
    """Kill the process group if it is ours alone (then this process dies too); otherwise every descendant."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
