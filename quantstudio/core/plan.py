"""What a recipe would do to a model, layer by layer: a pure function of the two.

The window, the command line and the engine all take their word from here, so what is shown before a run is what the run
does: which layers get which grid, which stay and why, what does not fit, and how many bytes come out.

Bytes are those of the compressed-tensors encoding as the engine writes it: codes packed into int32 along each row with
two int64 for the shape, except int8 codes of head, embedding and layers with int8 activations, which lie one to a byte;
bf16 scales; four bytes for the zero point of a group, because packed zero points are padded. Tensors that stay are
written as bf16 where they are floating point, and as they are otherwise. File headers are not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from math import ceil, gcd

from quantstudio.core.errors import LayerMisfit, ModelUnsupported
from quantstudio.core.first_layers import kept_part
from quantstudio.core.humanize import human_bytes
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import FLOAT_DTYPES, Part, TensorInfo, WeightSlot
from quantstudio.core.recipe import EmbeddingChoice, HeadChoice, OnMisfit, Recipe
from quantstudio.core.recipe_precision import PerLayer
from quantstudio.core.result import Sizes
from quantstudio.core.schemes import INT8_PER_CHANNEL, SMALLEST_GROUP, ActivationKind, WeightSpec, fitting_group_sizes

SHAPE_BYTES = 16
KEPT_BY_PATTERN = "kept by the recipe"
KEPT_HEAD = "the recipe keeps the head"
KEPT_EMBEDDING = "the recipe keeps the embedding"


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens to one weight matrix."""

    slot: WeightSlot
    spec: WeightSpec | None
    """The grid it is put on; None: it stays as it is."""
    reason: str = ""
    """Why it stays, or why its group size is another than the recipe's."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """A weight matrix whose rows the group size does not divide."""

    slot: WeightSlot
    group_size: int
    nearest: tuple[int, ...]
    """Group sizes that do divide its rows, nearest first; empty when there is none."""


@dataclass(frozen=True)
class QuantizationPlan:
    """Every weight matrix of a model with its fate, and what comes of it."""

    layers: tuple[LayerPlan, ...]
    misfits: tuple[Misfit, ...]
    notices: tuple[str, ...]
    shared_table: bool
    """Tied model whose head and embedding stay one int8 table."""
    sizes: Sizes
    """Predicted bytes of the tensors in the output, by part. A tied matrix counts as embedding; where it is a shared
    int8 table, the head still has scales of its own."""
    original_sizes: Sizes
    on_misfit: OnMisfit = OnMisfit.REFUSE
    source_quantization: str = ""
    """How the source model is quantized already; such a model is refused."""
    tied_output: bool = False
    """Whether the output's head and embedding are one matrix (kept, or one int8 table)."""

    @property
    def quantized(self) -> tuple[LayerPlan, ...]:
        """The matrices that are put on a grid."""
        return tuple(layer for layer in self.layers if layer.spec)

    @property
    def kept(self) -> tuple[LayerPlan, ...]:
        """The matrices that stay as they are, each with its reason."""
        return tuple(layer for layer in self.layers if not layer.spec)

    def require(self) -> None:
        """Raise what stands in the way: LayerMisfit (the recipe refuses), ModelUnsupported (nothing can be done)."""
        if self.source_quantization:
            raise ModelUnsupported(
                f"This model is already quantized ({self.source_quantization}).",
                why="Rounding rounded weights again loses quality twice.",
                hint="Start from the original model in bf16, fp16 or fp32.",
                field="model.id",
            )
        if self.misfits and self.on_misfit is OnMisfit.REFUSE:
            raise self._misfit_error()
        if not self.quantized:
            raise ModelUnsupported(
                "Nothing in this model can be quantized as the recipe asks.",
                why=" ".join(_kept_sentences(self.layers)),
                hint="Pick another model, or let the recipe quantize more layers.",
                field="model.id",
            )

    def _misfit_error(self) -> LayerMisfit:
        count = len(self.misfits)
        size = self.misfits[0].group_size
        sizes = fitting_all(self.misfits)
        other = f"Use a group size of {_or(sizes)}, or set" if sizes else "Set"
        return LayerMisfit(
            f"The group size {size} does not divide the rows of {count} layer{'s' if count > 1 else ''}.",
            why=" ".join(misfit_sentences(self.misfits)),
            hint=f"{other} layers.on_misfit to 'smaller' or 'keep'.",
            field="scheme.group_size",
        )


