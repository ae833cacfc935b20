"""Checkpoints that are whole or absent, and the best weights so far.

The Trainer writes a checkpoint file by file. It does so in a folder of another name; when all is on the disk, the
folder gets its name in one step, and the one before it goes. A killed run finds the last whole one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from quantstudio.core.disk import flush_file, flush_folder, partial_of, remove_tree, write_atomically
from quantstudio.engine.train import group
from quantstudio.engine.train.shard import put, whole

_BEST = "best.safetensors"
_LAST = "checkpoint"
_STATE = "training.json"


@dataclass
class TrainingState:
    """What a resumed run must decide as the first one did."""

    micro_batch: int = 0
    """0: not decided yet."""
    recompute: bool = False
    halvings: int = 0
    """How often the learning rate was halved after a divergence."""


class Checkpoints:
    """The training's part of a run's work folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writing = partial_of(folder / _LAST)
        """Where the Trainer writes."""
        self._old = partial_of(folder / f"{_LAST}-old")

    def tidy(self) -> None:
        """Put right what a killed process has left; first of all, in the process that writes. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_tree(self.writing)
        if self._old.is_dir() and self.last() is None:  # killed between the two renames of `publish`
            self._old.rename(self.folder / _LAST)

    def last(self) -> Path | None:
        """The last whole checkpoint."""
        path = self.folder / _LAST
        return path if path.is_dir() else None

    def publish(self, written: Path) -> None:
        """Make what the Trainer wrote in `written` (a folder in `writing`) the last checkpoint. Raises OSError."""
        for path in written.rglob("*"):
            if path.is_file():
                flush_file(path)
        flush_folder(written)
        last = self.folder / _LAST
        remove_tree(self._old)
        if last.is_dir():
            last.rename(self._old)
        written.rename(last)
        flush_folder(self.folder)
        remove_tree(self._old)

    def keep_best(self, tensors: dict[str, torch.Tensor], step: int, loss: float) -> None:
        path = self.folder / _BEST
        partial = partial_of(path)
        save_file(tensors, partial, {"step": str(step), "loss": repr(loss)})
        flush_file(partial)
        partial.replace(path)

    def best(self) -> tuple[int, float] | None:
        """Step and held-out loss of the best weights."""
        path = self.folder / _BEST
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        return int(about["step"]), float(about["loss"])

    def load_best(self, model: nn.Module) -> None:
        """Put the best weights into a student. Raises KeyError when there are none for it."""
        load_trained(model, load_file(self.folder / _BEST))

    def read_state(self) -> TrainingState:
        path = self.folder / _STATE
        return TrainingState(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else TrainingState()

    def write_state(self, state: TrainingState) -> None:
        write_atomically(self.folder / _STATE, json.dumps(asdict(state)) + "\n")


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter that trains, whole, by name; one that has several places (tied) under its first.

    Where several processes train, every one must call this, and only the first gets anything.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            tensor = whole(value.detach())
            if group.is_first():
                found[name] = tensor.contiguous()
    group.meet()
    return found


@torch.no_grad()
def load_trained(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """The opposite of `trained_tensors`, in every process. Raises KeyError when one is missing."""
    for name, value in model.named_parameters():
        if value.requires_grad:
            put(value, tensors[name])
