"""Text from tokens as they arrive, whole characters only.

A character may be spread over several tokens, and some tokenizers drop or add a space depending on the neighbours.
So each step decodes a short stretch that begins at a place known to be whole, with and without the new token, and
passes on the difference once it no longer ends in the mark of an incomplete character.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Turns one answer's tokens into pieces of text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0
        self._emitted = 0

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps empty."""
        self._tokens.append(token)
        return self._advance(keep_incomplete=True)

    def finish(self) -> str:
        """What is left at the end, incomplete characters as replacement marks."""
        return self._advance(keep_incomplete=False)

    def _advance(self, *, keep_incomplete: bool) -> str:
        before = self._decode(self._tokens[self._start : self._emitted])
        after = self._decode(self._tokens[self._start :])
        if len(after) <= len(before) or (keep_incomplete and after.endswith(_INCOMPLETE)):
            return ""
        self._start, self._emitted = self._emitted, len(self._tokens)
        return after[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
