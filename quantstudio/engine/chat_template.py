"""From a conversation to the text that a model reads, through the chat template that came with the model.

The template is a program by a stranger. transformers renders it in Jinja's sandbox, which keeps it from the machine
but not from wasting time: two nested loops of 100,000 rounds would run for hours. So its size, the time it takes and
the text it makes are bounded here. Not covered: one single operation that takes long (a huge string product); the
window's way to end the whole process covers that.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from quantstudio.core.errors import ModelUnsafe, ModelUnsupported
from quantstudio.core.jobs import ChatMessage

MAX_TEMPLATE_CHARS = 256_000
"""The longest template of a known model family has about 30,000."""
MAX_TEXT_CHARS = 16_000_000
MAX_SECONDS = 5.0
_PLAIN_HINT = "Switch to plain completion, or choose another model."


class _Interrupted(BaseException):
    """Not an Exception, so that no template and no library takes it for an error of its own."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    stop: threading.Event,
    seconds: float = MAX_SECONDS,
    *,
    answer_next: bool = True,
) -> str:
    """The conversation as text, ending where the model's answer begins; empty when `stop` is set meanwhile.

    Without `answer_next` it ends with its last message.

    Raises ModelUnsupported when there is no template or it fails, ModelUnsafe when it exceeds a bound.
    """
    _require_template(tokenizer)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    deadline = time.monotonic() + seconds
    try:
        with _interrupted_when(lambda: stop.is_set() or time.monotonic() > deadline):
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next)
    except _Interrupted:
        if stop.is_set():
            return ""
        raise _unsafe(f"It was still running after {seconds:.0f} seconds.") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a stranger's program raises
        raise ModelUnsupported(
            "The model's chat template could not lay out this conversation.",
            why=f"It says: {' '.join(str(error).split())[:300]}.",
            hint=_PLAIN_HINT,
        ) from error
    if not isinstance(text, str) or len(text) > MAX_TEXT_CHARS:
        raise _unsafe("It makes far more text than the conversation has.")
    return text


def _require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise ModelUnsupported(
            "This model has no chat template, so it does not know questions from answers.",
            hint="Switch to plain completion: the model then continues your text.",
        )
    if len(str(tokenizer.chat_template)) > MAX_TEMPLATE_CHARS:
        raise _unsafe(f"It is longer than {MAX_TEMPLATE_CHARS:,} characters.")


def _unsafe(why: str) -> ModelUnsafe:
    return ModelUnsafe("The model's chat template was not used.", why=why, hint=_PLAIN_HINT)


@contextmanager
def _interrupted_when(over: Callable[[], bool]) -> Iterator[None]:
    """Raise `_Interrupted` in the body as soon as `over()` holds, looked at before every line of Python it runs."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if over():
            raise _Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
