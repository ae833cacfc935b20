"""One token through a model of the Llama family on the CPU, in as few steps as the arithmetic allows.

transformers' own code serves every model and pays for it: at one token a 0.5B model spends a third of its time outside
its matrices. Here query, key and value are one product, gate and up another (`kernels.joining`), the rotation is four
operators, a norm is four, and nothing asks what kind of cache or mask there is, because one token sees all there is.
Rounding is transformers' own, step by step, so the scores are too, but for products that are split over threads
otherwise. Prompts, other devices and other families go through transformers' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import Cache

from quantstudio.engine.kernels.cpu_int4 import CpuInt4
from quantstudio.engine.kernels.cpu_int8 import CpuInt8, CpuInt8Dynamic
from quantstudio.engine.kernels.cpu_int8_bags import CpuInt8Bags
from quantstudio.engine.kv_cache import attend_one

FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def make_llama_step(model: PreTrainedModel) -> LlamaStep | None:
    """The short way through this model, if it has one. Its layers stay what they are, as views of joined weights."""
    # Exactly these: what is made from them may compute otherwise under the same names.
    fits = type(model) in FAMILY and model.device.type == "cpu" and model.dtype == torch.bfloat16
    return LlamaStep(model) if fits and model.config.rms_norm_eps > 0 else None


class LlamaStep:
    """Callable: token and cache → logits `[vocabulary]`, the cache one position longer. Under `inference_mode`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._embedding = model.get_input_embeddings()
        self._rotary = model.model.rotary_emb
        self._layers = [_Layer(layer, model.config) for layer in model.model.layers]
        self._norm = _Norm(model.model.norm)
        self._head = model.get_output_embeddings()
        self._half = self._layers[0].head_size // 2

    def __call__(self, token: int, cache: Cache) -> torch.Tensor:
        hidden = self._embedding(torch.tensor([token]))
        position = torch.tensor([[cache.get_seq_length()]])
        cosine, sine = (part[0] for part in self._rotary(hidden, position))
        sine[:, : self._half].neg_()
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden, cosine, sine, cache, index)
        logits: torch.Tensor = self._head.forward(self._norm(hidden))
        return logits[0]


class _Layer:
    """One decoder layer; `hidden` is `[1, features]`."""

    def __init__(self, layer: Any, config: PretrainedConfig) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_size = int(attention.head_dim)
        self._qkv = _side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gate_up = _side_by_side([mlp.gate_proj, mlp.up_proj])
        self._output, self._down = attention.o_proj.forward, mlp.down_proj.forward
        self._activation = mlp.act_fn.forward
        self._input_norm, self._inner_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._query_norm, self._key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._scale = float(attention.scaling)
        self._heads, self._shared = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._inner = int(config.intermediate_size)

    def __call__(
        self, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, cache: Cache, index: int
    ) -> torch.Tensor:
        heads, shared = self._heads, self._shared
        states = self._qkv(self._input_norm(hidden)).view(heads + 2 * shared, self.head_size)
        turned, values = states[: heads + shared], states[heads + shared :]
        if self._query_norm is not None and self._key_norm is not None:
            turned = torch.cat((self._query_norm(turned[:heads]), self._key_norm(turned[heads:])))
        # Halves changed places; the sine brings the sign that belongs to it.
        turned = (turned * cosine).add_(turned.roll(self.head_size // 2, -1).mul_(sine))
        own = turned[heads:].view(1, shared, 1, -1), values.view(1, shared, 1, -1)
        rows = turned[:heads].view(1, shared, heads // shared, -1)
        seen = attend_one(cache.layers[index], *own, rows, self._scale)
        hidden = hidden + self._output(seen.reshape(1, -1))
        gate_up = self._gate_up(self._inner_norm(hidden))
        inner = self._activation(gate_up[:, : self._inner]).mul_(gate_up[:, self._inner :])
        return hidden.add_(self._down(inner))


class _Norm:
    """Root mean square norm of one row, rounded where transformers' modules round."""

    def __init__(self, norm: Any) -> None:
        self._weight = norm.weight
        self._epsilon = float(norm.variance_epsilon)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        length = float(torch.linalg.vector_norm(hidden, dtype=torch.float32))
        # Multiplied in fp32 and rounded once, as a product of bf16 with a number is.
        return (hidden * (length * length / hidden.shape[1] + self._epsilon) ** -0.5).mul_(self._weight)


def _side_by_side(parts: Sequence[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the layers make of one input, side by side.

    Weights in bf16 are not joined: they lie in the file's own pages, which cost no memory of the process.
    """
    kind, joined = type(parts[0]), None
    if issubclass(kind, CpuInt4 | CpuInt8Bags | CpuInt8 | CpuInt8Dynamic) and all(type(part) is kind for part in parts):
        joined = kind.join(parts)
    if joined is not None:
        return joined.forward
    forwards = [part.forward for part in parts]
    return lambda row: torch.cat([forward(row) for forward in forwards], dim=-1)
