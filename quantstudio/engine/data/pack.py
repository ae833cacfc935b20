"""From passages to sequences of one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantstudio.engine.data.splits import Indices, Passages
from quantstudio.engine.data.tokenize import Blocks

MAX_PASSAGE_SEQUENCES = 4
MIN_PASSAGE = 32
PASSAGES = 24
"""At least so many in a small source, so that there is something to split."""


@dataclass(frozen=True, slots=True)
class Packed:
    """`ids`: int32 `[sequences, length]`; `mask`: bool, same shape: tokens that count for the loss."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    left_out: int
    """Tokens at the end that fill no sequence, or are more than was asked for."""


class Packer:
    """Lays passages of one source end to end and cuts them into sequences.

    Passages are separated by the end-of-text token, except where one continues the other. Where the tokenizer puts a
    start token before every text, every sequence begins with it.
    """

    def __init__(self, blocks: Blocks, passages: Passages, tokenizer: Any, length: int) -> None:
        self._blocks = blocks
        self._passages = passages
        self._end = tokenizer.eos_token_id
        self._start = start_token(tokenizer)
        self._length = length
        self._whole = np.zeros(len(passages.starts), np.bool_)
        self._whole[:] = blocks.whole[np.searchsorted(blocks.ends, passages.starts, side="right")]

    @property
    def payload(self) -> int:
        """Tokens of text in a sequence."""
        return self._length - (self._start is not None)

    def pack(self, chosen: Indices, most: int | None, chance: np.random.Generator) -> Packed:
        """Sequences of the chosen passages (ascending), at most `most` of them, in random order."""
        ids, mask = self._lay_out(chosen)
        count = len(ids) // self.payload
        count = count if most is None else min(most, count)
        order = chance.permutation(count)
        shape = (count, self.payload)
        rows = ids[: count * self.payload].reshape(shape)[order]
        marks = mask[: count * self.payload].reshape(shape)[order]
        if self._start is not None:
            rows = np.concatenate([np.full((count, 1), self._start, np.int32), rows], axis=1)
            marks = np.concatenate([np.zeros((count, 1), np.bool_), marks], axis=1)
        return Packed(rows, marks, len(ids) - count * self.payload)

    def _lay_out(self, chosen: Indices) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        ids: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        mask: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
        for place, passage in enumerate(chosen):
            start, end = int(self._passages.starts[passage]), int(self._passages.ends[passage])
            ids.append(self._blocks.ids[start:end])
            mask.append(self._blocks.loss[start:end])
            continued = place + 1 < len(chosen) and self._continues(int(passage), int(chosen[place + 1]))
            # A chat template may have ended the conversation with this very token, and perhaps a line end after it.
            ended = self._whole[passage] and self._end in self._blocks.ids[max(start, end - 2) : end]
            if self._end is not None and not continued and not ended:
                ids.append(np.asarray([self._end], np.int32))
                mask.append(np.asarray([self._blocks.loss[start:end].all()]))
        return np.concatenate(ids), np.concatenate(mask)

    def _continues(self, first: int, second: int) -> bool:
        return second == first + 1 and self._passages.document[first] == self._passages.document[second]


def cut_passages(blocks: Blocks, length: int) -> Passages:
    """Cut blocks of text into passages of a few sequences each; in a small source, of a part of it.

    Conversations stay whole.
    """
    longest = max(MIN_PASSAGE, min(MAX_PASSAGE_SEQUENCES * length, len(blocks.ids) // PASSAGES))
    starts = np.concatenate([[0], blocks.ends[:-1]]).astype(np.int64)
    borders, document = [], []
    for start, end, number, whole in zip(
        starts.tolist(), blocks.ends.tolist(), blocks.document.tolist(), blocks.whole.tolist(), strict=True
    ):
        pieces = 1 if whole else -(-(end - start) // longest)
        borders += [start + (end - start) * piece // pieces for piece in range(pieces)]
        document += [number] * pieces
    first = np.asarray(borders, np.int64)
    return Passages(first, np.append(first[1:], len(blocks.ids)).astype(np.int64), np.asarray(document, np.int64))


def start_token(tokenizer: Any) -> int | None:
    """The start token, when the tokenizer itself would put it in front of a text."""
    start: int | None = tokenizer.bos_token_id
    return start if start is not None and tokenizer("a")["input_ids"][:1] == [start] else None
