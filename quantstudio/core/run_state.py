"""A run as the sum of its messages: a pure reducer, used live and when history is replayed.

`RunState.apply` mutates one plain object (a window receives 20,000 messages a second; copying would cost more than
reading them) but depends on nothing except the messages, so the same messages always give the same state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from quantstudio.core import protocol
from quantstudio.core.protocol import Message

MAX_LOG_LINES = 2000
MAX_POINTS = 4000


class Status(StrEnum):
    """Where a run stands. The last three are final."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (Status.DONE, Status.FAILED, Status.CANCELLED)


@dataclass(slots=True)
class Series:
    """A curve: x and y, thinned to every second point when it grows long."""

    unit: str = ""
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def add(self, x: float, y: float) -> None:
        self.x.append(x)
        self.y.append(y)
        if len(self.x) > MAX_POINTS:
            del self.x[1::2], self.y[1::2]


@dataclass(slots=True)
class RunState:
    """What is known of a run so far."""

    status: Status = Status.WAITING
    started: float = 0.0
    last: float = 0.0
    phases: list[protocol.Phase] = field(default_factory=list)
    progress: protocol.Progress | None = None
    memory: Series = field(default_factory=lambda: Series("bytes"))
    cuda_memory: Series = field(default_factory=lambda: Series("bytes"))
    metrics: dict[str, Series] = field(default_factory=dict)
    notices: list[protocol.Notice] = field(default_factory=list)
    artifacts: list[protocol.Artifact] = field(default_factory=list)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LOG_LINES))
    text: str = ""
    result: protocol.Result | None = None
    error: protocol.Error | None = None
    messages: int = 0

    def apply(self, message: Message) -> None:
        """Take in one message. Anything after a terminal message is ignored: a job ends once."""
        if self.status.final:
            return
        self.messages += 1
        self.last = max(self.last, message.t)
        handler = _HANDLERS.get(message.type)
        if handler is not None:
            handler(self, message)

    @property
    def fraction(self) -> float:
        """Share of the whole job done, each phase counted alike; 1 when done."""
        if self.status is Status.DONE:
            return 1.0
        if not self.phases:
            return 0.0
        phase = self.phases[-1]
        inner = self.progress.done / self.progress.total if self.progress and self.progress.total else 0.0
        return min(1.0, (phase.index + min(1.0, inner)) / max(1, phase.total))


def replay(messages: list[Message]) -> RunState:
    """The state after these messages."""
    state = RunState()
    for message in messages:
        state.apply(message)
    return state


def _hello(state: RunState, message: Message) -> None:
    state.status = Status.STARTING
    state.started = state.started or message.t


def _phase(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Phase)  # noqa: S101 - narrows the type for mypy
    if state.status is not Status.CANCELLING:
        state.status = Status.RUNNING
    state.started = state.started or message.t
    state.phases.append(message)
    state.progress = None


def _progress(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Progress)  # noqa: S101
    state.progress = message


def _memory(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Memory)  # noqa: S101
    state.started = state.started or message.t
    state.memory.add(message.t - state.started, message.rss)
    if message.cuda:
        state.cuda_memory.add(message.t - state.started, message.cuda)


def _metric(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Metric)  # noqa: S101
    state.metrics.setdefault(message.name, Series(message.unit)).add(message.step, message.value)


def _notice(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Notice)  # noqa: S101
    state.notices.append(message)
    state.log.append(f"{message.level}: {message.text}")


def _artifact(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Artifact)  # noqa: S101
    state.artifacts.append(message)


def _log(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Log)  # noqa: S101
    state.log.append(message.text)


def _tokens(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Tokens)  # noqa: S101
    state.text += message.text


def _result(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Result)  # noqa: S101
    state.result, state.status = message, Status.DONE


def _error(state: RunState, message: Message) -> None:
    assert isinstance(message, protocol.Error)  # noqa: S101
    state.error, state.status = message, Status.FAILED


def _cancelled(state: RunState, message: Message) -> None:
    state.status = Status.CANCELLED


_HANDLERS = {
    "hello": _hello,
    "phase": _phase,
    "progress": _progress,
    "memory": _memory,
    "metric": _metric,
    "notice": _notice,
    "artifact": _artifact,
    "log": _log,
    "tokens": _tokens,
    "result": _result,
    "error": _error,
    "cancelled": _cancelled,
}
