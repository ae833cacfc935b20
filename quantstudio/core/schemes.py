"""What a quantization scheme is: numbers of bits, granularity, and what happens to activations.

`WeightSpec` is the plain value that methods, formats and kernels understand; the scheme classes are what a
person picks in a recipe. The names are the field's: W4A16 is 4-bit weights with 16-bit activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PER_CHANNEL = "channel"


class ActivationKind(StrEnum):
    """How a layer's input is treated at run time."""

    NONE = "none"
    """Activations stay in bf16."""
    INT8_TOKEN = "int8_token"  # noqa: S105 - a scheme, no secret
    """Symmetric int8, one scale per token, computed as the model runs (dynamic)."""


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """The grid onto which one weight matrix is put.

    Shapes, for a weight of `[rows, columns]` (output × input features): codes `[rows, columns]`; scales and zero
    points `[rows, columns / group_size]`, or `[rows, 1]` when `group_size` is None (per channel).
    """

    bits: int
    group_size: int | None
    symmetric: bool = True
    activations: ActivationKind = ActivationKind.NONE

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest signed code, both included."""
        half = 1 << (self.bits - 1)
        return -half, half - 1

    def fits(self, columns: int) -> bool:
        """Whether groups of this size divide a row of `columns` weights."""
        return self.group_size is None or columns % self.group_size == 0

    @property
    def label(self) -> str:
        """Short name for tables: `W4A16 g128`, `W8A8`, `W4A16 per channel, asymmetric`."""
        name = f"W{self.bits}A{16 if self.activations is ActivationKind.NONE else 8}"
        grain = f" g{self.group_size}" if self.group_size else (" per channel" if self.bits < 8 else "")
        return name + grain + ("" if self.symmetric else " asymmetric")


INT8_PER_CHANNEL = WeightSpec(bits=8, group_size=None)
"""What a head or embedding becomes when the recipe says int8."""


SMALLEST_GROUP, LARGEST_GROUP = 8, 65536


def _check_group(value: object) -> object:
    """Accept the text that a form or a flag delivers; refuse sizes that no layer has, in words."""
    if value == PER_CHANNEL:
        return value
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        value = int(value)
    if type(value) is not int or not SMALLEST_GROUP <= value <= LARGEST_GROUP:
        raise ValueError(f"a group size is a whole number, at least {SMALLEST_GROUP}, or '{PER_CHANNEL}'")
    return value


GroupSize = Annotated[int | Literal["channel"], BeforeValidator(_check_group)]


class _Scheme(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False)


class W8A16(_Scheme):
    """8-bit weights, 16-bit activations: nearly lossless, about half the size."""

    kind: Literal["w8a16"] = "w8a16"

    def weight_spec(self) -> WeightSpec:
        return WeightSpec(bits=8, group_size=None)


class W8A8(_Scheme):
    """8-bit weights, activations rounded to 8 bits per token: half the size, fast on long prompts."""

    kind: Literal["w8a8"] = "w8a8"

    def weight_spec(self) -> WeightSpec:
        return WeightSpec(bits=8, group_size=None, activations=ActivationKind.INT8_TOKEN)


class _LowBit(_Scheme):
    group_size: GroupSize = Field(
        default=128,
        title="Group size",
        description="How many neighbouring weights share one scale. Smaller groups follow the weights more "
        "closely and cost more space: 128 adds 0.125 bits per weight, 32 adds 0.5. "
        "'channel' gives a whole row one scale.",
        json_schema_extra={"choices": ["32", "64", "128", "224", "256", PER_CHANNEL], "open_choices": True},
    )
    symmetric: bool = Field(
        default=True,
        title="Symmetric",
        description="On: the grid is centred on zero, which is what most kernels run fastest. Off: a zero point "
        "per group fits lopsided weights a little better.",
        json_schema_extra={"advanced": True},
    )

    def _spec(self, bits: int, activations: ActivationKind = ActivationKind.NONE) -> WeightSpec:
        group_size = None if self.group_size == PER_CHANNEL else int(self.group_size)
        return WeightSpec(bits=bits, group_size=group_size, symmetric=self.symmetric, activations=activations)


class W4A16(_LowBit):
    """4-bit weights, 16-bit activations: about a quarter of the size, fastest at writing text."""

    kind: Literal["w4a16"] = "w4a16"

    def weight_spec(self) -> WeightSpec:
        return self._spec(4)


class W4A8(_LowBit):
    """4-bit weights, activations rounded to 8 bits per token ("8da4w" of mobile runtimes)."""

    kind: Literal["w4a8"] = "w4a8"

    def weight_spec(self) -> WeightSpec:
        return self._spec(4, ActivationKind.INT8_TOKEN)


class W3A16(_LowBit):
    """3-bit weights, 16-bit activations: smaller than int4 with a clear loss; wants calibration or training."""

    kind: Literal["w3a16"] = "w3a16"

    def weight_spec(self) -> WeightSpec:
        return self._spec(3)


class W3A8(_LowBit):
    """3-bit weights, activations rounded to 8 bits per token."""

    kind: Literal["w3a8"] = "w3a8"

    def weight_spec(self) -> WeightSpec:
        return self._spec(3, ActivationKind.INT8_TOKEN)


class W2A16(_LowBit):
    """2-bit weights, 16-bit activations: an eighth of the size; without training the model is hardly usable."""

    kind: Literal["w2a16"] = "w2a16"

    def weight_spec(self) -> WeightSpec:
        return self._spec(2)


class W2A8(_LowBit):
    """2-bit weights, activations rounded to 8 bits per token; without training the model is hardly usable."""

    kind: Literal["w2a8"] = "w2a8"

    def weight_spec(self) -> WeightSpec:
        return self._spec(2, ActivationKind.INT8_TOKEN)


AnyScheme = W4A16 | W4A8 | W8A16 | W8A8 | W3A16 | W3A8 | W2A16 | W2A8
Scheme = Annotated[AnyScheme, Field(discriminator="kind")]
SCHEMES: tuple[type[AnyScheme], ...] = (W4A16, W4A8, W8A16, W8A8, W3A16, W3A8, W2A16, W2A8)


def fitting_group_sizes(columns: int, near: int) -> list[int]:
    """Group sizes that divide a row of `columns` weights, at most five, nearest to `near` first."""
    sizes = [size for size in range(SMALLEST_GROUP, min(columns, LARGEST_GROUP) + 1) if columns % size == 0]
    return sorted(sizes, key=lambda size: (abs(size - near), size))[:5]
