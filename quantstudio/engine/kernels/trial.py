"""How fast each kernel is on this machine, tried for a moment on the model's own shapes.

Two numbers for a kernel and a shape: one row (a token of the answer) and many (a prompt). Kernels take turns, and
before each product of one row a buffer larger than most caches is walked through, because in a model the other layers'
weights do that. Heads of a hundred thousand rows are tried on some of their rows.

What was measured is kept in the data folder, by processor, threads, torch and shape, so a model is tried once, and runs
of one recipe choose alike; times taken while something else kept the processor are not believed. Small shapes are not
tried: there the call costs more than the product.

On a GPU models write from a recorded graph, where a kernel waits for no call. So times are the GPU's own: the call is
made while the GPU still walks through the buffer, and what is timed is what it then does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Annotated, Protocol

import torch
from pydantic import Field, TypeAdapter, ValidationError

from quantstudio.core.disk import write_atomically
from quantstudio.core.paths import data_home
from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.kernels.probe import random_input, random_weight
from quantstudio.engine.measure.environment import cpu_name
from quantstudio.engine.quantized_weight import QuantizedWeight

PROMPT_ROWS = 128
AT_LOAD_S = 0.8
"""Most that the trials may take while a model is loaded; shapes that are left over wait for the next time."""
BEFORE_A_JOB_S = 20.0
"""Likewise before a job of minutes or hours, and before a model is measured. GPU programs are compiled meanwhile."""
SMALLEST = 1 << 18
"""Weights in the smallest matrix that is tried."""
MOST_ROWS = {"cpu": 2048, "cuda": 16384}
"""Taller weights are tried on so many of their rows: enough to keep all of a GPU at work."""
_TURNS = 8
_DISTURBED = 2.0
"""When half of the products take this many times as long as the quickest, something else was at work."""
_FLUSH_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""On a GPU this takes a quarter of a millisecond or more: longer than a call."""
_MAX_FILE_BYTES = 4 << 20

_Seconds = Annotated[float, Field(gt=0, lt=1000)]
_Table = dict[str, dict[str, dict[str, tuple[_Seconds, _Seconds]]]]
"""Machine → scheme and shape → kernel → seconds for one row and for `PROMPT_ROWS`."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one row and for `PROMPT_ROWS` rows."""

    one: float
    prompt: float

    @property
    def typical(self) -> float:
        """Seconds in a typical exchange: a prompt of 512 tokens and an answer of 256."""
        return self.prompt * 512 / PROMPT_ROWS + self.one * 256

    def times(self, factor: float) -> Timing:
        return Timing(self.one * factor, self.prompt * factor)


NO_TIME = Timing(0, 0)


def sum_timings(timings: Iterable[Timing]) -> Timing:
    """What all these take one after the other."""
    total = NO_TIME
    for timing in timings:
        total = Timing(total.one + timing.one, total.prompt + timing.prompt)
    return total


class Candidate(Protocol):
    """A kernel class, as far as trying it goes."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    def __call__(self, weight: QuantizedWeight) -> torch.nn.Module: ...


class Trials:
    """Timings of kernels on this machine, from the file or made now while `budget_s` seconds last."""

    def __init__(
        self,
        device: torch.device,
        budget_s: float = AT_LOAD_S,
        path: Path | None = None,
        until_quiet: Callable[[], object] | None = None,
    ) -> None:
        """`until_quiet` is called before anything is timed, and returns when this process does nothing else."""
        self._until_quiet = until_quiet
        self._path = path or data_home() / "kernels.json"
        self._left = budget_s
        self._device = device
        self._machine = machine_key(device)
        self._table = _read(self._path)
        self._changed = False
        self.seconds = 0.0
        """Spent on trials so far."""

    def timings(self, spec: WeightSpec, rows: int, columns: int, kernels: Sequence[Candidate]) -> Mapping[str, Timing]:
        """Kernel name → timing of a weight of `[rows, columns]`.

        Empty when it is small, no time is left, or the machine is too busy to tell: the next load tries again.
        """
        if rows * columns < SMALLEST:
            return {}
        rows = min(rows, MOST_ROWS[self._device.type])
        key = f"{spec.label}, {rows} x {columns}"
        known = self._table.setdefault(self._machine, {}).get(key, {})
        if any(kernel.name not in known for kernel in kernels):
            if self.seconds >= self._left:
                return {}
            if self._until_quiet:
                self._until_quiet()
            started = time.perf_counter()
            found, quiet = _time(spec, rows, columns, kernels, self._device)
            self.seconds += time.perf_counter() - started
            if not quiet:
                return {}
            known = known | found
            self._table[self._machine][key] = known
            self._changed = True
        return {kernel.name: Timing(*known[kernel.name]) for kernel in kernels}

    def save(self) -> None:
        """Keep what was measured. A folder that cannot be written to costs the next load a second, nothing else."""
        if not self._changed:
            return
        self._changed = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, _adapter().dump_json(self._table, indent=1).decode() + "\n")
        except OSError:
            return


def machine_key(device: torch.device) -> str:
    """What timings depend on beside scheme and shape."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@torch.inference_mode()
def _time(
    spec: WeightSpec, rows: int, columns: int, kernels: Sequence[Candidate], device: torch.device
) -> tuple[dict[str, tuple[float, float]], bool]:
    """Kernel → seconds for one row and for a prompt, and whether the machine was quiet enough to believe them."""
    weight = random_weight(spec, rows, columns, device)
    modules = {kernel.name: kernel(weight) for kernel in kernels}
    one, prompt = (random_input((count, columns), seed=0).to(device) for count in (1, PROMPT_ROWS))
    flush = torch.zeros(_FLUSH_BYTES[device.type] // 8, dtype=torch.int64, device=device)
    seconds = _gpu_seconds if device.type == "cuda" else _seconds
    ones: dict[str, list[float]] = {name: [] for name in modules}
    prompts: dict[str, list[float]] = {name: [] for name in modules}
    for turn in range(_TURNS + 1):
        for name, module in modules.items():
            flush.add_(1)
            ones[name].append(seconds(module, one))
            if turn % 2 == 0:
                if device.type == "cuda":
                    flush.add_(1)
                prompts[name].append(seconds(module, prompt))
    del weight, modules, flush
    if device.type == "cuda":
        torch.cuda.empty_cache()
    # The first of each is a warm-up. The least: whatever disturbs a product makes it longer.
    least = {name: (min(ones[name][1:]), min(prompts[name][1:])) for name in ones}
    typical = {name: (median(ones[name][1:]), median(prompts[name][1:])) for name in ones}
    return least, all(
        usual < _DISTURBED * best for name in ones for usual, best in zip(typical[name], least[name], strict=True)
    )


def _seconds(module: torch.nn.Module, x: torch.Tensor) -> float:
    started = time.perf_counter()
    module(x)
    return max(time.perf_counter() - started, 1e-9)


def _gpu_seconds(module: torch.nn.Module, x: torch.Tensor) -> float:
    """What the GPU needs, from when it gets there to when it is done."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    module(x)
    ended.record()
    ended.synchronize()
    return max(began.elapsed_time(ended) / 1e3, 1e-9)


def _read(path: Path) -> _Table:
    try:
        with path.open("rb") as file:
            return _adapter().validate_json(file.read(_MAX_FILE_BYTES))
    except (OSError, ValidationError):
        return {}  # none yet, or damaged: they are measured again


@cache
def _adapter() -> TypeAdapter[_Table]:
    return TypeAdapter(_Table)
