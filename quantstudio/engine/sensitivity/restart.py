"""Running a model again from one of its blocks on, when nothing before it has changed.

Measuring layers one by one runs the model hundreds of times over the same text, and what comes before the changed layer
is the same each time. The outputs of all blocks are kept from one run; in later runs blocks up to the changed one are
answered from there. Embedding, masks and positions are computed as usual, so nothing here knows the architecture.
Models whose blocks hand each other more than their output (shared keys and values) are noticed by a check, and run
whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class Restart:
    """One model and one batch of text, int64 `[sequences, length]` on the model's device."""

    def __init__(self, model: PreTrainedModel, ids: torch.Tensor) -> None:
        self._model = model
        self._ids = ids
        self.blocks = decoder_blocks(model)
        self._outputs: list[Any] = []
        self.logits = self._record()
        self.exact = self._is_exact()

    def run(self, first: int) -> torch.Tensor:
        """Logits `[sequences, length, vocabulary]`, with everything before block `first` as it was."""
        with self._answered_from_memory(first if self.exact else 0):
            return self._forward()

    def _forward(self) -> torch.Tensor:
        return self._model(input_ids=self._ids, use_cache=False).logits

    def _record(self) -> torch.Tensor:
        hooks = [
            block.register_forward_hook(lambda _block, _inputs, output: self._outputs.append(output))
            for block in self.blocks
        ]
        try:
            return self._forward()
        finally:
            for hook in hooks:
                hook.remove()

    def _is_exact(self) -> bool:
        if len(self.blocks) < 2 or len(self._outputs) != len(self.blocks):
            return False
        with self._answered_from_memory(len(self.blocks) - 1):
            return bool(torch.equal(self._forward(), self.logits))

    @contextmanager
    def _answered_from_memory(self, first: int) -> Iterator[None]:
        """Blocks before `first` cost nothing: each hands on what it gave before."""
        answered = list(zip(self.blocks[:first], self._outputs, strict=False))
        for block, output in answered:
            block.forward = lambda *_inputs, output=output, **_settings: output
        try:
            yield
        finally:
            for block, _ in answered:
                del block.forward


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model in order: the longest list of modules of one class in it; empty when there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return list(max(lists, key=lambda blocks: _weights(blocks), default=[]))


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
