"""The recipe's precision section: the same bits for every layer, or bits allotted by measured sensitivity.

A target (average bits, size, loss) is turned into a list of bits per layer by measuring every layer once and allotting;
the list is what is carried out, and it is recorded with the run. `PerLayer` is that list, written down or edited.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from quantstudio.core.section import Section

ALLOTTED_BITS = (2, 3, 4, 8)
"""Bits that a layer can be given."""


class Uniform(Section):
    """Every layer gets the bits of the scheme."""

    kind: Literal["uniform"] = "uniform"


class AverageBits(Section):
    """Sensitive layers get more bits, others fewer, so that the layers' average is this."""

    kind: Literal["average_bits"] = "average_bits"
    average_bits: float = Field(
        default=3.5,
        ge=2.0,
        le=8.0,
        title="Average bits",
        description="Bits per weight of the layers on average, scales not counted. Head and embedding are not counted.",
    )


class FileSize(Section):
    """Sensitive layers get more bits, others fewer, so that the model's weights take this much space."""

    kind: Literal["file_size"] = "file_size"
    file_size_mb: float = Field(
        default=1000.0,
        ge=0.1,
        le=1e6,
        title="Size of the weights (MB)",
        description="Everything counted: layers, head, embedding, scales.",
    )


class LargestLoss(Section):
    """The fewest bits whose predicted loss stays below a bound."""

    kind: Literal["largest_loss"] = "largest_loss"
    largest_kl: float = Field(
        default=0.05,
        gt=0.0,
        le=100.0,
        title="Largest KL divergence",
        description="How far the next-token probabilities may move from the original's, in nats, as predicted from "
        "the layers measured one by one. 0.05 is what int4 in groups of 128 costs a small model.",
    )


class PerLayer(Section):
    """Bits that you give each layer, or that were allotted and saved."""

    kind: Literal["per_layer"] = "per_layer"
    bits: tuple[str, ...] = Field(
        default=(),
        title="Bits of layers",
        description="Lines of a layer's name or pattern, '=', and its bits: model.layers.0.*=8. The first that matches "
        "counts; layers that none matches get the scheme's bits.",
    )

    @field_validator("bits")
    @classmethod
    def _lines_are_pattern_and_bits(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        allowed = "|".join(map(str, ALLOTTED_BITS))
        for line in lines:
            if not re.fullmatch(rf"[\w.*?\[\]-]{{1,300}}=({allowed})", line):
                raise ValueError(f"{line[:80]!r} is no 'layer=bits'; bits are 2, 3, 4 or 8")
        return lines


Precision = Annotated[
    Uniform | AverageBits | FileSize | LargestLoss | PerLayer,
    Field(discriminator="kind"),
]
TARGETS = frozenset({"average_bits", "file_size", "largest_loss"})
"""Kinds that have the layers' sensitivity measured, which reads the recipe's data section."""
PRECISION_LABELS: dict[str, JsonValue] = {
    "uniform": "The same for every layer",
    "average_bits": "By sensitivity, to an average",
    "file_size": "By sensitivity, to a size",
    "largest_loss": "By sensitivity, to a loss",
    "per_layer": "As listed",
}
