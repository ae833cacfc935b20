"""A process with all its children, ended as one.

`QProcess.kill` ends one process and leaves its children running. A worker is therefore started as the leader of a new
session, which on POSIX makes it and all its descendants one group with one id. Windows has no such groups: there the
tree of processes is walked, which misses children of a parent that is gone already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from PySide6.QtCore import QProcess


def start_in_own_group(process: QProcess) -> None:
    """Let the process lead a session of its own; call before it is started."""
    if sys.platform != "win32":
        parameters = QProcess.UnixProcessParameters()
        parameters.flags = QProcess.UnixProcessFlag.CreateNewSession
        process.setUnixProcessParameters(parameters)


def kill_group(pid: int) -> None:
    """Kill the process that led the group, if it lives, and every other member. Nothing when all are gone."""
    if sys.platform == "win32":
        _kill_tree(pid)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(pid, signal.SIGKILL)


def _kill_tree(pid: int) -> None:
    import psutil

    try:
        leader = psutil.Process(pid)
        members = [*leader.children(recursive=True), leader]
    except psutil.NoSuchProcess:
        return
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
