"""How a worker is started: its command line, its environment, and the file that takes what it writes to stderr."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PySide6.QtCore import QProcessEnvironment

from quantstudio.core.job_environment import job_environment
from quantstudio.core.jobs import AnyJob, RunJob
from quantstudio.core.paths import PACKAGE
from quantstudio.core.run_store import LOG

_TAIL_BYTES = 4096


def worker_command() -> list[str]:
    """The command that starts a worker. `-P`: a file torch.py in the current folder must not be taken for torch."""
    return [sys.executable, "-P", "-m", "quantstudio.worker"]


def worker_environment() -> QProcessEnvironment:
    """This process's environment with what a worker needs. In a checkout it finds the package beside the window's."""
    environment = QProcessEnvironment.systemEnvironment()
    for name, value in job_environment(os.environ).items():
        environment.insert(name, value)
    home = PACKAGE.parent
    if (home / "pyproject.toml").is_file():
        paths = [str(home), environment.value("PYTHONPATH")]
        environment.insert("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    return environment


@dataclass(frozen=True, slots=True)
class LogFile:
    """Takes the worker's stderr: the log of its run, or a temporary file that goes with the process.

    A file and not a pipe: it is complete even when the window dies, and nobody must keep reading it.
    """

    path: Path
    temporary: bool

    @classmethod
    def for_job(cls, job: AnyJob) -> Self:
        """The log of the job's run folder if that exists and can be written, else a temporary file."""
        if isinstance(job, RunJob) and os.access(job.run_folder, os.W_OK):
            return cls(Path(job.run_folder) / LOG, temporary=False)
        handle, name = tempfile.mkstemp(prefix="quantstudio-", suffix=".log")
        os.close(handle)
        return cls(Path(name), temporary=True)

    def tail(self) -> str:
        """The end of the log; empty when it cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Remove a temporary file."""
        if self.temporary:
            self.path.unlink(missing_ok=True)
