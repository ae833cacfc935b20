"""One random-weight model of each supported family, small enough to build in milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

_SIZE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZE, **_GROUPED),
    "qwen2": Qwen2Config(**_SIZE, **_GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SIZE, **_GROUPED, head_dim=32),
    "gemma3": Gemma3TextConfig(
        **_SIZE,
        **_GROUPED,
        head_dim=16,
        tie_word_embeddings=False,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": Phi3Config(**_SIZE, **_GROUPED),
    "mistral": MistralConfig(**_SIZE, **_GROUPED, sliding_window=24),
    "gpt_neox": GPTNeoXConfig(**_SIZE),
    "olmo": OlmoConfig(**_SIZE, **_GROUPED),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Builds the tiny model of a family: `tiny_model("llama", torch.bfloat16)`."""
    return _build


def _build(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose scores are spread enough that its greedy text does not repeat one token from the start."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], dtype=dtype, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model.eval()
