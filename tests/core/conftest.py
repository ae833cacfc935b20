"""Model folders made by hand: real safetensors headers over weights that are all zero."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from quantstudio.core.model_files import DTYPE_BITS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 152,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}


def llama_tensors(blocks=3, hidden=64, inner=152, vocab=320, head=True, dtype="BF16"):
    """Names, dtypes and shapes as transformers saves a Llama."""
    tensors = {"model.embed_tokens.weight": (dtype, (vocab, hidden))}
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = (dtype, (hidden, hidden))
        for name in ("gate_proj", "up_proj"):
            tensors[f"{prefix}.mlp.{name}.weight"] = (dtype, (inner, hidden))
        tensors[f"{prefix}.mlp.down_proj.weight"] = (dtype, (hidden, inner))
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = (dtype, (hidden,))
    tensors["model.norm.weight"] = (dtype, (hidden,))
    if head:
        tensors["lm_head.weight"] = (dtype, (vocab, hidden))
    return tensors


def write_safetensors(path, tensors, extra_bytes=0):
    """Write a safetensors file of zeros; `extra_bytes` more (or fewer) than its header says."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    write_header(path, json.dumps(header).encode(), end + extra_bytes)


def write_header(path, header, data_bytes):
    """Write a safetensors file with these bytes as its header."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + data_bytes)


class ModelMaker:
    """Makes model folders below a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write_safetensors = write_safetensors
        self.write_header = write_header
        self.llama_tensors = llama_tensors

    def __call__(self, name="model", config=None, tensors=None, **changes) -> Path:
        """A folder with config.json (a Llama with `changes`) and model.safetensors."""
        folder = self.root / name
        folder.mkdir(parents=True)
        settings = {**(config or LLAMA), **changes}
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        write_safetensors(folder / "model.safetensors", tensors or llama_tensors())
        return folder

    def sharded(self, name="sharded", shards=2, **changes) -> Path:
        """The same model split over several files with an index."""
        folder = self(name, **changes)
        (folder / "model.safetensors").unlink()
        tensors = list(llama_tensors().items())
        weight_map = {}
        for number in range(shards):
            file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = dict(tensors[number::shards])
            write_safetensors(folder / file, part)
            weight_map |= dict.fromkeys(part, file)
        self.index(folder, weight_map)
        return folder

    @staticmethod
    def index(folder: Path, weight_map) -> None:
        """Write the index of a sharded model."""
        text = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


@pytest.fixture
def make_model(tmp_path):
    return ModelMaker(tmp_path)


@pytest.fixture(scope="session")
def model_maker():
    """The class of `make_model`, for fixtures that outlive a test."""
    return ModelMaker
