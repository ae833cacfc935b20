"""What every source of text hands over: documents, within a limit of bytes and with warnings on the side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quantstudio.core.errors import DataUnusable
from quantstudio.core.humanize import human_bytes
from quantstudio.core.jobs import ChatMessage

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation when `messages` are there."""

    text: str = ""
    messages: tuple[ChatMessage, ...] = ()
    begins: bool = True
    """False: a further part of the document before it, which was too long to be handed over at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source. `documents` is read once, from its beginning, and may raise DataUnusable at any point."""

    name: str
    documents: Iterator[Document]
    nbytes: int
    """About how much will be read; for the progress."""
    licence: str = ""


@dataclass(slots=True)
class Budget:
    """How many bytes of text may still be read."""

    limit: int
    used: int = 0

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)

    def spend(self, nbytes: int) -> None:
        self.used += nbytes

    def words(self) -> str:
        """The limit for a person."""
        return human_bytes(self.limit)


def refuse(what: str, *, why: str = "", hint: str, field: str = "data.source.kind") -> DataUnusable:
    """The error that every source raises; `field` is the part of the recipe to look at."""
    return DataUnusable(what, why=why, hint=hint, field=field)
