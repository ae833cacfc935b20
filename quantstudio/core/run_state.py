"""A run as the sum of its messages: a pure reducer, used live and when history is replayed.

`RunState.apply` mutates one plain object (a window receives 20,000 messages a second; copying would cost more than
reading them) but depends on nothing except the messages, so the same messages always give the same state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from functools import singledispatch

from quantstudio.core import protocol
from quantstudio.core.protocol import Message

MAX_LOG_LINES = 2000
MAX_POINTS = 4000
MAX_SAMPLES = 2000


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

    def add_step(self, step: int, value: float) -> None:
        """A value at a step. Training that was rolled back or resumed counts up again: what it undid goes."""
        while self.x and self.x[-1] >= step:
            self.x.pop()
            self.y.pop()
        self.add(step, value)


@dataclass(slots=True)
class RunState:
    """What is known of a run so far."""

    status: Status = Status.WAITING
    started: float = 0.0
    last: float = 0.0
    phases: list[protocol.Phase] = field(default_factory=list)
    progress: protocol.Progress | None = None
    transfer: protocol.Transfer | None = None
    memory: Series = field(default_factory=lambda: Series("bytes"))
    cuda_memory: Series = field(default_factory=lambda: Series("bytes"))
    metrics: dict[str, Series] = field(default_factory=dict)
    samples: deque[protocol.Sample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    """In the order in which they were written; the oldest go first."""
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
        _take(message, self)

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


@singledispatch
def _take(message: Message, state: RunState) -> None:
    """What one message changes; nothing for those that carry no state (heartbeat, answer)."""


@_take.register
def _(message: protocol.Hello, state: RunState) -> None:
    state.status = Status.STARTING
    state.started = state.started or message.t


@_take.register
def _(message: protocol.Phase, state: RunState) -> None:
    if state.status is not Status.CANCELLING:
        state.status = Status.RUNNING
    state.started = state.started or message.t
    # A run that was resumed goes through its first phases again.
    state.phases = [phase for phase in state.phases if phase.index < message.index] + [message]
    state.progress = None


@_take.register
def _(message: protocol.Progress, state: RunState) -> None:
    state.progress = message


@_take.register
def _(message: protocol.Transfer, state: RunState) -> None:
    state.transfer = message


@_take.register
def _(message: protocol.Memory, state: RunState) -> None:
    state.started = state.started or message.t
    state.memory.add(message.t - state.started, message.rss)
    if message.cuda:
        state.cuda_memory.add(message.t - state.started, message.cuda)


@_take.register
def _(message: protocol.Metric, state: RunState) -> None:
    state.metrics.setdefault(message.name, Series(message.unit)).add_step(message.step, message.value)


@_take.register
def _(message: protocol.Sample, state: RunState) -> None:
    state.samples.append(message)


@_take.register
def _(message: protocol.Notice, state: RunState) -> None:
    state.notices.append(message)
    state.log.append(f"{message.level}: {message.text}")


@_take.register
def _(message: protocol.Artifact, state: RunState) -> None:
    state.artifacts.append(message)


@_take.register
def _(message: protocol.Log, state: RunState) -> None:
    state.log.append(message.text)


@_take.register
def _(message: protocol.Tokens, state: RunState) -> None:
    state.text += message.text


@_take.register
def _(message: protocol.Result, state: RunState) -> None:
    state.result, state.status = message, Status.DONE


@_take.register
def _(message: protocol.Error, state: RunState) -> None:
    state.error, state.status = message, Status.FAILED


@_take.register
def _(message: protocol.CancelledMessage, state: RunState) -> None:
    state.status = Status.CANCELLED
