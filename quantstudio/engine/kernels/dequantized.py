"""The reference: weights expanded to bf16 once, then an ordinary matrix product.

As slow and as large as the original. Other kernels are checked against it, and it takes what no other can run.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import fake_quantize_per_token
from quantstudio.engine.quantized_weight import QuantizedWeight


class Dequantized(nn.Module):
    """Any scheme, any shape, any device."""

    name: ClassVar[str] = "dequantized"
    operator: ClassVar[str] = "linear"
    weight: torch.Tensor

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        return True

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.dequantize())
        self.bias = bias
        self._rounds_input = weight.spec.activations is ActivationKind.INT8_TOKEN

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._rounds_input:
            x = fake_quantize_per_token(x)
        return nn.functional.linear(x, self.weight, self.bias)
