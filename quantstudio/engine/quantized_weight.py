"""The one value that methods, formats and kernels share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quantstudio.core.schemes import WeightSpec


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight matrix on a grid of integers.

    `codes`: int8 `[rows, columns]`, signed, within `spec.code_range`. `scales`: bf16 `[rows, groups]`.
    `zero_points`: int8 `[rows, groups]`, or None when symmetric. `groups` is columns / group size, or 1 per channel.
    weight ≈ (codes - zero_points) * scales, computed in the scales' dtype.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    spec: WeightSpec

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), that is (output features, input features)."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> torch.Tensor:
        """The weight that the codes stand for, `[rows, columns]` in the scales' dtype: every kernel's reference."""
        rows, columns = self.shape
        codes = self.codes.view(rows, self.scales.shape[1], -1)
        if self.zero_points is not None:
            codes = codes.to(torch.int16) - self.zero_points.unsqueeze(-1)
        return (codes.to(self.scales.dtype) * self.scales.unsqueeze(-1)).view(rows, columns)
