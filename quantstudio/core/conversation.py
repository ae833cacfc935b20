"""Conversations, kept as JSON lines: one line about the conversation, then one for each turn.

A file is replaced as a whole after every turn (it is small), so that it is never half written. Files are read as
hostile input: they may come from another machine.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from quantstudio.core.disk import disk_problem, write_atomically
from quantstudio.core.errors import DiskProblem, QuantStudioError
from quantstudio.core.jobs import ChatMessage, ChatRequest, Sampling
from quantstudio.core.paths import data_home
from quantstudio.core.protocol import Answer

CONVERSATION_VERSION = 1
MAX_BYTES = 16 << 20
MAX_CONFIG_BYTES = 4 << 20
SUFFIX = ".jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Head(_Line):
    """First line of the file."""

    type: Literal["conversation"] = "conversation"
    version: int = CONVERSATION_VERSION
    model: str
    created: float
    system: str = ""
    template: bool = True
    sampling: Sampling = Sampling()


class Turn(_Line):
    """What one side said. The numbers belong to answers: seconds and tokens per second."""

    role: Literal["user", "assistant"]
    content: str
    t: float = 0.0
    reason: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    ttft_s: float = 0.0
    tokens_per_s: float = 0.0
    reused_tokens: int = 0


@dataclass(slots=True)
class Conversation:
    """A conversation in memory. `path` is where it is saved; None until the first turn is."""

    model: str = ""
    system: str = ""
    template: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    turns: list[Turn] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    path: Path | None = None

    def say(self, text: str) -> None:
        """Add what the person said."""
        self.turns.append(Turn(role="user", content=text, t=time.time()))

    def answer(self, text: str, numbers: Answer) -> Turn:
        """Add the model's answer."""
        turn = Turn(
            role="assistant",
            content=text,
            t=time.time(),
            reason=numbers.reason,
            prompt_tokens=numbers.prompt_tokens,
            tokens=numbers.tokens,
            ttft_s=numbers.ttft_s,
            tokens_per_s=numbers.tokens_per_s,
            reused_tokens=numbers.reused_tokens,
        )
        self.turns.append(turn)
        return turn

    def take_back_answer(self) -> bool:
        """Remove the last answer, to ask for another. False: the last turn is not an answer."""
        if not self.turns or self.turns[-1].role != "assistant":
            return False
        self.turns.pop()
        return True

    def request(self) -> ChatRequest:
        """What to ask the worker for now."""
        if not self.template:
            text = continued_text(self.turns)
            return ChatRequest(
                messages=(ChatMessage(role="user", content=text),), template=False, sampling=self.sampling
            )
        system = [ChatMessage(role="system", content=self.system)] if self.system.strip() else []
        turns = [ChatMessage(role=turn.role, content=turn.content) for turn in self.turns]
        return ChatRequest(messages=(*system, *turns), template=True, sampling=self.sampling)

    @property
    def title(self) -> str:
        """The first words of the conversation, in one line."""
        said = next((turn.content for turn in self.turns if turn.role == "user" and turn.content.strip()), "")
        return " ".join(said.split())[:80]

    def save(self, home: Path | None = None) -> Path:
        """Write the file; its path. Raises DiskProblem."""
        home = home or chats_home()
        head = Head(
            model=self.model, created=self.created, system=self.system, template=self.template, sampling=self.sampling
        )
        lines = [head.model_dump_json(), *(turn.model_dump_json(exclude_defaults=True) for turn in self.turns)]
        try:
            home.mkdir(parents=True, exist_ok=True)
            self.path = self.path or _free_path(home, self.created, self.title)
            write_atomically(self.path, "\n".join(lines) + "\n")
        except OSError as error:
            raise disk_problem(error) or DiskProblem(
                f"The conversation cannot be saved in {home}.", why=f"{error.strerror or error}."
            ) from error
        return self.path


def continued_text(turns: list[Turn]) -> str:
    """All turns as one text, for a model that continues text instead of answering."""
    text = ""
    for turn in turns:
        # What a person adds after the model's text starts a new line, unless one side has already left a gap.
        gap = turn.role == "user" and text and turn.content and not text[-1].isspace() and not turn.content[0].isspace()
        text += ("\n" if gap else "") + turn.content
    return text


def chats_home() -> Path:
    """The folder of saved conversations."""
    return data_home() / "chats"


def load_conversation(path: Path) -> Conversation:
    """Read a saved conversation. Raises QuantStudioError when it is none."""
    hint = "Open a file that was saved by QuantStudio's chat."
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError("it is too large")
        head, *turns = [json.loads(line) for line in raw.decode("utf-8").split("\n") if line.strip()]
        if isinstance(head, dict) and isinstance(head.get("version"), int) and head["version"] > CONVERSATION_VERSION:
            raise QuantStudioError(
                f"{path.name} was written by a newer version of QuantStudio.", hint="Update QuantStudio."
            )
        first = Head.model_validate(head)
        said = [Turn.model_validate(turn) for turn in turns]
    except OSError as error:
        raise QuantStudioError(f"{path} cannot be read.", why=f"{error.strerror or error}.") from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise QuantStudioError(f"{path.name} is not a saved conversation.", hint=hint) from error
    return Conversation(first.model, first.system, first.template, first.sampling, said, first.created, path)


def recent_conversations(home: Path | None = None, count: int = 12) -> list[Path]:
    """The newest saved conversations. Files that vanish meanwhile are passed over."""
    found: list[tuple[float, Path]] = []
    folder = home or chats_home()
    for path in folder.glob(f"*{SUFFIX}") if folder.is_dir() else ():
        try:
            found.append((path.stat().st_mtime, path))
        except OSError:
            continue
    return [path for _, path in sorted(found, reverse=True)[:count]]


def has_chat_template(folder: Path) -> bool:
    """Whether a model folder's tokenizer brings a chat template. False also when it cannot be read."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        with (folder / "tokenizer_config.json").open("rb") as file:
            data: Any = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and bool(data.get("chat_template"))


def _free_path(home: Path, created: float, title: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "chat"
    stem = f"{datetime.fromtimestamp(created, UTC):%Y%m%d-%H%M%S}-{slug}"
    path = home / f"{stem}{SUFFIX}"
    number = 2
    while path.exists():
        path = home / f"{stem}-{number}{SUFFIX}"
        number += 1
    return path
