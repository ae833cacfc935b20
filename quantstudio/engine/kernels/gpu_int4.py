"""2 to 4 bits on NVIDIA GPUs with our own programs: every weight is read once, as it lies in memory.

One row (a token) is multiplied out of the packed words; more rows (a prompt) by the weight in bf16, unpacked for that
product alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels.activations import quantize_per_token
from quantstudio.engine.kernels.groups import operator_group
from quantstudio.engine.kernels.joining import join_biases, join_rows
from quantstudio.engine.quantized_weight import QuantizedWeight

if TYPE_CHECKING:
    from quantstudio.engine.kernels.gpu_calls import Matrix

GROUPS = (128, 64, 32)
_OLDEST = (8, 0)
"""Compute capability of the first GPUs with bf16."""


@cache
def has_programs() -> bool:
    """Whether our GPU programs can run here: they need the package triton, which not every torch brings along."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability() >= _OLDEST


class GpuInt4(nn.Module):
    """Symmetric or not, groups (or rows) that are multiples of 32."""

    name: ClassVar[str] = "gpu_int4"
    operator: ClassVar[str] = "packed words, one pass (Triton)"
    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    @staticmethod
    def supports(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> bool:
        fits = spec.bits <= 4 and operator_group(spec, columns, GROUPS) is not None
        return device.type == "cuda" and fits and has_programs()

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        from quantstudio.engine.kernels.gpu_calls import pack_words

        columns = weight.shape[1]
        self.group = operator_group(weight.spec, columns, GROUPS) or 0
        self.rounds_input = weight.spec.activations is ActivationKind.INT8_TOKEN
        repeats = columns // self.group // weight.scales.shape[1]
        zeros = None
        if weight.zero_points is not None:
            zeros = (weight.zero_points + 8).to(torch.uint8).repeat_interleave(repeats, dim=1)
        self.register_buffer("words", pack_words(weight.codes, self.group))
        self.register_buffer("scales", weight.scales.repeat_interleave(repeats, dim=1))
        self.register_buffer("zeros", zeros)
        self.bias = bias

    @classmethod
    def join(cls, parts: Sequence[GpuInt4]) -> GpuInt4 | None:
        """One module whose output is that of the parts side by side; they become views of it. None: they differ."""
        kinds = {(part.group, part.rounds_input, part.zeros is None, part.words.shape[1]) for part in parts}
        if len(kinds) > 1:
            return None
        joined = cls.__new__(cls)
        nn.Module.__init__(joined)
        joined.group, joined.rounds_input = parts[0].group, parts[0].rounds_input
        joined.register_buffer("words", join_rows([(part, "words") for part in parts]))
        joined.register_buffer("scales", join_rows([(part, "scales") for part in parts]))
        zeros = None if parts[0].zeros is None else join_rows([(part, "zeros") for part in parts])
        joined.register_buffer("zeros", zeros)
        joined.bias = join_biases([(part.bias, part.words.shape[0]) for part in parts])
        return joined

    def matrix(self) -> Matrix:
        """The weight as the programs read it."""
        from quantstudio.engine.kernels.gpu_calls import Matrix

        return Matrix(4, self.words, self.scales, self.zeros, self.group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from quantstudio.engine.kernels.gpu_calls import product, unpacked

        rows = x.reshape(-1, x.shape[-1])
        if self.rounds_input:
            rows, scales = quantize_per_token(rows)
        if rows.shape[0] == 1:
            y = rows.new_empty(1, self.words.shape[0])
            product(rows.contiguous(), self.matrix(), y)
        else:
            y = nn.functional.linear(rows, unpacked(self.matrix()))
        if self.rounds_input:
            y = y * scales
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)
