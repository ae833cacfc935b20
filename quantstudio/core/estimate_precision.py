"""What a target for the bits of layers comes to before sensitivity is measured: how large, and whether it can be met.

Sizes depend on the bits alone and are near exact; which layer gets which bits is decided in the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from quantstudio.core.humanize import human_bytes
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.plan import QuantizationPlan, make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_precision import ALLOTTED_BITS, AverageBits, FileSize, PerLayer

MB = 1_000_000


def with_target(info: ModelInfo, recipe: Recipe, plan: QuantizationPlan) -> QuantizationPlan:
    """The plan with the size that the recipe aims at; the same where it aims at none, or at a loss."""
    precision = recipe.precision
    if not isinstance(precision, AverageBits | FileSize):
        return plan
    ladder = _layer_bytes(info, recipe)
    rest = plan.sizes.total - plan.sizes.layers
    if isinstance(precision, FileSize):
        layers = round(min(max(precision.file_size_mb * MB - rest, ladder[2]), ladder[8]))
    else:
        layers = _between(ladder, precision.average_bits)
    return replace(plan, sizes=plan.sizes.model_copy(update={"layers": layers}))


def target_faults(info: ModelInfo, recipe: Recipe, plan: QuantizationPlan) -> Iterator[tuple[str, str, bool]]:
    """(field, what is wrong with a size that is aimed at, whether the run cannot meet it)."""
    precision = recipe.precision
    if not isinstance(precision, FileSize):
        return
    ladder = _layer_bytes(info, recipe)
    rest = plan.sizes.total - plan.sizes.layers
    least, most = ladder[2] + rest, ladder[8] + rest
    field, target = "precision.file_size_mb", precision.file_size_mb * MB
    if target < least:
        yield field, f"With 2 bits in every layer the weights still take {human_bytes(least)}. Aim for more.", True
    elif target > most:
        yield (
            field,
            f"With 8 bits in every layer the weights take {human_bytes(most)}; more changes nothing.",
            False,
        )


def _layer_bytes(info: ModelInfo, recipe: Recipe) -> dict[int, int]:
    """Bytes of the layers when all have so many bits."""

    def alike(bits: int) -> Recipe:
        return recipe.model_copy(update={"precision": PerLayer(bits=(f"*={bits}",))})

    return {bits: make_plan(info, alike(bits)).sizes.layers for bits in ALLOTTED_BITS}


def _between(ladder: dict[int, int], average: float) -> int:
    steps = list(ladder.items())
    for (fewer, small), (more, large) in pairwise(steps):
        if average <= more:
            return round(small + (large - small) * (average - fewer) / (more - fewer))
    return steps[-1][1]
