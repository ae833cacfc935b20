"""One random-weight model of each supported family, small enough to build in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
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
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from quantstudio.core.paths import resources
from quantstudio.engine.native import build

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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and on a busy machine waiting for them takes ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-shaped model of 0.4M parameters with a byte-level tokenizer and tied embeddings, as a folder on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    text = (resources() / "text" / "evaluation.txt").read_text(encoding="utf-8")[:100_000]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    config = LlamaConfig(
        **_SIZE | {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256},
        **_GROUPED,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def without_native(monkeypatch):
    """As on a machine without a C++ compiler: torch's operators alone."""
    monkeypatch.setattr(build, "native", lambda: build.Native(None, "no C++ compiler (g++) was found."))
