"""Numbers as people read them.

Everything inside the program is plain bytes, seconds and counts; only what a person sees passes through here. Sizes
are decimal (1 MB = 1,000,000 bytes), as on disks and on model pages. Three significant digits are kept: more would
claim a precision that a measurement on a busy machine does not have.
"""

from __future__ import annotations

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
MINUTE, HOUR, DAY = 60, 3600, 86400


def human_bytes(count: float) -> str:
    """`16.8 MB`; a whole number of bytes below 1,000."""
    return _scaled(count, _BYTES, " ", f"{count:.0f} B")


def human_count(count: float) -> str:
    """`8.4M`, `1.5B`; whole numbers below 1,000."""
    return _scaled(count, _COUNTS, "", f"{count:.0f}")


def human_seconds(seconds: float) -> str:
    """A measured time: `12.3 ms`, `4.2 s`, `3 min 05 s`, `2 h 10 min`, `3 days`."""
    if seconds < 0:
        return "–" + human_seconds(-seconds)
    if seconds < 0.9995:
        return f"{_three(seconds * 1e3)} ms"
    if seconds < 59.95:  # what rounds to 60.0 is a minute
        return f"{_three(seconds)} s"
    if (whole := round(seconds)) < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02d} s"
    if whole < DAY:
        minutes = round(seconds / MINUTE)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days = round(seconds / DAY)
    return f"{days} day{'s' if days != 1 else ''}"


def rough_seconds(seconds: float) -> str:
    """An estimated time, said no more exactly than it is known: `a few seconds`, `about 2 minutes`."""
    if seconds < 8:
        return "a few seconds"
    for limit, step in ((20, 5), (MINUTE * 0.9, 10)):
        if seconds < limit:
            return f"about {round(seconds / step) * step} seconds"
    if seconds < MINUTE * 55:
        minutes = max(1, round(seconds / MINUTE))
        return "about a minute" if minutes == 1 else f"about {minutes} minutes"
    hours = max(1, round(seconds / HOUR))
    return "about an hour" if hours == 1 else f"about {hours} hours"


def human_percent(share: float, digits: int = 0) -> str:
    """`0.257` → `26 %`."""
    return f"{share * 100:.{digits}f} %"


def human_rate(per_second: float, unit: str = "tok/s") -> str:
    """`66.2 tok/s`."""
    return f"{_three(per_second)} {unit}"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 layer`, `24 layers`, `1,204 layers`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _scaled(count: float, units: tuple[tuple[float, str], ...], gap: str, plain: str) -> str:
    if count < 0:
        return "–" + _scaled(-count, units, gap, plain.lstrip("-"))
    for factor, unit in units:
        # 999,960 bytes are 1 MB, not "1000 kB": what counts is the number that will be shown.
        if count >= factor * 0.9995:
            return f"{_three(count / factor)}{gap}{unit}"
    return plain


def _three(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    for limit, digits in ((9.995, 2), (99.95, 1)):
        if abs(value) < limit:
            return _trimmed(f"{value:.{digits}f}")
    return f"{value:,.0f}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
