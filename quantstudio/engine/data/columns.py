"""From the rows of a table to documents: which column holds the text, and what a conversation looks like in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from quantstudio.core.errors import DataUnusable
from quantstudio.core.jobs import ChatMessage
from quantstudio.engine.data.document import Document, Warn, refuse

USUAL = ("messages", "text", "content")
FIELD = "data.source.column"
_SHOWN = 12


def choose_column(wanted: str, columns: Iterable[str], textual: Iterable[str], name: str) -> str:
    """The column to read: the wanted one, a usual one, or the only one of text. Raises DataUnusable."""
    known, texts = list(columns), list(textual)
    if wanted:
        if wanted in known:
            return wanted
        raise _no_column(f"{name} has no column {wanted!r}.", known)
    for usual in USUAL:
        if usual in texts:
            return usual
    if len(texts) == 1:
        return texts[0]
    what = "more than one column of text" if texts else "no column of text"
    raise _no_column(f"{name} has {what}.", texts or known)


def is_textual(value: Any) -> bool:
    """Whether a value can be a document: a text, or a list of messages."""
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and {"role", "content"} <= set(value[0])
    )


class Rows:
    """Turns the values of one column into documents and keeps count of what is none."""

    def __init__(self, column: str, name: str) -> None:
        self.column = column
        self._name = name
        self._skipped = 0
        self._good = 0

    def document(self, value: Any) -> Document | None:
        """The document in a value; None for one that is empty or not what the column should hold."""
        found = _document(value)
        if found is None:
            self._skipped += 1
        else:
            self._good += 1
        return found

    def finish(self, warn: Warn) -> None:
        """Say how many rows were left out. Raises DataUnusable when all were."""
        if not self._good:
            raise refuse(
                f"{self._name} has no text in its column {self.column!r}.",
                why=f"None of its {self._skipped:,} rows holds a text or a list of messages with role and content."
                if self._skipped
                else "It has no rows.",
                hint="Choose another column, or another file.",
                field=FIELD,
            )
        if self._skipped:
            warn(
                f"{self._skipped:,} rows of {self._name} were left out: nothing in their column {self.column!r}, or "
                "messages that are none of system, user and assistant."
            )


def nbytes(document: Document) -> int:
    """UTF-8 bytes of its text, for the limit on what is read."""
    return len(document.text.encode("utf-8", "replace")) + sum(
        len(message.content.encode("utf-8", "replace")) for message in document.messages
    )


def _document(value: Any) -> Document | None:
    if isinstance(value, str):
        text = _clean(value)
        return Document(text) if text.strip() else None
    if not isinstance(value, list) or not value:
        return None
    try:
        messages = [
            ChatMessage(role=entry["role"], content=_clean(entry["content"]))
            for entry in value
            if isinstance(entry, dict)
        ]
    except (ValidationError, KeyError, TypeError, AttributeError):
        return None
    said = tuple(message for message in messages if message.content.strip())
    return Document(messages=said) if any(message.role != "system" for message in said) else None


def _clean(text: str) -> str:
    """Without halves of characters, which JSON can write and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _no_column(what: str, columns: list[str]) -> DataUnusable:
    shown = ", ".join(repr(column)[:60] for column in columns[:_SHOWN]) + (" …" if len(columns) > _SHOWN else "")
    return refuse(
        what,
        why=f"Its columns are {shown}." if columns else "It has no columns.",
        hint="Name the column that holds the text, or the messages with role and content.",
        field=FIELD,
    )
