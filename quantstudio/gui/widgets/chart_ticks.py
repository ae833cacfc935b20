"""Where the marks of an axis go: round numbers, a few of them."""

from __future__ import annotations

import math

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that cover `low` to `high`; the first is at most `low`, the last at least `high`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if high else (0.0, 1.0)
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def power_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or powers alone where those were many, that cover `low` to `high` (above 0)."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1.0, 2.0, 5.0) if len(powers) <= 3 else (1.0,)
    marks = [factor * 10.0**power for power in powers for factor in factors]
    first = max(index for index, mark in enumerate(marks) if mark <= low * 1.000001)
    last = min(index for index, mark in enumerate(marks) if mark >= high * 0.999999)
    return marks[first : last + 1]


def time_ticks(high: float, count: int) -> list[float]:
    """Round times from 0 up to `high` seconds, at most about `count` of them."""
    rough = high / max(1, count)
    step = next((float(step) for step in TIME_STEPS if step >= rough), float(TIME_STEPS[-1]))
    if high > step * count * 2:  # longer than days
        return nice_ticks(0.0, high, count)
    return [index * step for index in range(int(high / step) + 1)]


def clock(seconds: float) -> str:
    """A time on an axis: `40 s`, `2:30`, `1:05:00`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def thinned(x: list[float], y: list[float], buckets: int) -> tuple[list[float], list[float]]:
    """The same curve in at most `4 × buckets` points: of each bucket first, lowest, highest and last.

    A peak of one sample stays visible, which is what a memory chart is for.
    """
    if len(x) <= 4 * buckets or buckets < 1:
        return x, y
    size = math.ceil(len(x) / buckets)
    kept: list[int] = []
    for start in range(0, len(x), size):
        part = range(start, min(start + size, len(x)))
        kept += sorted({part[0], min(part, key=y.__getitem__), max(part, key=y.__getitem__), part[-1]})
    return [x[index] for index in kept], [y[index] for index in kept]
