"""Weights and inputs made up to try a kernel on."""

from __future__ import annotations

import torch

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.quantized_weight import QuantizedWeight

_DRAWN_ROWS = 64
"""Rows that are really drawn at random; more repeat them, which no kernel notices and which is quick."""


def random_input(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Activations in bf16, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def random_weight(spec: WeightSpec, rows: int, columns: int, device: torch.device) -> QuantizedWeight:
    """A weight of `[rows, columns]` on this grid. The same one each time."""
    groups = columns // spec.group_size if spec.group_size else 1
    generator = torch.Generator().manual_seed(columns)
    low, high = spec.code_range
    drawn = rows if rows < 2 * _DRAWN_ROWS else _DRAWN_ROWS

    def spread(some: torch.Tensor) -> torch.Tensor:
        return some.repeat(-(-rows // drawn), 1)[:rows].contiguous().to(device)

    def codes(width: int) -> torch.Tensor:
        return spread(torch.randint(low, high + 1, (drawn, width), generator=generator, dtype=torch.int8))

    # Scales of either sign: rounding to nearest chooses negative ones too.
    scales = spread((random_input((drawn, groups), seed=1) + 3) * 0.01)
    return QuantizedWeight(codes(columns), scales, None if spec.symmetric else codes(groups), spec)
