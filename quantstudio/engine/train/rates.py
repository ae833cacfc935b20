"""Which parameters take how large steps.

Adam moves every parameter by about the learning rate, whatever its size. The rates of `settings` suit the weights of
matrices, a few hundredths in size; norms and the tables of small models are ten or thirty times as large and would
stand still beside them. They take steps in proportion, up to `_MOST` times. Starter model, W4 g128, 1,600 steps, KL
divergence on ends of books that it never saw: 0.01054 without, 0.01039 with ten times the steps (paired 95 % interval
of the difference -0.00023 to -0.00008), of which the table alone is -0.00009.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

GAIN, WEIGHT = ".gain", ".weight"
GAIN_RATE = 2.0
"""Learning rate of scales, relative to that of weights."""
_MOST = 8.0


def rate_factors(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
    """By name of what trains: its steps as a multiple of the learning rate. Every process must call this.

    Ask before training begins, also where it goes on: the sizes of the start decide. Factors are powers of two, so that
    there are few groups. Where no scales learn (at 8 bits, plain fine-tunes) all take the same steps, and so do LoRA's
    matrices.
    """
    values = {name: value for name, value in named if value.requires_grad}
    found = {name: GAIN_RATE if name.endswith(GAIN) else 1.0 for name in values}
    matrices = {name: value for name, value in values.items() if name.removesuffix(WEIGHT) + GAIN in values}
    if matrices:
        usual = _size(list(matrices.values()))
        for name, value in values.items():  # in this order: processes that train together must ask for the same ones
            if name not in matrices and not name.endswith(GAIN):
                found[name] = _power(_size([value]) / usual)
    return found


def rate_groups(
    named: Iterable[tuple[str, nn.Parameter]], factors: Mapping[str, float], rate: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, one for each factor."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, value in named:
        if value.requires_grad:
            groups.setdefault(factors[name], []).append(value)
    return [{"params": groups[factor], "lr": rate * factor} for factor in sorted(groups)]


def _size(values: list[nn.Parameter]) -> float:
    """Root mean square of all entries together, also of parameters that are spread over processes."""
    norm: Any = nn.utils.get_total_norm([value.detach() for value in values], foreach=True)
    whole = getattr(norm, "full_tensor", None)
    return float(norm if whole is None else whole()) / math.sqrt(sum(value.numel() for value in values))


def _power(ratio: float) -> float:
    return float(2 ** math.floor(math.log2(min(max(ratio, 1.0), _MOST))))
