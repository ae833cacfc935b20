"""Parts of a block that will not change any more answer from memory when the same text passes again.

A block is run once for each of its stages, and attention would be computed in every one of those runs, though once its
matrices are quantized it says the same each time. On the starter model that was most of what calibration took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Settled:
    """What settled modules have answered: for each piece of text, and for each call within it."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._place: int | None = None
        self._calls: dict[nn.Module, int] = {}

    def settle(self, module: nn.Module) -> None:
        """From now on the module's answers are kept, on the CPU, until `forget`."""
        if module not in self._modules:
            self._modules.append(module)
            module.forward = self._remembering(module, module.forward)

    def start(self, place: int | None) -> None:
        """A run begins, with the piece of text of this number; with None nothing is kept and nothing answered."""
        self._place = place
        self._calls.clear()

    def forget(self) -> None:
        """Modules answer by themselves again."""
        for module in self._modules:
            del module.forward
        self._modules.clear()

    def _remembering(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        answers: dict[tuple[int, int], Any] = {}

        def answer(*args: Any, **kwargs: Any) -> Any:
            if self._place is None:
                return forward(*args, **kwargs)
            call = self._calls[module] = self._calls.get(module, -1) + 1
            key = (self._place, call)
            if key not in answers:
                output = forward(*args, **kwargs)
                answers[key] = _moved(output, torch.device("cpu")), _device_of(output)
                return output
            kept, device = answers[key]
            return _moved(kept, device)

        return answer


def _moved(answer: Any, device: torch.device) -> Any:
    if isinstance(answer, torch.Tensor):
        return answer.to(device)
    return tuple(_moved(each, device) for each in answer) if isinstance(answer, tuple) else answer


def _device_of(answer: Any) -> torch.device:
    if isinstance(answer, tuple):
        return next((_device_of(each) for each in answer if isinstance(each, torch.Tensor)), torch.device("cpu"))
    return answer.device if isinstance(answer, torch.Tensor) else torch.device("cpu")
