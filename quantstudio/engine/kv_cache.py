"""A key-value cache that writes in place instead of growing by concatenation.

transformers' dynamic cache copies all past keys and values for every new token; its static cache computes attention
over the unused rest. This one keeps a buffer with room to spare and hands attention a view of the part in use, so a
token costs one small write. The layers behave like those of `DynamicCache`, so transformers' masks fit.
Batches of one sequence only, as everywhere in this program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

_STEP = 256
"""Buffers grow to a multiple of this many positions, at least doubling."""


def cache_argument(model: PreTrainedModel, kv_cache: Cache) -> dict[str, Any]:
    """The cache under the name that this model's forward has for it; transformers 5.24 renamed it."""
    return {_cache_keyword(type(model).forward): kv_cache, "use_cache": True}


@cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


class _Buffer:
    """Keys and values `[1, heads, capacity, head size]` of which `used` positions are filled."""

    def __init__(self, reserve: int) -> None:
        self.used = 0
        self._reserve = reserve
        self._keys = self._values = torch.empty(1, 0, 0, 0)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.used + keys.shape[2]
        self._keys = self._with_room(self._keys, keys, end)
        self._values = self._with_room(self._values, values, end)
        self._keys[:, :, self.used : end] = keys
        self._values[:, :, self.used : end] = values
        self.used = end

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions; the room stays."""
        self.used = min(self.used, length)

    def view(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything from position `first` on, without a copy."""
        return self._keys[:, :, first : self.used], self._values[:, :, first : self.used]

    def _with_room(self, old: torch.Tensor, like: torch.Tensor, needed: int) -> torch.Tensor:
        capacity = old.shape[2]
        if needed <= capacity:
            return old
        capacity = -(-max(needed, self._reserve, 2 * capacity) // _STEP) * _STEP
        batch, heads, _, size = like.shape
        new = like.new_empty((batch, heads, capacity, size))
        if self.used:
            new[:, :, : self.used] = old[:, :, : self.used]
        return new


class _FullLayer(DynamicLayer):
    def __init__(self, reserve: int) -> None:
        super().__init__()
        self._buffer = _Buffer(reserve)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._buffer.append(key_states, value_states)
        return self._buffer.view(0)

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions."""
        self._buffer.cut(length)

    def get_seq_length(self) -> int:
        return self._buffer.used


class _SlidingLayer(DynamicSlidingWindowLayer):
    """Keeps every position and shows the last `sliding_window - 1` before the new ones."""

    def __init__(self, sliding_window: int, reserve: int) -> None:
        super().__init__(sliding_window=sliding_window)
        self._buffer = _Buffer(reserve)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first = max(self._buffer.used - self.sliding_window + 1, 0)
        self._buffer.append(key_states, value_states)
        self.cumulative_length = self._buffer.used
        return self._buffer.view(first)

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions."""
        self._buffer.cut(length)
        self.cumulative_length = self._buffer.used


def cut(kv_cache: Cache, length: int) -> bool:
    """Shorten a cache of `make_cache` to its first `length` positions. False: it has layers that cannot go back."""
    layers = [layer for layer in kv_cache.layers if isinstance(layer, _FullLayer | _SlidingLayer)]
    if len(layers) < len(kv_cache.layers):
        return False
    for layer in layers:
        layer.cut(length)
    return True


def make_cache(config: PretrainedConfig, reserve: int) -> Cache:
    """A cache for one sequence with room for `reserve` positions before it has to grow.

    Layers of kinds that are not known here (recurrent, chunked …) stay transformers' own.
    """
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = _FullLayer(reserve)
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = _SlidingLayer(layer.sliding_window, reserve)
    return cache
