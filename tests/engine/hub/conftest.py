"""A fake Hub with small models, and a connection to it that is quickly out of patience."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
import sys
import threading
from pathlib import Path

import pytest

from quantstudio.core import protocol
from quantstudio.engine.hub.connection import Connection, Patience, read_connection
from quantstudio.engine.reporter import Reporter

_SPEC = importlib.util.spec_from_file_location("fakehub", Path(__file__).parents[2] / "fakehub.py")
fakehub = importlib.util.module_from_spec(_SPEC)
sys.modules["fakehub"] = fakehub
_SPEC.loader.exec_module(fakehub)

QUICK = Patience(connect=2, silence=0.4, first_pause=0.02, longest_pause=0.2, give_up=5, longest_wish=3)
TOKEN = fakehub.GOOD_TOKEN


def llama(folder: Path, *, blocks=2, hidden=64, vocab=256, seed=0, shards=1) -> Path:
    """A Llama of random bytes with config, tokenizer, card and licence."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A small Llama\n", encoding="utf-8")
    (folder / "LICENSE").write_text("Apache License\n", encoding="utf-8")
    (folder / "modeling_evil.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (2 * hidden, hidden) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (hidden, 2 * hidden)}
        shapes |= {f"{prefix}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    names = list(shapes)
    weight_map = {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = names[number::shards]
        weight_map |= dict.fromkeys(mine, file)
        write_weights(folder / file, {name: shapes[name] for name in mine}, seed + number)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return folder


def write_weights(path: Path, shapes, seed=0):
    header, end = {}, 0
    for name, shape in shapes.items():
        nbytes = 2
        for length in shape:
            nbytes *= length
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + random.Random(seed).randbytes(end))  # noqa: S311 - no secret


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running Hub; this process's environment points to it and to an empty cache."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "QUANTSTUDIO_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "hub"
    root.mkdir()
    server = fakehub.FakeHub(root).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path / "home"))
    yield server
    server.stop()


@pytest.fixture
def connect():
    """The connection as it is when it is asked for, impatient."""

    def make(**patience) -> Connection:
        settings = {name: getattr(QUICK, name) for name in Patience.__slots__} | patience
        return read_connection(Patience(**settings))

    return make


class Listener(Reporter):
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.messages: list[protocol.Message] = []
        super().__init__(self.messages.append, threading.Event())

    def of(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def make_llama(hub):
    """Put a small Llama on the Hub."""
    return lambda name="ada/small", **settings: llama(hub.root / name, **settings)
