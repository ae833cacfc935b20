"""One token through a compiled model. Recording it needs a GPU; what it computes and says does not."""

import pytest
import torch
from transformers import StaticCache

from quantstudio.core import protocol
from quantstudio.engine import compiling
from quantstudio.engine.compiled_step import CompiledStep, make_compiled_step
from quantstudio.engine.kv_cache import cache_argument
from quantstudio.engine.load import load_model
from quantstudio.engine.reporter import Reporter


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # set here, so that it is as it was afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    yield
    torch._dynamo.reset()


def listening() -> tuple[list[str], Reporter]:
    said: list[str] = []

    def sink(message: protocol.Message) -> None:
        if isinstance(message, protocol.Notice):
            said.append(message.text)

    return said, Reporter(sink)


def begun(model, capacity: int) -> StaticCache:
    cache = StaticCache(config=model.config, max_cache_len=capacity)
    model(input_ids=torch.tensor([[5, 6, 7]]), **cache_argument(model, cache))
    return cache


@torch.inference_mode()
def test_a_compiled_step_is_a_step(tiny_model, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    model = tiny_model("phi3")
    said, reporter = listening()
    step = CompiledStep(model, reporter)
    for capacity in (16, 32):
        own, plain = begun(model, capacity), begun(model, capacity)
        for token in (8, 9, 10):
            ids = torch.tensor([[token]])
            found = step(ids, own)
            expected = model(input_ids=ids, logits_to_keep=1, **cache_argument(model, plain)).logits[0, -1]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [text.startswith("The model was compiled for writing in ") for text in said] == [False, True] * 2, said


@torch.inference_mode()
def test_a_step_that_cannot_be_compiled_says_so_once(tiny_model, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler was found")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    model = tiny_model("phi3")
    said, reporter = listening()
    step = CompiledStep(model, reporter)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="could not be compiled"):
            step(torch.tensor([[8]]), begun(model, 16))
    _, text = said
    assert "without being compiled" in text
    assert "no compiler was found" in text


def test_what_cannot_be_compiled_is_said_when_it_is_loaded(tiny_folder, tiny_model, monkeypatch):
    said, reporter = listening()
    assert load_model(tiny_folder, "cpu", reporter, compiled=True).compiled_step is None
    assert "NVIDIA" in said.pop()
    monkeypatch.setattr(compiling, "why_not", lambda device: "")
    assert make_compiled_step(tiny_model("gemma3"), "cuda", reporter) is None
    assert "slides" in said.pop()
    assert make_compiled_step(tiny_model("phi3"), "cuda", reporter) is not None
    assert not said
