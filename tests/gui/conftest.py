"""Windows in tests open without a screen, in a home of their own, with models that are headers over zeros."""

import functools
import importlib.util
import json
import math
import struct
import sys
from pathlib import Path

import psutil
import pytest
from PySide6.QtCore import QCoreApplication, QEvent

FAKE_WORKER = Path(__file__).parents[1] / "fakeworker.py"


def write_model(folder, *, hidden=256, inner=768, vocab=512, blocks=2, **config):
    """A Llama-shaped model folder with real headers and weights that are all zero."""
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    folder.mkdir(parents=True)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(settings | config), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _closed_windows_are_gone(qapp):
    """Without a running event loop, what was deleted for later would stay, and every new theme would dress it."""
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)


@pytest.fixture
def make_model():
    """`make_model(folder, hidden=…)`: a model folder."""
    return write_model


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A data home with a starter model of its own, and no Hugging Face cache."""
    from quantstudio.core import library

    starter = write_model(tmp_path / "starter")
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setattr(library, "starter_model", lambda: starter)
    return tmp_path / "home"


@pytest.fixture
def hub(home, tmp_path, monkeypatch):
    """A running fake Hub; this process's environment, and so every worker's, points to it and to an empty cache."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "QUANTSTUDIO_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "hub").mkdir()
    server = fakehub().FakeHub(tmp_path / "hub").start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.stop()


@functools.cache
def fakehub():
    """The module, which lies beside the tests and in no package."""
    spec = importlib.util.spec_from_file_location("fakehub", Path(__file__).parents[1] / "fakehub.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fakehub"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_context(home, qapp, qtbot):
    """An application context whose worker is a fake: `make_context("slow", 60)`; see `fakeworker.py`."""
    from quantstudio.client.library_scan import LibraryScan
    from quantstudio.client.run_queue import RunQueue
    from quantstudio.core.settings import load_settings
    from quantstudio.gui.context import AppContext
    from quantstudio.gui.tokens import LIGHT

    made = []

    def make(way="good", argument=""):
        command = [sys.executable, "-I", str(FAKE_WORKER), way, str(argument)]
        context = AppContext(load_settings(), RunQueue(command=command), LibraryScan(), LIGHT)
        context.settings_changed.connect(lambda: context.library.refresh(context.settings))
        made.append(context)
        return context

    yield make
    for context in made:
        context.closing.emit()
        context.queue.shutdown()
        context.library.shutdown()


@pytest.fixture
def context(make_context):
    return make_context()


@pytest.fixture(autouse=True)
def _no_process_is_left():
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    _, alive = psutil.wait_procs(left, timeout=5)
    for child in alive:
        child.kill()
    assert not alive
