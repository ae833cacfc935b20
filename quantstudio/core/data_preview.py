"""What a model is going to learn from, to look at before it does: plain data for window and terminal."""

from __future__ import annotations

from typing import Literal

from quantstudio.core.result import DataSummary
from quantstudio.core.section import Plain


class PreviewSequence(Plain):
    """One sequence, decoded as the model will see it: separators and the chat template's marks included."""

    split: Literal["calibration", "training", "held_out"]
    text: str
    """A long sequence is cut; then `cut` is true."""
    counted: tuple[tuple[int, int], ...] = ()
    """Ranges of characters in `text`, end exclusive, that count for the loss. In order, without overlap."""
    tokens: int
    cut: bool = False


class DataPreview(Plain):
    """The numbers of every split and the first sequences of each."""

    summary: DataSummary
    """Name of the source, licence, and counts of documents, tokens and sequences."""
    sequences: tuple[PreviewSequence, ...] = ()
    warnings: tuple[str, ...] = ()
    """Sentences for a person: what was left out or done otherwise than asked."""
