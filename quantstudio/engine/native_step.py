"""One token through a model of the Llama family on the CPU, in one call of this program's own C++ (`native/token.cpp`).

Against the short way over torch's operators (`llama_step`) it waits for no Python between layers, reads int4 weights
three times as fast as torch's operator, and leaves out what a general operator has to do for a single row.
"""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from quantstudio.engine.kernels.cpu_native import NATIVE, matrix_of
from quantstudio.engine.kv_cache import Growing
from quantstudio.engine.llama_step import FAMILY
from quantstudio.engine.native import build, structs

_VECTOR = 16
"""Floats in the widest vectors: the sizes of heads and of the inner layer are multiples of it."""


def make_native_step(model: PreTrainedModel) -> NativeStep | None:
    """The shortest way through this model, if it has one: all its matrices in bf16 or on this program's own kernels."""
    fits = type(model) in FAMILY and model.device.type == "cpu" and model.dtype == torch.bfloat16
    known = fits and model.config.hidden_act == "silu" and _has_even_sizes(model)
    if not known or not all(_is_known(matrix) for matrix in _matrices(model)):
        return None
    return NativeStep(model) if build.native().library is not None else None


def _has_even_sizes(model: PreTrainedModel) -> bool:
    """Whether sizes are what the library takes for granted, where transformers would notice that they are not."""
    config, size = model.config, int(model.model.layers[0].self_attn.head_dim)
    states = torch.zeros(1, 1, int(config.hidden_size), dtype=torch.bfloat16)
    cosine, _ = model.model.rotary_emb(states, torch.zeros(1, 1, dtype=torch.long))
    turned = cosine.shape[-1] == size and cosine.dtype == torch.bfloat16
    vectors = size % (2 * _VECTOR) == 0 and int(config.intermediate_size) % (2 * _VECTOR) == 0
    return turned and vectors and int(config.num_attention_heads) % int(config.num_key_value_heads) == 0


def _matrices(model: PreTrainedModel) -> list[nn.Module]:
    """All that it multiplies by."""
    found = [model.get_output_embeddings()]
    for layer in model.model.layers:
        own, mlp = layer.self_attn, layer.mlp
        found += [own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return found


def _is_known(matrix: nn.Module) -> bool:
    if matrix.bias is not None and matrix.bias.dtype != torch.bfloat16:
        return False
    if type(matrix) is nn.Linear:
        return matrix.weight.dtype == torch.bfloat16 and matrix.weight.is_contiguous()
    return type(matrix) in NATIVE


class NativeStep:
    """Callable: token and cache → logits `[vocabulary]`, the cache one position longer. Under `inference_mode`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._library = build.native().require()
        self._model = model  # whose weights the structures point to
        config, first = model.config, model.model.layers[0].self_attn
        heads, shared, size = int(config.num_attention_heads), int(config.num_key_value_heads), int(first.head_dim)
        self._embedding, self._rotary = model.get_input_embeddings(), model.model.rotary_emb
        count = len(model.model.layers)
        self._layers = (structs.Layer * count)(*[_layer(layer) for layer in model.model.layers])
        norm = getattr(first, "q_norm", None)
        self._whole = structs.Model(
            self._layers,
            model.model.norm.weight.data_ptr(),
            matrix_of(model.get_output_embeddings()),
            count,
            int(config.hidden_size),
            int(config.intermediate_size),
            heads,
            shared,
            size,
            float(model.model.norm.variance_epsilon),
            float(norm.variance_epsilon) if norm is not None else 0.0,
            float(first.scaling),
        )
        self._caches = (structs.Cache * count)()
        self._room = torch.empty(1, shared, 1, size, dtype=torch.bfloat16)
        states = (2 * heads + 2 * shared) * size
        self._scratch = torch.empty(states + 2 * int(config.intermediate_size) + _VECTOR, dtype=torch.bfloat16)
        self._words = int(self._whole.head.rows)

    def __call__(self, token: int, cache: Cache) -> torch.Tensor:
        hidden = self._embedding(torch.tensor([token])).contiguous()
        cosine, sine = self._rotary(hidden, torch.tensor([[cache.get_seq_length()]]))
        for own, layer in zip(self._caches, cache.layers, strict=True):
            self._point(own, cast(Growing, layer))
        logits = torch.empty(self._words, dtype=torch.bfloat16)
        self._library.quantstudio_token(
            ctypes.addressof(self._whole),
            ctypes.addressof(self._caches),
            cosine.data_ptr(),
            sine.data_ptr(),
            hidden.data_ptr(),
            self._scratch.data_ptr(),
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        return logits

    def _point(self, own: structs.Cache, layer: Growing) -> None:
        """Make room for the token in a layer's cache, and say where."""
        place = layer.extend(self._room)
        own.keys, own.values = place.keys.data_ptr(), place.values.data_ptr()
        own.key_scales = None if place.key_scales is None else place.key_scales.data_ptr()
        own.value_scales = None if place.value_scales is None else place.value_scales.data_ptr()
        own.capacity, own.first, own.position = place.keys.shape[2], place.first, place.position


def _layer(layer: Any) -> structs.Layer:
    attention, mlp = layer.self_attn, layer.mlp
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return structs.Layer(
        layer.input_layernorm.weight.data_ptr(),
        layer.post_attention_layernorm.weight.data_ptr(),
        None if query_norm is None else query_norm.weight.data_ptr(),
        None if key_norm is None else key_norm.weight.data_ptr(),
        (structs.Matrix * 3)(*[matrix_of(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]),
        matrix_of(attention.o_proj),
        (structs.Matrix * 2)(matrix_of(mlp.gate_proj), matrix_of(mlp.up_proj)),
        matrix_of(mlp.down_proj),
    )
