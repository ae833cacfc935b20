"""The text of a run as a model reads it: sequences of tokens in three splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quantstudio.core.result import DataSummary


@dataclass(frozen=True)
class PreparedData:
    """Sequences of token ids, int64 `[sequences, sequence_length]`, and bool masks of the same shape.

    A mask says which tokens count for the loss: all of plain text, in conversations the answers or all, never a start
    token that was put before a sequence. There may be fewer sequences than asked for (with a warning), never none.
    """

    calibration: torch.Tensor
    training: torch.Tensor
    training_mask: torch.Tensor
    held_out: torch.Tensor
    held_out_mask: torch.Tensor
    summary: DataSummary


def fingerprint(*parts: NDArray[np.int32]) -> str:
    """sha256 over the shapes and every token (little-endian int32) of calibration, training and held-out sequences."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part.shape).encode())
        digest.update(np.ascontiguousarray(part, "<i4").data)
    return digest.hexdigest()
