"""Sequences in the order in which they are learnt from: fixed by the seed, whatever the micro-batch or the GPUs.

The order is written out here for the whole training, so that a resumed run needs only the number of its step, and every
passage is seen once before any is seen again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from quantstudio.engine.train.loss import IGNORED


def labelled(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Labels for tokens `[sequences, length]`: the tokens themselves where they count, IGNORED elsewhere."""
    return torch.where(mask, ids, IGNORED)


@dataclass(frozen=True)
class Passages:
    """What a training reads of `PreparedData`: token ids and masks of what counts, `[sequences, length]` each."""

    training: torch.Tensor
    training_mask: torch.Tensor
    held_out: torch.Tensor
    held_out_mask: torch.Tensor

    def save(self, path: Path) -> None:
        """Write them for another process, replacing the file. Raises OSError."""
        save_file({name: value.contiguous() for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The opposite of `save`."""
        return cls(**load_file(path))


class Lessons(Dataset[dict[str, torch.Tensor]]):
    """`steps × batch` sequences in order, each as `input_ids` and `labels`, int64 `[length]`."""

    def __init__(self, ids: torch.Tensor, mask: torch.Tensor, count: int, seed: int) -> None:
        self._ids, self._labels = ids, labelled(ids, mask)
        chance = np.random.default_rng(seed)
        rounds = -(-count // len(ids))
        self._order = np.concatenate([chance.permutation(len(ids)) for _ in range(rounds)])[:count]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        row = int(self._order[place])
        return {"input_ids": self._ids[row], "labels": self._labels[row]}
