"""A model cut down to its first decoder layers: what stays of its files, and how its config.json says so.

Layers are found by the number in their tensors' names, so nothing is read and the window can say what would come out.
The engine compares the cut model with the whole one before it trains (`engine.train.shorten`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from quantstudio.core.humanize import plural
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import IN_ANOTHER_TOWER
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import Qat
from quantstudio.core.recipe_precision import TARGETS

FIELD = "method.keep_layers"
_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Names under which configurations keep the number of decoder layers."""


def layers_kept(recipe: Recipe) -> int:
    """How many of the first decoder layers the recipe keeps; 0: all of them."""
    return recipe.method.keep_layers if isinstance(recipe.method, Qat) else 0


def kept_part(info: ModelInfo, recipe: Recipe) -> ModelInfo:
    """The model that the recipe trains and saves: the whole one, or its first layers with everything around them."""
    count = layers_kept(recipe)
    return first_layers(info, count) if 0 < count < info.layers else info


def first_layers(info: ModelInfo, count: int) -> ModelInfo:
    """The model without the decoder layers from number `count` on."""
    tensors = tuple(tensor for tensor in info.tensors if _layer(tensor.name) < count)
    names = {tensor.name for tensor in tensors}
    removed = sum(prod(tensor.shape) for tensor in info.tensors if tensor.name not in names)
    return replace(
        info,
        tensors=tensors,
        slots=tuple(slot for slot in info.slots if slot.tensor in names),
        parameters=info.parameters - removed,
        nbytes=sum(tensor.nbytes for tensor in tensors),
        layers=count,
        removed_layers=info.layers - count,
        removed_parameters=removed,
    )


def shortened_config(config: dict[str, Any], count: int) -> dict[str, Any]:
    """The fields of a configuration that change when only the first `count` layers stay, with their new values.

    These are the number of layers and every list that has an entry for each of them.
    """
    known = [name for name in _COUNTS if isinstance(config.get(name), int)]
    changed: dict[str, Any] = dict.fromkeys(known, count)
    whole = config[known[0]] if known else 0
    for name, value in config.items():
        if "layer" in name and isinstance(value, list) and len(value) == whole:
            changed[name] = value[:count]
    return changed


def first_layers_faults(info: ModelInfo, recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Why the recipe cannot keep only the first layers of this model: (field, what, hint)."""
    count, method = layers_kept(recipe), recipe.method
    if not count or not isinstance(method, Qat):
        return
    present = {number for tensor in info.tensors if (number := _layer(tensor.name)) >= 0}
    towers = any(slot.why_not == IN_ANOTHER_TOWER for slot in info.slots)
    if towers or not info.layers or not set(range(info.layers)) <= present:
        yield FIELD, "Layers of this kind of model cannot be removed: where they begin and end is not known.", _ALL
    elif count >= info.layers:
        most = f"Keep at most {info.layers - 1}, or 0 for all of them." if info.layers > 1 else _ALL
        yield FIELD, f"This model has {plural(info.layers, 'layer')}; to keep {count} removes none.", most
    if method.train == "lora":
        what = "LoRA adds little to weights that stay as they are. A model that has lost layers must train all of them."
        yield FIELD, what, "Train all weights, or set it to 0 to keep all layers."
    if recipe.precision.kind in TARGETS:
        what = "How sensitive layers are is measured in the whole model and says little once others are removed."
        yield FIELD, what, "Give every layer the same bits, list them, or set it to 0 to keep all layers."


_ALL = "Set it to 0 to keep all layers."


def _layer(name: str) -> int:
    """The number of the decoder layer that a tensor belongs to; -1 when it belongs to none."""
    found = _NUMBER.search(name)
    return int(found.group(1)) if found else -1
