"""A key-value cache that writes in place instead of growing by concatenation.

transformers' dynamic cache copies all past keys and values for every new token; its static cache computes attention
over the unused rest. This one keeps a buffer with room to spare and hands attention a view of the part in use, so a
token costs one small write. The layers behave like those of `DynamicCache`, so transformers' masks fit.

On int8 the cache holds codes and one scale for each token and head, and attention is handed what they stand for, one
layer at a time: about half the memory, and every reader (prompt, one token, a kept prefix) sees the same numbers,
because nothing is ever kept in both forms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from quantstudio.core.recipe import KvCache

_STEP = 256
"""Buffers grow to a multiple of this many positions, at least doubling."""
_LARGEST = 127


def cache_argument(model: PreTrainedModel, kv_cache: Cache) -> dict[str, Any]:
    """The cache under the name that this model's forward has for it; transformers 5.24 renamed it."""
    return {_cache_keyword(type(model).forward): kv_cache, "use_cache": True}


@cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the keys and values of one more token belong in a layer's cache, and what the token sees.

    `keys`, `values` `[1, heads, capacity, head size]`, bf16 or int8 codes; scales of codes `[1, heads, capacity, 1]`.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None
    first: int
    position: int


class _Buffer:
    """Keys and values `[batch, heads, capacity, head size]` of which `used` positions are filled."""

    def __init__(self, reserve: int) -> None:
        self.used = 0
        self._reserve = reserve
        self._keys = self._values = torch.empty(1, 0, 0, 0)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.used + keys.shape[2]
        self._keys = _with_room(self._keys, keys, self.used, end, self._reserve)
        self._values = _with_room(self._values, values, self.used, end, self._reserve)
        self._keys[:, :, self.used : end] = keys
        self._values[:, :, self.used : end] = values
        self.used = end

    def extend(self, like: torch.Tensor) -> None:
        """Count one more position, which is left to be written. `like` `[1, heads, 1, head size]`."""
        end = self.used + 1
        self._keys = _with_room(self._keys, like, self.used, end, self._reserve)
        self._values = _with_room(self._values, like, self.used, end, self._reserve)
        self.used = end

    def place(self, first: int) -> Place:
        """The last position, which sees all from `first` on."""
        return Place(self._keys, self._values, None, None, first, self.used - 1)

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions; the room stays."""
        self.used = min(self.used, length)

    def view(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything from position `first` on, without a copy."""
        return self._keys[:, :, first : self.used], self._values[:, :, first : self.used]

    def bytes_per_position(self) -> int:
        return sum(tensor[:, :, :1].nbytes for tensor in (self._keys, self._values))


class _Int8Buffer:
    """As `_Buffer`, in int8: codes `[batch, heads, capacity, head size]`, scales `[batch, heads, capacity, 1]`.

    Scales are rounded to the dtype of keys and values before the codes are made for them.
    """

    def __init__(self, reserve: int) -> None:
        self.used = 0
        self._codes, self._scales = _Buffer(reserve), _Buffer(reserve)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        key_codes, key_scales = _to_int8(keys)
        value_codes, value_scales = _to_int8(values)
        self._codes.append(key_codes, value_codes)
        self._scales.append(key_scales, value_scales)
        self.used = self._codes.used

    def extend(self, like: torch.Tensor) -> None:
        """Count one more position, which is left to be written. `like` `[1, heads, 1, head size]`."""
        self._codes.extend(like.to(torch.int8))
        self._scales.extend(like[..., :1])
        self.used = self._codes.used

    def place(self, first: int) -> Place:
        """The last position, which sees all from `first` on."""
        codes, scales = self._codes.place(first), self._scales.place(first)
        return Place(codes.keys, codes.values, scales.keys, scales.values, first, self.used - 1)

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions; the room stays."""
        self._codes.cut(length)
        self._scales.cut(length)
        self.used = self._codes.used

    def view(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the codes from position `first` on stand for."""
        (keys, values), (key_scales, value_scales) = self._codes.view(first), self._scales.view(first)
        return keys.to(key_scales.dtype).mul_(key_scales), values.to(value_scales.dtype).mul_(value_scales)

    def attend(self, rows: torch.Tensor, first: int, scale: float) -> torch.Tensor:
        """What `rows` `[1, heads, group, head size]` see from position `first` on, in the same shape.

        Scales go on scores and weights, which are few, instead of on keys and values. In fp32 throughout: for products
        in bf16 a new program is made for every length, that is for every token. One thread, a token with its attention
        over 2,048 positions, with dequantizing → like this (bf16): 14 heads on 2, 457 → 309 µs (236); 32 on 8, 1,334 →
        677 (594); 16 on 16, 3,608 → 808 (2,288).
        """
        (keys, values), (key_scales, value_scales) = self._codes.view(first), self._scales.view(first)
        scores = torch.bmm(rows[0].float().mul_(scale), keys[0].float().transpose(1, 2))
        shares = scores.mul_(key_scales[0].transpose(1, 2)).softmax(-1).mul_(value_scales[0].transpose(1, 2))
        return torch.bmm(shares, values[0].float()).to(rows.dtype).unsqueeze(0)

    def bytes_per_position(self) -> int:
        return self._codes.bytes_per_position() + self._scales.bytes_per_position()


