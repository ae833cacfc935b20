"""The machine and the libraries that a measurement belongs to. Loads no library to learn its version."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from quantstudio import __version__
from quantstudio.core.machine import read_machine
from quantstudio.core.recipe import MachineSection
from quantstudio.core.result import Environment

PACKAGES = ("torch", "transformers", "compressed-tensors", "safetensors", "numpy")


def read_environment(folder: Path) -> Environment:
    """Describe this machine; `folder` is any folder of the run. Holds no name of the computer or the person."""
    machine = read_machine(folder)
    return Environment(
        machine=platform.machine(),
        cpu=cpu_name(),
        cores=usable_cores(),
        memory=machine.memory,
        gpu=machine.gpu,
        os=platform.platform(terse=True),
        versions={"quantstudio": __version__, "python": platform.python_version(), **_versions()},
    )


def usable_cores() -> int:
    """Physical cores that this process may use: containers and affinity masks give it fewer than there are."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, cores)


def thread_count(machine: MachineSection) -> int:
    """Threads that a recipe asks for; 0 stands for every physical core."""
    return machine.threads or usable_cores()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def cpu_name() -> str:
    """The processor as its maker calls it."""
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [
            line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware"))
        ]
        return next(iter(names), "") or platform.machine()
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()
