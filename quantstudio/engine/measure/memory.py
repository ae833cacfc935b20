"""Memory of a job as it runs: the process and its children, four times a second.

The list of children is looked up once a second only: it means reading the whole process table (5 ms), which would
show up in the timings that are being taken.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from types import TracebackType
from typing import Self

import psutil

from quantstudio.core import protocol
from quantstudio.engine.reporter import Sink

INTERVAL_S = 0.25
_CHILDREN_EVERY = 4


class MemorySampler:
    """While entered, sends `Memory` messages from a thread of its own, one at the start and one at the end."""

    def __init__(self, sink: Sink, interval_s: float = INTERVAL_S) -> None:
        self._sink = sink
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory sampler", daemon=True)
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self.last: protocol.Memory | None = None

    def sample(self) -> protocol.Memory:
        """Memory now. Pages that processes share are counted in each of them."""
        rss = 0
        for process in [self._process, *self._children]:
            with contextlib.suppress(psutil.Error):  # a child that has just ended
                rss += process.memory_info().rss
        available = psutil.virtual_memory().available
        self.last = protocol.Memory(t=time.time(), rss=rss, cuda=_cuda_bytes(), available=available)
        return self.last

    def _run(self) -> None:
        count = 0
        while True:
            if count % _CHILDREN_EVERY == 0:
                with contextlib.suppress(psutil.Error):
                    self._children = self._process.children(recursive=True)
            count += 1
            try:
                self._sink(self.sample())
            except OSError:
                return  # the disk is full: the job's own next message meets the same error and says so
            if self._stop.wait(self._interval_s):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def peak_rss() -> int:
    """The most memory this process has held, in bytes, since it started its program."""
    if sys.platform == "linux":
        # Not getrusage: its figure is inherited from the parent through fork and exec.
        with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _cuda_bytes() -> int:
    """GPU memory of this process; 0 when torch is not loaded or CUDA not in use. Never starts CUDA itself."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # half-imported while another thread imports it
    if cuda is None or not hasattr(cuda, "is_initialized") or not cuda.is_initialized():
        return 0
    return sum(int(cuda.memory_reserved(index)) for index in range(cuda.device_count()))