def _with_room(old: torch.Tensor, like: torch.Tensor, used: int, needed: int, reserve: int) -> torch.Tensor:
    capacity = old.shape[2]
    if needed <= capacity:
        return old
    capacity = -(-max(needed, reserve, 2 * capacity) // _STEP) * _STEP
    batch, heads, _, size = like.shape
    new = like.new_empty((batch, heads, capacity, size))
    if used:
        new[:, :, :used] = old[:, :, :used]
    return new


def _to_int8(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric codes -127…127, one scale for each token and head. In fp32: bf16 cannot hold codes and a half."""
    wide = states.float()
    scales = (wide.abs().amax(-1, keepdim=True) / _LARGEST).clamp_min_(torch.finfo(states.dtype).tiny)
    scales = scales.to(states.dtype)
    codes = (wide / scales.float()).round_().clamp_(-_LARGEST, _LARGEST)
    return codes.to(torch.int8), scales


_BUFFERS: dict[KvCache, type[_Buffer | _Int8Buffer]] = {KvCache.BF16: _Buffer, KvCache.INT8: _Int8Buffer}


class _FullLayer(DynamicLayer):
    def __init__(self, buffer: _Buffer | _Int8Buffer) -> None:
        super().__init__()
        self._buffer = buffer

    @property
    def buffer(self) -> _Buffer | _Int8Buffer:
        return self._buffer

    def add(self, key_states: torch.Tensor, value_states: torch.Tensor) -> int:
        """Keep these; the first position that they see."""
        self._buffer.append(key_states, value_states)
        return 0

    def extend(self, like: torch.Tensor) -> Place:
        """Room for one more token, whose keys and values are shaped `like`."""
        self._buffer.extend(like)
        return self._buffer.place(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._buffer.view(self.add(key_states, value_states))

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions."""
        self._buffer.cut(length)

    def bytes_per_position(self) -> int:
        return self._buffer.bytes_per_position()

    def get_seq_length(self) -> int:
        return self._buffer.used


class _SlidingLayer(DynamicSlidingWindowLayer):
    """Keeps every position and shows the last `sliding_window - 1` before the new ones."""

    def __init__(self, sliding_window: int, buffer: _Buffer | _Int8Buffer) -> None:
        super().__init__(sliding_window=sliding_window)
        self._buffer = buffer

    @property
    def buffer(self) -> _Buffer | _Int8Buffer:
        return self._buffer

    def add(self, key_states: torch.Tensor, value_states: torch.Tensor) -> int:
        """Keep these; the first position that they see."""
        first = max(self._buffer.used - self.sliding_window + 1, 0)
        self._buffer.append(key_states, value_states)
        self.cumulative_length = self._buffer.used
        return first

    def extend(self, like: torch.Tensor) -> Place:
        """Room for one more token, whose keys and values are shaped `like`."""
        first = max(self._buffer.used - self.sliding_window + 1, 0)
        self._buffer.extend(like)
        self.cumulative_length = self._buffer.used
        return self._buffer.place(first)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._buffer.view(self.add(key_states, value_states))

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions."""
        self._buffer.cut(length)
        self.cumulative_length = self._buffer.used

    def bytes_per_position(self) -> int:
        return self._buffer.bytes_per_position()


Growing = _FullLayer | _SlidingLayer
"""Layers of a cache of `make_cache` that tell where a token belongs, and can go back."""


def attend_one(
    layer: CacheLayerMixin, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, scale: float
) -> torch.Tensor:
    """Add one token's `keys` and `values` `[1, heads, 1, head size]`; what its queries see of all there is.

    `rows`: the queries `[1, heads, group, head size]`, each head's group beside it; the result has that shape.
    """
    if isinstance(layer, Growing) and isinstance(layer.buffer, _Int8Buffer):
        return layer.buffer.attend(rows, layer.add(keys, values), scale)
    all_keys, all_values = layer.update(keys, values)
    group = rows.shape[2]
    if group == 1:
        rows = rows.expand(-1, -1, 2, -1)  # the operator is slow on a single row: see `attention`
    return nn.functional.scaled_dot_product_attention(rows, all_keys, all_values, scale=scale)[:, :, :group]


def cut(kv_cache: Cache, length: int) -> bool:
    """Shorten a cache of `make_cache` to its first `length` positions. False: it has layers that cannot go back."""
    layers = [layer for layer in kv_cache.layers if isinstance(layer, Growing)]
    if len(layers) < len(kv_cache.layers):
        return False
    for layer in layers:
        layer.cut(length)
    return True


def bytes_per_position(kv_cache: Cache) -> int:
    """Bytes that one more token takes in a cache of `make_cache` that is not empty."""
    return sum(layer.bytes_per_position() for layer in kv_cache.layers if isinstance(layer, Growing))


def make_cache(config: PretrainedConfig, reserve: int, kind: KvCache = KvCache.BF16) -> Cache:
    """A cache with room for `reserve` positions before it has to grow.

    `kind`: `bf16` keeps keys and values as they come, `int8` rounds them. Layers of kinds that are not known here
    (recurrent, chunked …) stay transformers' own, as they come.
    """
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = _FullLayer(_BUFFERS[kind](reserve))
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = _SlidingLayer(layer.sliding_window, _BUFFERS[kind](reserve))
    return cache
