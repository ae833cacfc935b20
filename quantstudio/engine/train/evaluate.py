"""How good the student is now, on text that it does not learn from; and what it writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from quantstudio.engine.train.layers import TrainedLinear
from quantstudio.engine.train.loss import Objective, TokenLoss
from quantstudio.engine.train.objective import logits_of, next_tokens

LOGITS_BYTES = 128 << 20
"""Budget for the bf16 logits of one model."""
TOKENS_AT_ONCE = 4096
"""More are no faster, and nobody can stop before they have passed a layer."""
SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 3, 24, 24


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Means over the held-out tokens, in nats. `loss` is what training minimizes."""

    loss: float
    cross_entropy: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.cross_entropy, 700.0))


@torch.no_grad()
def held_out_score(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    ids: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
) -> HeldOutScore:
    """Score `ids` `[sequences, length]`, int64, on the model's device."""
    sums = torch.zeros(3, dtype=torch.float64)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    batch = max(1, min(LOGITS_BYTES // (2 * vocabulary), TOKENS_AT_ONCE) // ids.shape[1])
    for some, wanted in zip(ids.split(batch), labels.split(batch), strict=True):
        theirs = None if teacher is None else logits_of(teacher, some)
        sums += TokenLoss.apply(logits_of(model, some), theirs, next_tokens(wanted), objective).cpu().double()
    tokens = max(1, int((labels[:, 1:] >= 0).sum()))
    return HeldOutScore(float(sums[0]) / tokens, float(sums[1]) / tokens)


@contextmanager
def weights_shown(model: nn.Module) -> Iterator[None]:
    """Round every weight once, for as long as nothing trains: scoring and writing need them many times."""
    layers = [module for module in model.modules() if isinstance(module, TrainedLinear) and module.shown is None]
    for layer in layers:
        layer.shown = layer.seen()
    try:
        yield
    finally:
        for layer in layers:
            layer.shown = None


@torch.no_grad()
def continuations(model: PreTrainedModel, prompts: torch.Tensor) -> torch.Tensor:
    """The likeliest next `NEW_TOKENS` tokens, one by one, after prompts `[count, length]`: int64 `[count, new]`."""
    ids = prompts
    for _ in range(NEW_TOKENS):
        ids = torch.cat((ids, logits_of(model, ids).view(*ids.shape, -1)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids[:, prompts.shape[1] :]
