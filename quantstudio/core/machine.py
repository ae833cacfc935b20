"""What this machine has: cores, memory, disk, GPU. Without torch; the GPU is asked through its own tool."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from quantstudio.core.engines import onnx_runtime_is_installed
from quantstudio.core.errors import DiskProblem

GPU_QUERY_SECONDS = 3.0
_TOOL = "nvidia-smi"
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use; elsewhere there is no such folder."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes are bytes; `available_memory` and `free_disk` are of the moment of asking."""

    cores: int
    memory: int
    available_memory: int
    free_disk: int
    """Free bytes on the disk that holds the folder asked about."""
    gpu: str = ""
    gpu_memory: int = 0
    gpus: int = 0
    """How many GPUs there are; `gpu` and `gpu_memory` are those of the first."""
    onnx_runtime: bool = False
    """Whether ONNX Runtime is installed."""


def read_machine(folder: Path) -> Machine:
    """Look at this machine, and at the disk on which `folder` lies or will be made."""
    system = psutil.virtual_memory()
    memory, available = within_container(system.total, system.available)
    gpu, gpu_memory, gpus = _gpus()
    return Machine(
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        memory=memory,
        available_memory=available,
        free_disk=free_disk(folder),
        gpu=gpu,
        gpu_memory=gpu_memory,
        gpus=gpus,
        onnx_runtime=onnx_runtime_is_installed(),
    )


def within_container(memory: int, available: int) -> tuple[int, int]:
    """Total and available bytes under the limit of a container, which the system's own figures do not know."""
    try:
        limit = int((CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or "max": no limit
        return memory, available
    return (limit, min(available, max(0, limit - used))) if limit < memory else (memory, available)


def free_disk(folder: Path) -> int:
    """Free bytes for this user on the disk of `folder`, which need not exist yet. Raises DiskProblem."""
    folder = Path(folder).absolute()
    here = next((place for place in (folder, *folder.parents) if place.exists()), Path(folder.anchor))
    try:
        return shutil.disk_usage(here).free
    except OSError as error:
        raise DiskProblem(
            f"The disk of {folder} cannot be looked at.",
            why=f"{error.strerror}.",
            hint="Choose another output folder.",
        ) from error


def may_have_gpu() -> bool:
    """Whether NVIDIA's tool is installed, which says so without waiting for it."""
    return shutil.which(_TOOL) is not None


@cache
def _gpus() -> tuple[str, int, int]:
    """Name and memory of the first NVIDIA GPU, and how many there are; ("", 0, 0) without one.

    Asked once: hardware does not change.
    """
    tool = shutil.which(_TOOL)
    if tool is None:
        return "", 0, 0
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GPU_QUERY_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
        lines = done.stdout.strip().splitlines()
        name, _, mebibytes = lines[0].rpartition(",")
        return name.strip(), int(mebibytes) << 20, len(lines)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return "", 0, 0  # a driver that does not answer is as good as none here; the engine asks torch itself
