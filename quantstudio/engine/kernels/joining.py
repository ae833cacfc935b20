"""Layers that read the same input, run as one: half the calls, and an input that is rounded to int8 once.

The parts stay what they were, as views of the joined weights, so nothing is in memory twice but scales and biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def join_rows(parts: Sequence[tuple[nn.Module, str]]) -> torch.Tensor:
    """The named tensors of some modules as one, first dimension on first dimension; the modules keep views of it."""
    tensors = [getattr(module, name) for module, name in parts]
    joined = torch.cat([tensor.detach() for tensor in tensors])
    start = 0
    for tensor in tensors:
        tensor.data = joined[start : start + tensor.shape[0]]
        start += tensor.shape[0]
    return joined


def join_biases(biases: Sequence[tuple[torch.Tensor | None, int]]) -> nn.Parameter | None:
    """Biases side by side, each given with its length; zeros for those that are None, or None for all."""
    like = next((bias for bias, _ in biases if bias is not None), None)
    if like is None:
        return None
    parts = [torch.zeros(rows, dtype=like.dtype) if bias is None else bias.detach() for bias, rows in biases]
    return nn.Parameter(torch.cat(parts), requires_grad=False)
