"""Texts that end an answer: found across pieces, never shown, not even their beginning."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Lets an answer through up to the first stop text. What could become one is held back until that is decided."""

    def __init__(self, texts: Sequence[str]) -> None:
        """`\\n` in a text, as people type it, stands for a line break."""
        self._texts = [text.replace("\\n", "\n") for text in texts if text]
        self._held = ""
        self.found = False
        """Whether a stop text has come. Nothing is let through from then on."""

    def add(self, piece: str) -> str:
        """What may be shown now that `piece` has been written, perhaps nothing."""
        if self.found:
            return ""
        text = self._held + piece
        ends = [at for stop in self._texts if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        shown = len(text) - max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """What was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
