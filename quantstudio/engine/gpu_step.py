"""One token through a model of the Llama family on an NVIDIA GPU, in six programs a layer.

Recorded as a CUDA graph (`cuda_graph`), transformers' own code still is some forty small programs a layer, each of them
microseconds of waiting: a 7B shape in int4 writes 157 tokens/s that way on an H200, and 298 in this one. Here a layer
is: norm with query, key and value; attention; its parts joined; output with the residual; norm with gate and up; down
with the residual (`kernels.gpu_programs`). Sums are kept in fp32 where transformers rounds to bf16 between steps.
Prompts and other families go through transformers' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, StaticCache

from quantstudio.engine.kernels.cuda import CudaInt8
from quantstudio.engine.kernels.gpu_int4 import GpuInt4, has_programs
from quantstudio.engine.kernels.joining import join_biases, join_rows
from quantstudio.engine.llama_step import FAMILY

_HEAD_SIZES = (32, 64, 128, 256)


def make_gpu_step(model: PreTrainedModel) -> GpuStep | None:
    """The short way through this model, if it has one. Its layers stay what they are, as views of joined weights."""
    fits = type(model) in FAMILY and model.device.type == "cuda" and model.dtype == torch.bfloat16
    if not fits or not has_programs():
        return None
    first = model.model.layers[0].self_attn
    matrices = [module for module in model.modules() if isinstance(module, nn.Linear | GpuInt4 | CudaInt8)]
    linears = 7 * len(model.model.layers) + 1
    known = len(matrices) == linears and not any(getattr(module, "rounds_input", False) for module in matrices)
    plain = model.config.hidden_act == "silu" and int(first.head_dim) in _HEAD_SIZES
    return GpuStep(model) if known and plain else None


class GpuStep:
    """Callable: token `[1, 1]` and cache → logits `[vocabulary]`, the cache one position longer. Can be recorded.

    The cache is static, in use already, and has room. Results lie in memory that the next call overwrites.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        from quantstudio.engine.kernels.gpu_calls import Attention, Heads

        first, config = model.model.layers[0].self_attn, model.config
        norm = getattr(first, "q_norm", None)
        heads = Heads(
            int(config.num_attention_heads),
            int(config.num_key_value_heads),
            int(first.head_dim),
            float(first.scaling),
            float(norm.variance_epsilon) if norm is not None else 0.0,
        )
        self._embedding, self._rotary = model.get_input_embeddings(), model.model.rotary_emb
        attention = Attention(heads, model.device)
        self._layers = [_Layer(layer, attention) for layer in model.model.layers]
        self._head = _Products([model.get_output_embeddings()], model.model.norm)

    def __call__(self, token: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        lengths = [layer.cumulative_length for layer in cache.layers]
        hidden = self._embedding(token)
        cosine, sine = self._rotary(hidden, lengths[0].view(1, 1))
        turn = cosine.flatten(), sine.flatten()
        hidden = hidden.flatten()
        for layer, past in zip(self._layers, cache.layers, strict=True):
            layer(hidden, turn, past)
        torch._foreach_add_(lengths, 1)
        return self._head(hidden)


class _Layer:
    """One decoder layer; `hidden` `[features]` becomes its result."""

    def __init__(self, layer: Any, attention: Any) -> None:
        own, mlp = layer.self_attn, layer.mlp
        self._attention = attention
        self._states = _Products([own.q_proj, own.k_proj, own.v_proj], layer.input_layernorm)
        self._output = _Products([own.o_proj])
        self._inner = _Products([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm, gated=True)
        self._down = _Products([mlp.down_proj])
        norm = getattr(own, "q_norm", None)
        self._norms = None if norm is None else (norm.weight, own.k_norm.weight)

    def __call__(self, hidden: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], past: Any) -> None:
        states = self._states(hidden)
        seen = self._attention(states, turn, (past.keys, past.values), past.cumulative_length, self._norms)
        self._output(seen, onto=hidden)
        self._down(self._inner(hidden), onto=hidden)


class _Products:
    """What layers that read the same row make of it, side by side; `gated`: silu of the first half times the second."""

    def __init__(self, parts: Sequence[Any], norm: Any = None, *, gated: bool = False) -> None:
        joined = _join(parts)
        self._parts = [(matrix_of(part), part.bias) for part in ([joined] if joined is not None else parts)]
        rows = sum(matrix.rows for matrix, _ in self._parts)
        self._gated, self._fused = gated, gated and joined is not None
        device = self._parts[0][0].data.device
        self._out = torch.empty(rows // 2 if self._fused else rows, dtype=torch.bfloat16, device=device)
        self._norm = None if norm is None else norm.weight
        self._epsilon = 0.0 if norm is None else float(norm.variance_epsilon)

    def __call__(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """The result, or `onto` with the result added; the next call overwrites the former."""
        from quantstudio.engine.kernels.gpu_calls import product

        out, start = self._out if onto is None else onto, 0
        for matrix, bias in self._parts:
            stop = start + matrix.rows
            place = out if len(self._parts) == 1 else out[start:stop]
            product(
                x, matrix, place, bias=bias, norm=self._norm, epsilon=self._epsilon, residual=onto, gated=self._fused
            )
            start = stop
        if self._gated and not self._fused:
            gate, up = out.view(2, -1)
            return nn.functional.silu(gate) * up
        return out


def matrix_of(module: Any) -> Any:
    """A layer's weight as the programs read it."""
    from quantstudio.engine.kernels.gpu_calls import Matrix

    if isinstance(module, nn.Linear):
        return Matrix(16, module.weight.detach())
    return module.matrix()


def _join(parts: Sequence[Any]) -> Any:
    """Layers of one kind as one; None when they differ."""
    if len(parts) == 1:
        return parts[0]
    if all(type(part) is nn.Linear for part in parts):
        joined = nn.Linear(1, 1, bias=False, device="meta")
        joined.weight = nn.Parameter(join_rows([(part, "weight") for part in parts]), requires_grad=False)
        joined.register_parameter("bias", join_biases([(part.bias, part.weight.shape[0]) for part in parts]))
        return joined
    for kind in (GpuInt4, CudaInt8):
        if all(type(part) is kind for part in parts):
            return kind.join(parts)
    return None
