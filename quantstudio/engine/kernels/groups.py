"""Which of an operator's group sizes serves a weight."""

from __future__ import annotations

from collections.abc import Iterable

from quantstudio.core.schemes import WeightSpec


def operator_group(spec: WeightSpec, columns: int, sizes: Iterable[int]) -> int | None:
    """The first of `sizes` that divides the weight's own groups, or its rows where it has none; if any does."""
    own = spec.group_size or columns
    return next((size for size in sizes if own % size == 0), None)
