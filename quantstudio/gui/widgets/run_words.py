"""A run's state in words, the same in the list, in the heading and for screen readers."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from quantstudio.core.humanize import human_percent, human_seconds, rough_seconds
from quantstudio.core.run_state import RunState, Status
from quantstudio.gui.language import tr

_STATUS = {
    Status.WAITING: ("Waiting", ""),
    Status.STARTING: ("Starting", "accent"),
    Status.RUNNING: ("Running", "accent"),
    Status.CANCELLING: ("Cancelling", "warning"),
    Status.DONE: ("Done", "success"),
    Status.FAILED: ("Failed", "error"),
    Status.CANCELLED: ("Cancelled", ""),
}


def status_words(status: Status) -> str:
    """`Running`, `Done` …"""
    return tr(_STATUS[status][0])


def status_level(status: Status) -> str:
    """The badge's level: accent, success, warning, error, or empty for grey."""
    return _STATUS[status][1]


def when(seconds: float, now: float | None = None) -> str:
    """A time in the past as people say it: `just now`, `5 min ago`, `14:03`, `yesterday 14:03`, `3 Mar 2025`."""
    now = time.time() if now is None else now
    if seconds <= 0:
        return ""
    then, today = _local(seconds), _local(now)
    if 0 <= now - seconds < 60:
        return tr("just now")
    if 0 <= now - seconds < 3600:
        return f"{int((now - seconds) // 60)} {tr('min ago')}"
    days = (today.date() - then.date()).days
    if days == 0:
        return f"{then:%H:%M}"
    if days == 1:
        return f"{tr('yesterday')} {then:%H:%M}"
    return f"{then.day} {then:%b}" if then.year == today.year else f"{then.day} {then:%b %Y}"


def progress_words(state: RunState, now: float) -> str:
    """One line about a run at work: `Step 2 of 6 · 31 % · about 20 seconds left in this step`."""
    if not state.phases:
        return tr("Starting the process that does the work…")
    phase = state.phases[-1]
    parts = [f"{tr('Step')} {phase.index + 1} {tr('of')} {phase.total}", human_percent(state.fraction)]
    if state.progress is not None and state.progress.eta_s is not None:
        parts.append(f"{rough_seconds(state.progress.eta_s)} {tr('left in this step')}")
    elif state.started:
        parts.append(f"{human_seconds(max(0.0, round(now - state.started)))} {tr('so far')}")
    return " · ".join(parts)


def detail_words(state: RunState) -> str:
    """What the current phase is at: `layers 12 of 42 · model.layers.3`."""
    progress = state.progress
    if progress is None:
        return ""
    count = f"{progress.done:,.0f} {tr('of')} {progress.total:,.0f}" if progress.total > 1 else ""
    return " · ".join(part for part in (f"{count} {progress.unit}".strip() if count else "", progress.detail) if part)


def _local(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone()
