"""The messages between a worker and whoever started it: one JSON object a line, UTF-8.

The written specification is `resources/docs/protocol.md`; a golden file in the tests holds both to it. Rules:
`hello` comes first; every job ends in exactly one terminal message (`result`, `error` or `cancelled`); readers
ignore message types and keys that they do not know; the protocol version is compared for equality.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

PROTOCOL_VERSION = 1
MAX_LINE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Base: `t` is the time of sending in seconds since the epoch (UTC)."""

    type: ClassVar[str] = ""
    t: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """First message of every worker, sent before torch is imported."""

    type: ClassVar[str] = "hello"
    protocol: int
    version: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase(Message):
    """The job enters a phase. `index` counts from 0; `total` phases are planned."""

    type: ClassVar[str] = "phase"
    id: str
    title: str
    index: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Message):
    """How far the current phase is: `done` of `total` in `unit`."""

    type: ClassVar[str] = "progress"
    done: float
    total: float
    unit: str = ""
    detail: str = ""
    eta_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Message):
    """Where a download stands, in bytes. `stage`: looking, fetching, waiting, verifying, converting, done."""

    type: ClassVar[str] = "transfer"
    stage: str
    file: str = ""
    file_done: int = 0
    file_total: int = 0
    done: int = 0
    total: int = 0
    files_done: int = 0
    files_total: int = 0
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Message):
    """One measured number, such as a loss at a step."""

    type: ClassVar[str] = "metric"
    name: str
    value: float
    step: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Message):
    """What the model writes at a step of its training. `text` is the continuation alone, without the prompt."""

    type: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Message):
    """Memory of the job's processes now, in bytes. `cuda` is 0 without a GPU."""

    type: ClassVar[str] = "memory"
    rss: int
    cuda: int = 0
    available: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Message):
    """Something the person should know though the job goes on. `level`: info or warning."""

    type: ClassVar[str] = "notice"
    level: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(Message):
    """A file or folder that now exists. `kind`: run, model, chart, report …"""

    type: ClassVar[str] = "artifact"
    kind: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens(Message):
    """A piece of generated text, whole characters only. `turn` counts answers of a chat from 0."""

    type: ClassVar[str] = "tokens"
    text: str
    turn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Message):
    """An answer of a chat is complete. Rates in tokens per second, times in seconds. `reason`: end, length, stopped.

    `reused_tokens` of the prompt were known from the turns before and not read again.
    """

    type: ClassVar[str] = "answer"
    turn: int
    reason: str
    prompt_tokens: int
    tokens: int
    ttft_s: float
    tokens_per_s: float
    reused_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine(Message):
    """What runs a part of the loaded model, in a line for a person. `detail`: all of it, with operators' own names."""

    type: ClassVar[str] = "engine"
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(Message):
    """A line for the log. `level`: debug, info, warning, error."""

    type: ClassVar[str] = "log"
    level: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """The worker is alive."""

    type: ClassVar[str] = "heartbeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Message):
    """Terminal: the job is done. `data` is the job's own result (for a run: `RunResult` as JSON)."""

    type: ClassVar[str] = "result"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Error(Message):
    """Terminal: the job failed. Texts are for people; `kind` is the id of an error class; `field` a recipe path."""

    type: ClassVar[str] = "error"
    kind: str
    what: str
    why: str = ""
    hint: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelledMessage(Message):
    """Terminal: the job was stopped as asked, and has cleaned up."""

    type: ClassVar[str] = "cancelled"


MESSAGES: dict[str, type[Message]] = {
    message.type: message
    for message in (
        Hello,
        Phase,
        Progress,
        Transfer,
        Metric,
        Sample,
        Memory,
        Notice,
        Artifact,
        Tokens,
        Answer,
        Engine,
        Log,
        Heartbeat,
        Result,
        Error,
        CancelledMessage,
    )
}
TERMINAL = (Result, Error, CancelledMessage)
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "dict[str, Any]": (dict,),
}
_FIELDS = {
    name: {field.name: _PYTHON_TYPES[str(field.type)] for field in dataclasses.fields(cls)}
    for name, cls in MESSAGES.items()
}


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def to_dict(message: Message) -> dict[str, Any]:
    """The message as plain data, `type` first."""
    names = _FIELDS[message.type]
    return {"type": message.type, **{name: getattr(message, name) for name in sorted(names)}}


def encode(message: Message) -> bytes:
    """One line, newline included. Raises ValueError for NaN or infinity, which JSON does not have."""
    text = json.dumps(to_dict(message), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def decode(line: bytes | str) -> Message | None:
    """Read one line. None for a message type that this version does not know. Raises ValueError for a broken line.

    Values are checked for their JSON type, because a window does arithmetic with them.
    """
    data = _DECODER.decode(line if isinstance(line, str) else line.decode())
    if not isinstance(data, dict):
        raise ValueError("a message is a JSON object")
    kind = data.get("type")
    cls = MESSAGES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        return None
    types = _FIELDS[cls.type]
    values = {name: value for name, value in data.items() if name in types}
    for name, value in values.items():
        if not isinstance(value, types[name]):
            raise ValueError(f"{name} of a {cls.type} message is {value!r:.50}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"a {cls.type} message lacks a key: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a worker is told on its stdin: one JSON object a line.

    `name` is `start` (payload: a job, see `jobs`), `cancel`, and for a chat `generate` (payload: a `ChatRequest`)
    and `stop` (end the current answer). Closing stdin means that the window is gone: the worker dies at once.
    """

    name: str
    payload: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        return (
            json.dumps({"cmd": self.name, **self.payload}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        )


def decode_command(line: bytes | str) -> Command:
    """Read one command line. Raises ValueError."""
    data = json.loads(line)
    if not isinstance(data, dict) or not isinstance(data.get("cmd"), str):
        raise ValueError("a command is a JSON object with a cmd")
    return Command(name=data.pop("cmd"), payload=data)
