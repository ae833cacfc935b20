"""From documents to tokens: the whole source, tokenized once, in batches.

Long texts are cut into blocks before whitespace, at the end of a paragraph where there is one, so that a tokenizer gets
pieces that it is quick with; with byte-level vocabularies the tokens are those of the uncut text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantstudio.core.errors import ModelUnsupported
from quantstudio.engine.data.document import Document, Warn
from quantstudio.engine.data.layout import Layout, Piece, Span
from quantstudio.engine.reporter import Reporter

BLOCK = 8192
"""Characters of plain text that are tokenized as one piece."""
_BATCH = 1 << 20
"""Characters handed to the tokenizer at once."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Every token of a source, in order, and the blocks they lie in.

    `ids`: int32 `[n]`. `loss`: bool `[n]`, tokens that count for the loss. `compared`: bool `[n]`, tokens by which
    passages are recognized (not the system prompts, which whole data sets share). `ends`: int64 `[blocks]`, one past
    each block's last token. `document`: int64 `[blocks]`, which document it is of. `whole`: bool `[blocks]`, whether it
    is a conversation, which is not cut.
    """

    ids: NDArray[np.int32]
    loss: NDArray[np.bool_]
    compared: NDArray[np.bool_]
    ends: NDArray[np.int64]
    document: NDArray[np.int64]
    whole: NDArray[np.bool_]

    @property
    def documents(self) -> int:
        return int(self.document[-1]) + 1 if len(self.document) else 0


def tokenize(
    documents: Iterable[Document], layout: Layout, tokenizer: Any, reporter: Reporter, nbytes: int, warn: Warn
) -> Blocks:
    """Tokenize all documents; copies of one that came before are left out. `nbytes` is for the progress alone.

    Raises what the documents raise, ModelUnsupported, Cancelled.
    """
    collected = _Collected()
    batch: list[tuple[int, Piece]] = []
    waiting = done = 0
    for number, document in _distinct(documents, warn):
        for piece in _pieces(document, layout):
            batch.append((number, piece))
            waiting += len(piece.text)
        done += len(document.text) + sum(len(message.content) for message in document.messages)
        if waiting >= _BATCH:
            collected.add(batch, tokenizer)
            batch, waiting = [], 0
            reporter.progress(min(done, nbytes) / 1e6, nbytes / 1e6, "MB")
    collected.add(batch, tokenizer)
    reporter.check_cancel()
    return collected.blocks()


class _Collected:
    def __init__(self) -> None:
        self.ids: list[NDArray[np.int32]] = []
        self.masks: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
        self.document: list[int] = []
        self.whole: list[bool] = []

    def add(self, batch: list[tuple[int, Piece]], tokenizer: Any) -> None:
        plain = [entry for entry in batch if entry[1].is_plain]
        marked = [entry for entry in batch if not entry[1].is_plain]
        ids = dict(zip(map(id, plain), _encode(tokenizer, plain), strict=True))
        with_offsets = dict(zip(map(id, marked), _encode_with_offsets(tokenizer, marked), strict=True))
        for entry in batch:
            number, piece = entry
            if piece.is_plain:
                tokens = ids[id(entry)]
                masks = np.ones(len(tokens), np.bool_), np.ones(len(tokens), np.bool_)
            else:
                tokens, offsets = with_offsets[id(entry)]
                counted = np.ones(len(tokens), np.bool_) if piece.counted is None else _inside(offsets, piece.counted)
                masks = counted, ~_inside(offsets, piece.uncompared)
            if len(tokens):
                self.ids.append(tokens)
                self.masks.append(masks)
                self.document.append(number)
                self.whole.append(piece.whole)

    def blocks(self) -> Blocks:
        lengths = np.asarray([len(ids) for ids in self.ids], np.int64)
        empty = np.zeros(0, np.bool_)
        return Blocks(
            ids=np.concatenate([np.zeros(0, np.int32), *self.ids]),
            loss=np.concatenate([empty, *(loss for loss, _ in self.masks)]),
            compared=np.concatenate([empty, *(compared for _, compared in self.masks)]),
            ends=np.cumsum(lengths),
            document=np.asarray(self.document, np.int64),
            whole=np.asarray(self.whole, np.bool_),
        )


def cut_blocks(text: str) -> Iterator[str]:
    """The text in blocks of at most `BLOCK` characters; joined they are the text."""
    start = 0
    while len(text) - start > BLOCK:
        end = start + BLOCK
        for border in ("\n\n", "\n", " "):
            place = text.rfind(border, start + BLOCK // 2, end)
            if place > 0:
                end = place
                break
        yield text[start:end]
        start = end
    yield text[start:]


def _pieces(document: Document, layout: Layout) -> Iterator[Piece]:
    if document.messages:
        yield layout.conversation(document.messages)
    else:
        # Between two parts of a text the white space belongs to the second.
        text = document.text.rstrip() if document.begins else document.text
        yield from (Piece(block) for block in cut_blocks(text.lstrip("\n") if document.begins else text))


def _distinct(documents: Iterable[Document], warn: Warn) -> Iterator[tuple[int, Document]]:
    """Documents with their numbers, each text once."""
    seen: set[bytes] = set()
    copies = 0
    number = -1
    for document in documents:
        if document.begins:
            key = _digest(document)
            if key in seen:
                copies += 1
                continue
            seen.add(key)
            number += 1
        yield number, document
    if copies:
        warn(f"{copies:,} documents are copies of others and were left out.")


def _digest(document: Document) -> bytes:
    parts = [document.text.strip(), *(f"{message.role}\0{message.content}" for message in document.messages)]
    return hashlib.blake2b("\0\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _encode(tokenizer: Any, batch: list[tuple[int, Piece]]) -> list[NDArray[np.int32]]:
    if not batch:
        return []
    texts = [piece.text for _, piece in batch]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]


def _encode_with_offsets(
    tokenizer: Any, batch: list[tuple[int, Piece]]
) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Tokens of each piece, int32 `[n]`, and the characters each stands for, int64 `[n, 2]`."""
    if not batch:
        return []
    texts = [piece.text for _, piece in batch]
    try:
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise ModelUnsupported(
            "The answers in the conversations cannot be told from the questions.",
            why="The model's tokenizer does not say which characters a token stands for.",
            hint="Use plain text, or a copy of the model that has a tokenizer.json.",
            field="data.loss",
        ) from error
    return [
        (np.asarray(ids, np.int32), np.asarray(offsets, np.int64).reshape(-1, 2))
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _inside(offsets: NDArray[np.int64], spans: tuple[Span, ...]) -> NDArray[np.bool_]:
    """Which tokens begin inside one of the ranges of characters; those that stand for no character do not."""
    inside = np.zeros(len(offsets), np.bool_)
    for start, end in spans:
        inside |= (offsets[:, 0] >= start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
    return inside