def make_plan(info: ModelInfo, recipe: Recipe) -> QuantizationPlan:
    """Plan a recipe for a model. Never raises; `QuantizationPlan.require` says whether the plan may be carried out."""
    misfits: list[Misfit] = []
    original = _original_sizes(info)
    info = kept_part(info, recipe)
    layers = [_plan_slot(slot, recipe, misfits) for slot in info.slots]
    tied_output = info.tied and len({layer.spec for layer in layers if _is_vocabulary(layer)}) == 1
    shared = tied_output and any(layer.spec for layer in layers if _is_vocabulary(layer))
    sizes = _sizes(info, layers, tied_output=tied_output)
    return QuantizationPlan(
        layers=tuple(layers),
        misfits=tuple(misfits),
        notices=tuple(_notices(info, recipe, layers, misfits, tied_output=tied_output)),
        shared_table=shared,
        sizes=sizes,
        original_sizes=original,
        on_misfit=recipe.layers.on_misfit,
        source_quantization=info.quantized,
        tied_output=tied_output,
    )


def quantized_bytes(slot: WeightSlot, spec: WeightSpec) -> int:
    """Bytes that a weight takes in the output on this grid."""
    rows, columns = slot.rows, slot.columns
    scales = rows * (columns // spec.group_size if spec.group_size else 1)
    plain = spec.bits == 8 and (slot.part is not Part.LAYER or spec.activations is not ActivationKind.NONE)
    codes = rows * columns if plain else 4 * rows * ceil(columns * spec.bits / 32) + SHAPE_BYTES
    zero_points = 0 if spec.symmetric else scales * (1 if plain else 4)
    return codes + 2 * scales + zero_points


def kept_bytes(tensor: TensorInfo) -> int:
    """Bytes of a tensor that is not quantized: floating point becomes bf16."""
    if tensor.dtype not in FLOAT_DTYPES:
        return tensor.nbytes
    return tensor.nbytes // {"F64": 4, "F32": 2}.get(tensor.dtype, 1)


def smaller_group(columns: int, group_size: int) -> int | None:
    """The next smaller group size that divides `columns`, or None if none of at least 8 does.

    A multiple of 32 goes before a larger size, because fast kernels exist for those alone.
    """
    fits = [size for size in range(SMALLEST_GROUP, min(group_size, columns) + 1) if columns % size == 0]
    return max(fits, key=lambda size: (size % 32 == 0, size), default=None)


def fitting_all(misfits: Iterable[Misfit]) -> list[int]:
    """Group sizes that divide the rows of all these layers, nearest to the recipe's first, at most three."""
    misfits = list(misfits)
    if not misfits:
        return []
    return fitting_group_sizes(gcd(*(misfit.slot.columns for misfit in misfits)), misfits[0].group_size)[:3]


def unmatched_patterns(info: ModelInfo, recipe: Recipe) -> list[str]:
    """Patterns of layers to keep that no layer's name matches, most likely mistyped."""
    modules = [slot.module for slot in info.slots]
    return [pattern for pattern in recipe.layers.keep if not any(fnmatchcase(module, pattern) for module in modules)]


def misfit_sentences(misfits: Iterable[Misfit]) -> list[str]:
    """One sentence for each row length that does not fit, naming every layer and the sizes that would fit."""
    by_columns: dict[int, list[Misfit]] = {}
    for misfit in misfits:
        by_columns.setdefault(misfit.slot.columns, []).append(misfit)
    sentences = []
    for columns, group in by_columns.items():
        names = ", ".join(short_names([misfit.slot.module for misfit in group]))
        nearest = group[0].nearest
        fits = f"nearest that fit: {', '.join(map(str, nearest))}" if nearest else "no group size fits"
        sentences.append(f"{names}: rows of {columns} weights ({fits}).")
    return sentences


def short_names(modules: Sequence[str]) -> list[str]:
    """Layer names with the numbers of consecutive blocks folded: `model.layers.0–23.mlp.down_proj`."""
    blocks: dict[str, list[int]] = {}
    for module in modules:
        found = re.search(r"\.(\d{1,6})\.", module)
        key = f"{module[: found.start(1)]}\0{module[found.end(1) :]}" if found else module
        blocks.setdefault(key, []).extend([int(found.group(1))] if found else [])
    return [key.replace("\0", _ranges(numbers)) for key, numbers in blocks.items()]


def _plan_slot(slot: WeightSlot, recipe: Recipe, misfits: list[Misfit]) -> LayerPlan:
    if not slot.quantizable:
        return LayerPlan(slot, None, slot.why_not)
    if any(fnmatchcase(slot.module, pattern) for pattern in recipe.layers.keep):
        return LayerPlan(slot, None, KEPT_BY_PATTERN)
    spec, reason = _asked(slot, recipe)
    if spec is None or spec.group_size is None or spec.fits(slot.columns):
        return LayerPlan(slot, spec, reason)
    size = spec.group_size
    misfits.append(Misfit(slot, size, _nearest(slot.columns, size)))
    smaller = smaller_group(slot.columns, size) if recipe.layers.on_misfit is OnMisfit.SMALLER else None
    if smaller:
        reason = f"groups of {smaller}: {size} does not divide {slot.columns}"
        return LayerPlan(slot, replace(spec, group_size=smaller), reason)
    return LayerPlan(slot, None, f"{size} does not divide its rows of {slot.columns}")


@lru_cache(maxsize=4096)
def _nearest(columns: int, group_size: int) -> tuple[int, ...]:
    """Remembered, because hundreds of layers share a few row lengths and a form plans at every change."""
    return tuple(fitting_group_sizes(columns, group_size))


def _asked(slot: WeightSlot, recipe: Recipe) -> tuple[WeightSpec | None, str]:
    """The grid that the recipe asks for, or the reason why it asks for none."""
    part = slot.part
    if part is Part.EMBEDDING:
        keep = recipe.layers.embedding is EmbeddingChoice.KEEP
        return (None, KEPT_EMBEDDING) if keep else (INT8_PER_CHANNEL, "")
    if part is Part.HEAD and recipe.layers.head is HeadChoice.KEEP:
        return None, KEPT_HEAD
    if part is Part.HEAD and recipe.layers.head is HeadChoice.INT8:
        return INT8_PER_CHANNEL, ""
    spec = recipe.scheme.weight_spec()
    if part is Part.LAYER and isinstance(recipe.precision, PerLayer):
        return with_bits(spec, listed_bits(slot.module, recipe.precision) or spec.bits), ""
    return spec, ""


def with_bits(spec: WeightSpec, bits: int) -> WeightSpec:
    """The same grid with other bits. 8-bit weights have one scale per row, for which there are fast kernels."""
    return replace(spec, bits=bits, group_size=None if bits == 8 else spec.group_size) if bits != spec.bits else spec


def listed_bits(module: str, precision: PerLayer) -> int | None:
    """The bits that the first matching line gives a layer; None when no line matches."""
    for line in precision.bits:
        pattern, _, bits = line.rpartition("=")
        if fnmatchcase(module, pattern):
            return int(bits)
    return None


def _is_vocabulary(layer: LayerPlan) -> bool:
    return layer.slot.part in (Part.EMBEDDING, Part.HEAD)


def _sizes(info: ModelInfo, layers: list[LayerPlan], *, tied_output: bool) -> Sizes:
    tensors = {tensor.name: tensor for tensor in info.tensors}
    total = dict.fromkeys(Part, 0)
    for layer in layers:
        slot = layer.slot
        if info.tied and tied_output and slot.part is Part.HEAD:
            total[Part.HEAD] += 2 * slot.rows if layer.spec else 0
        else:
            total[slot.part] += _bytes(layer, tensors[slot.tensor])
    in_slots = {layer.slot.tensor for layer in layers}
    total[Part.REST] += sum(kept_bytes(tensor) for tensor in info.tensors if tensor.name not in in_slots)
    return _as_sizes(total)


def _bytes(layer: LayerPlan, tensor: TensorInfo) -> int:
    return quantized_bytes(layer.slot, layer.spec) if layer.spec else kept_bytes(tensor)


def _original_sizes(info: ModelInfo) -> Sizes:
    total = dict.fromkeys(Part, 0)
    for tensor in info.tensors:
        total[tensor.part] += tensor.nbytes
    return _as_sizes(total)


def _as_sizes(total: dict[Part, int]) -> Sizes:
    return Sizes(
        embedding=total[Part.EMBEDDING], layers=total[Part.LAYER], head=total[Part.HEAD], rest=total[Part.REST]
    )


def _notices(
    info: ModelInfo, recipe: Recipe, layers: list[LayerPlan], misfits: list[Misfit], *, tied_output: bool
) -> Iterable[str]:
    if info.removed_layers:
        yield (
            f"Only the first {info.layers} of {info.layers + info.removed_layers} layers are kept. Before it has "
            "trained, a model without the others writes nonsense."
        )
    if info.tied and not tied_output:
        yield _untied_notice(info, layers)
    yield from _kept_sentences([layer for layer in layers if not layer.slot.quantizable])
    for pattern in unmatched_patterns(info, recipe):
        yield f"No layer is called {pattern}; this pattern of layers to keep does nothing."
    if misfits and recipe.layers.on_misfit is not OnMisfit.REFUSE:
        yield from _misfit_notices(misfits, layers)
    if info.dtype in FLOAT_DTYPES - {"BF16"}:
        yield f"The model is stored as {info.dtype}; what is not quantized is written as bf16."


def _untied_notice(info: ModelInfo, layers: list[LayerPlan]) -> str:
    tensors = {tensor.name: tensor for tensor in info.tensors}
    head = next(layer for layer in layers if layer.slot.part is Part.HEAD)
    cost = _bytes(head, tensors[head.slot.tensor])
    return (
        "Head and embedding are one matrix in this model. As the recipe treats them differently, the head becomes a "
        f"matrix of its own, which adds {human_bytes(cost)}."
    )


def _misfit_notices(misfits: list[Misfit], layers: list[LayerPlan]) -> Iterable[str]:
    planned = {layer.slot.module: layer for layer in layers}
    groups: dict[str, list[str]] = {}
    for misfit in misfits:
        layer = planned[misfit.slot.module]
        outcome = f"in {layer.reason}" if layer.spec else f"kept in bf16: {layer.reason}"
        groups.setdefault(outcome, []).append(misfit.slot.module)
    for outcome, modules in groups.items():
        yield f"{', '.join(short_names(modules))}: {outcome}."


def _kept_sentences(layers: Sequence[LayerPlan]) -> list[str]:
    """Which matrices stay, by reason, counted and named."""
    reasons = Counter(layer.reason for layer in layers if not layer.spec)
    sentences = []
    for reason, count in reasons.items():
        names = short_names([layer.slot.module for layer in layers if layer.reason == reason and not layer.spec])
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        noun = "matrix stays" if count == 1 else "matrices stay"
        sentences.append(f"{count} weight {noun} in bf16 ({reason}): {shown}.")
    return sentences


def _ranges(numbers: list[int]) -> str:
    """`[0, 1, 2, 5]` → `0–2,5`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def _or(sizes: Sequence[int]) -> str:
    *first, last = map(str, sizes)
    return f"{', '.join(first)} or {last}" if first else last
