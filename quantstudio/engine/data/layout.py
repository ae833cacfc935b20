"""How a conversation becomes text: through the model's chat template, with a note of which parts are answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantstudio.core.jobs import ChatMessage
from quantstudio.engine.chat_template import render
from quantstudio.engine.data.document import Warn
from quantstudio.engine.reporter import Reporter

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to tokenize as one. Spans are ranges of its characters, end exclusive."""

    text: str
    whole: bool = False
    counted: tuple[Span, ...] | None = None
    """What counts for the loss; None: everything."""
    uncompared: tuple[Span, ...] = ()
    """System prompts, which do not make two conversations the same."""

    @property
    def is_plain(self) -> bool:
        return self.counted is None and not self.uncompared


class Layout:
    """Lays conversations out for one tokenizer."""

    def __init__(self, tokenizer: Any, loss: Literal["answers", "all"], reporter: Reporter, warn: Warn) -> None:
        self._tokenizer = tokenizer
        self._loss = loss
        self._reporter = reporter
        self._warn = warn
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._said: set[str] = set()

    def conversation(self, messages: Sequence[ChatMessage]) -> Piece:
        """The conversation as one piece. Without a chat template its texts are separated by blank lines.

        One that does not end in an answer ends where the model's answer would begin, and all of it counts for the loss.
        Raises ModelUnsupported or ModelUnsafe when the template fails, Cancelled.
        """
        if not self._has_template:
            self._warn_once(
                "This model has no chat template; conversations are laid out as plain text, and every word counts."
            )
            return Piece("\n\n".join(message.content.strip() for message in messages), whole=True)
        answered = messages[-1].role == "assistant"
        text = self._render(messages, answer_next=not answered)
        return Piece(
            text,
            whole=True,
            counted=self._counted(messages, text),
            uncompared=_find_all(text, messages, "system"),
        )

    def _counted(self, messages: Sequence[ChatMessage], text: str) -> tuple[Span, ...] | None:
        if self._loss == "all":
            return None
        if not any(message.role == "assistant" for message in messages):
            self._warn_once("Where a prompt has no answer, every word of it counts.")
            return None
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:index], answer_next=True) if index else ""
            last = index == len(messages) - 1
            after = text if last else self._render(messages[: index + 1], answer_next=False)
            if not (text.startswith(before) and text.startswith(after)):
                # Some templates leave parts of earlier turns out once there are later ones.
                return _find_all(text, messages, "assistant")
            spans.append((len(before), len(after)))
        return tuple(spans)

    def _render(self, messages: Sequence[ChatMessage], *, answer_next: bool) -> str:
        text = render(self._tokenizer, messages, self._reporter.cancel, answer_next=answer_next)
        self._reporter.check_cancel()
        return text

    def _warn_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._warn(text)


def _find_all(text: str, messages: Sequence[ChatMessage], role: str) -> tuple[Span, ...]:
    """Where the contents of this role stand in the text, looked for in order."""
    spans = []
    place = 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, place) if content else -1
        if start < 0:
            continue
        place = start + len(content)
        if message.role == role:
            spans.append((start, place))
    return tuple(spans)
