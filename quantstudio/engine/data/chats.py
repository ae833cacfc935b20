"""A person's own prompts, and the conversations that the chat page has saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantstudio.core.conversation import SUFFIX, Conversation, chats_home, continued_text, load_conversation
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.jobs import ChatMessage
from quantstudio.core.recipe_data import OwnPrompts
from quantstudio.engine.data.columns import nbytes
from quantstudio.engine.data.document import Budget, Document, Warn, refuse


def read_own(source: OwnPrompts, budget: Budget, warn: Warn) -> Iterator[Document]:
    """Each saved conversation and each prompt is a document. A file that cannot be read is left out with a warning.

    Raises DataUnusable when there is nothing.
    """
    found = False
    for document in _all(source, warn):
        size = nbytes(document)
        if size > budget.left:
            warn(f"Only the first {budget.words()} of your prompts and chats are read.")
            return
        budget.spend(size)
        found = True
        yield document
    if not found:
        raise refuse(
            "There are no prompts and no saved chats to learn from.",
            hint="Write some prompts, save chats on the chat page, or choose another source.",
            field="data.source.prompts",
        )


def chat_files(source: OwnPrompts) -> list[Path]:
    """Files of saved chats, oldest name first. Raises DataUnusable when the person's folder does not exist."""
    if not source.saved_chats:
        return []
    if not source.chats_folder.strip():
        return sorted(chats_home().glob(f"*{SUFFIX}"))
    folder = Path(source.chats_folder).expanduser().absolute()
    if not folder.is_dir():
        raise refuse(
            f"There is no folder {folder}.",
            hint="Choose the folder that holds saved chats, or leave it empty for the usual one.",
            field="data.source.chats_folder",
        )
    return sorted(folder.glob(f"*{SUFFIX}"))


def _all(source: OwnPrompts, warn: Warn) -> Iterator[Document]:
    for path in chat_files(source):
        try:
            document = _of_conversation(load_conversation(path))
        except QuantStudioError as error:
            warn(f"A saved chat was left out. {error.what}")
            continue
        if document:
            yield document
    for prompt in source.prompts:
        if prompt.strip():
            yield Document(messages=(ChatMessage(role="user", content=prompt.strip()),))


def _of_conversation(conversation: Conversation) -> Document | None:
    """The conversation as the model saw it, up to its last answer; None when nothing was said."""
    turns = list(conversation.turns)
    if not conversation.template:
        text = continued_text(turns)
        return Document(text) if text.strip() else None
    while turns and (turns[-1].role != "assistant" or not turns[-1].content.strip()) and len(turns) > 1:
        turns.pop()
    system = [ChatMessage(role="system", content=conversation.system)] if conversation.system.strip() else []
    said = [ChatMessage(role=turn.role, content=turn.content) for turn in turns if turn.content.strip()]
    return Document(messages=(*system, *said)) if said else None
