"""The module that is trained: the student, with the teacher beside it, from tokens to one loss."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from quantstudio.engine.train.loss import IGNORED, Objective, TokenLoss


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits `[sequences × length, vocabulary]` of every position."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.flatten(0, 1)


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """What each position is to predict, `[sequences × length]`: the next label; nothing at a sequence's end.

    Shifting the labels and not the logits saves a copy of the logits.
    """
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()


class Lesson(nn.Module):
    """Tokens in, summed losses out. The teacher is no submodule: it is neither trained, nor saved, nor sharded."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel | None, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)
        self._objective = objective

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """fp32 `[3]`: loss, cross entropy, KL, each summed over the positions that count."""
        (teacher,) = self._teacher
        theirs = None
        if teacher is not None:
            with torch.no_grad():
                theirs = logits_of(teacher, input_ids)
        return TokenLoss.apply(logits_of(self.student, input_ids), theirs, next_tokens(labels), self._objective)
