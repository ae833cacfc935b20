"""The C++ beside this file, compiled by the machine's own compiler: once, for the processor that it has.

What is built is kept in the person's cache by what it was made from, so the next start only loads it. Without a
compiler, or on another system or processor, everything runs on torch's operators. torch brings OpenMP along; this
library is not linked with another one, so both share one team of threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch  # noqa: F401  # brings OpenMP

from quantstudio.core.paths import native_cache
from quantstudio.engine.reporter import Reporter

_SOURCES = ("vectors.h", "products.h", "prompts.h", "token.cpp")
_COMPILE = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-w")
_PROCESSOR = ("-march=native",)
_PATIENCE_S = 120
_NEEDED = {"avx2", "fma"}
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Native:
    """The library, or why there is none (in a person's words)."""

    library: ctypes.CDLL | None
    why_not: str = ""

    def require(self) -> ctypes.CDLL:
        """The library, for those who found that it is there. Raises RuntimeError."""
        if self.library is None:
            raise RuntimeError(self.why_not)
        return self.library


@cache
def native() -> Native:
    """Load the library, after building it where that was not done yet: some seconds, once."""
    if why := _unsuitable():
        return Native(None, why)
    path = _place()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours_alone(path.parent):
            return Native(None, f"others may write to {path.parent}, and what lies there is run.")
        if not path.exists():
            _build(path)
        return Native(_declare(ctypes.CDLL(str(path))))
    except subprocess.CalledProcessError as error:
        return Native(None, f"the C++ compiler failed: {_first_error(error.stderr)}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Native(None, f"they cannot be built: {error}")


def build_with_words(reporter: Reporter) -> None:
    """Have the library ready, telling the person what takes time, and the log why there is none."""
    if not _unsuitable() and not _place().exists():
        reporter.notice("The program's own kernels are being built for this processor: a few seconds, once.")
    if why := native().why_not:
        reporter.log(f"Models write on torch's operators, without the program's own kernels for CPUs: {why}")


def has_matrix_unit() -> bool:
    """Whether torch's own bf16 products run on a unit for matrices (AMX), which this C++ does not use."""
    return "amx_bf16" in _cpu_flags()


def _unsuitable() -> str:
    """Why nothing can be built here; empty when it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "they are for Linux on x86-64 processors."
    if not _cpu_flags() >= _NEEDED:
        return "this processor lacks AVX2."
    return "" if _compiler() else "no C++ compiler (g++) was found."


def _compiler() -> str | None:
    return shutil.which("g++")


@cache
def _cpu_flags() -> frozenset[str]:
    """What the processor can do: the library is made for just that."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split()[2:])


def _place() -> Path:
    """Where the library of these sources, for this processor, belongs."""
    digest = hashlib.sha256(" ".join((*_COMPILE, *_PROCESSOR, *sorted(_cpu_flags()))).encode())
    for source in _SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    return native_cache() / f"{digest.hexdigest()[:32]}.so"


def _is_ours_alone(folder: Path) -> bool:
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _build(path: Path) -> None:
    """Whole or not at all, also when two processes do it at once."""
    compiler = _compiler() or "g++"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts, whole = Path(folder) / "token.o", Path(folder) / "token.so"
        source = Path(__file__).with_name(_SOURCES[-1])
        _run([compiler, *_COMPILE, *_PROCESSOR, "-c", str(source), "-o", str(parts)])
        # OpenMP's functions stay open: they are found in the library that torch has loaded.
        _run([compiler, "-shared", str(parts), "-o", str(whole)])
        whole.replace(path)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE_S)


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
    return found[:_LONGEST_REASON]


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer = ctypes.c_void_p
    library.quantstudio_token.argtypes = [*[pointer] * 7, ctypes.c_int]
    library.quantstudio_token.restype = None
    library.quantstudio_product.argtypes = [*[pointer] * 3, ctypes.c_int]
    library.quantstudio_product.restype = None
    library.quantstudio_prompt.argtypes = [*[pointer] * 3, ctypes.c_int64, pointer, ctypes.c_int]
    library.quantstudio_prompt.restype = None
    return library
