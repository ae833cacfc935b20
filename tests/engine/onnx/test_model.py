"""Whole models on ONNX Runtime against the same models on torch, dequantized."""

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from quantstudio.core.errors import Cancelled, DiskProblem, ModelDamaged, ModelUnsupported
from quantstudio.core.model_info import read_model_info
from quantstudio.core.paths import data_home, starter_model
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, Recipe
from quantstudio.core.schemes import W2A16, W4A16, W8A8, W8A16
from quantstudio.engine.generate import Generator
from quantstudio.engine.interrupt import Interrupted
from quantstudio.engine.load import load_model
from quantstudio.engine.onnx import graph
from quantstudio.engine.onnx.model import load_onnx
from quantstudio.engine.onnx.sequence import OnnxSequence
from quantstudio.engine.onnx.support import why_not
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import Reporter, silent

SIZE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}
FAMILIES = {
    "llama": LlamaConfig(**SIZE, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, head_dim=32),
    "mistral": MistralConfig(**SIZE, sliding_window=None),
    "biased": LlamaConfig(**SIZE, attention_bias=True, mlp_bias=True),
    "yarn": LlamaConfig(**SIZE, rope_parameters=YARN),
}
IDS = torch.randint(0, 320, (400,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture
def quantized(tmp_path):
    """Builds a random model and quantizes it: the folder."""

    def build(config, recipe):
        torch.manual_seed(11)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(
                    torch.randn(parameter.shape) * 0.3
                    if parameter.dim() > 1
                    else 1 + torch.randn(parameter.shape) * 0.1
                )
        model.save_pretrained(tmp_path / "model")
        return quantize(tmp_path / "model", recipe, tmp_path / "out")

    return build


def quantize(source, recipe, out):
    out.mkdir()
    info = read_model_info(source)
    quantize_model(info, make_plan(info, recipe), recipe, out, silent())
    return out


def in_fp32(folder):
    """The dequantized model on torch: bf16 alone moves the scores of a random model by a tenth."""
    reference = load_model(folder, "cpu", silent(), "reference")
    reference.model.float()
    return Generator(reference)


def off_by(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_dequantized_model(quantized, family, monkeypatch):
    """Both in fp32, without rounding of activations: what is left is that torch's weights were rounded to bf16."""
    monkeypatch.setattr(graph, "INT8_ACTIVATIONS", 1)
    folder = quantized(FAMILIES[family], Recipe(scheme=W4A16(group_size=32)))
    reference, other = in_fp32(folder), Generator(load_onnx(folder, silent()))
    assert off_by(other.prefill(IDS[:40]), reference.prefill(IDS[:40])) < 0.03
    for token in IDS[40:50]:
        assert off_by(other.decode_step(token), reference.decode_step(token)) < 0.03


@pytest.mark.parametrize(
    "scheme", [W2A16(group_size=32), W4A16(group_size=16, symmetric=False), W8A16(), W8A8()], ids=lambda each: each.kind
)
@pytest.mark.parametrize("head", ["int8", "same"])
def test_every_scheme_runs(quantized, scheme, head):
    folder = quantized(FAMILIES["llama"], Recipe(scheme=scheme, layers=LayersSection(head=head)))
    reference, other = in_fp32(folder), Generator(load_onnx(folder, silent()))
    # int8 rounding of activations moves the scores of such a small random model by a few per cent.
    assert off_by(other.prefill(IDS[:40]), reference.prefill(IDS[:40])) < 0.15


def test_a_prompt_in_pieces_kept_shortened_and_grown_is_the_prompt(quantized):
    model = load_onnx(quantized(FAMILIES["qwen2"], Recipe(scheme=W8A16())), silent())
    whole = OnnxSequence(model)
    whole.start(400)
    expected = whole.read(IDS, None)
    pieces = OnnxSequence(model)
    pieces.start(0)
    pieces.read(IDS[:250], None)
    pieces.read(IDS[10:60], None)  # beyond the first buffer of 256, then forgotten
    assert pieces.cut(250, 400)
    pieces.read(IDS[250:399], None)
    # Rows of other counts are summed in another order; one code of an activation may fall the other way.
    assert off_by(pieces.read(IDS[399:], None), expected) < 0.03
    assert pieces.position == 400


def test_all_scores_of_a_window_are_those_of_its_tokens_one_by_one(quantized):
    model = load_onnx(quantized(FAMILIES["llama"], Recipe(scheme=W8A16())), silent())
    at_once, one_by_one = OnnxSequence(model), OnnxSequence(model)
    at_once.start(20)
    one_by_one.start(20)
    at_once.read_all(IDS[:20], scores := torch.empty(20, model.shape.vocabulary))
    for row, token in zip(scores, IDS[:20], strict=True):
        assert off_by(row, one_by_one.read([token], None)) < 0.03


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "w4"
    return load_onnx(quantize(starter_model(), Recipe(scheme=W4A16()), out), silent())


def read_again_and_again(sequence, ids, stop):
    for _ in range(100):  # one prompt may be over before the timer
        sequence.start(len(ids))
        sequence.read(ids, stop)


def test_a_prompt_is_left_soon_after_stop_and_the_next_one_is_read(starter):
    sequence, stop = OnnxSequence(starter), threading.Event()
    ids = [token % starter.shape.vocabulary for token in range(1000)]
    sequence.start(1000)
    expected = sequence.read(ids[:30], None)
    sequence.start(1000)
    threading.Timer(0.005, stop.set).start()
    with pytest.raises(Interrupted):
        read_again_and_again(sequence, ids, stop)
    sequence.start(1000)
    assert torch.equal(sequence.read(ids[:30], None), expected)


def test_nothing_stays_on_disk_and_what_dead_processes_left_goes(starter):
    home = data_home() / "onnx"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (home / f"{dead.pid}-left").mkdir(parents=True)
    load_onnx(starter.folder, silent())
    assert list(home.iterdir()) == []


def test_a_full_disk_is_said_to_be_full(starter, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskProblem):
        load_onnx(starter.folder, silent())
    assert list((data_home() / "onnx").iterdir()) == []


def test_loading_can_be_cancelled(starter):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        load_onnx(starter.folder, Reporter(lambda message: None, cancel))


@pytest.mark.parametrize(
    ("config", "recipe", "reason"),
    [
        (MistralConfig(**SIZE, sliding_window=32), Recipe(), "sliding windows"),
        (LlamaConfig(**SIZE, hidden_act="gelu"), Recipe(), "another activation"),
        (LlamaConfig(**SIZE, rope_parameters=YARN | {"rope_type": "dynamic"}), Recipe(), "rotary embedding"),
        (LlamaConfig(**SIZE), Recipe(layers=LayersSection(head="keep")), "lm_head is not quantized"),
    ],
    ids=["window", "activation", "rotation", "head"],
)
def test_what_it_cannot_run_is_refused_with_the_reason(quantized, config, recipe, reason):
    folder = quantized(config, replace_scheme(recipe))
    assert reason in why_not(folder)
    with pytest.raises(ModelUnsupported, match=reason):
        load_onnx(folder, silent())


def replace_scheme(recipe):
    return recipe.model_copy(update={"scheme": W4A16(group_size=32)})


@pytest.mark.parametrize(
    ("change", "words"),
    [({"intermediate_size": 96}, "do not fit"), ({"num_hidden_layers": 1}, "without the layer")],
)
def test_weights_that_config_json_does_not_describe_are_damage(quantized, change, words):
    folder = quantized(FAMILIES["llama"], Recipe(scheme=W4A16(group_size=32)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelDamaged, match=words):
        load_onnx(folder, silent())


def test_an_original_is_refused(tmp_path):
    assert "not quantized" in why_not(starter_model())


def test_without_the_library_the_reason_says_how_to_get_it(starter, monkeypatch):
    monkeypatch.setattr("quantstudio.core.engines.find_spec", lambda name: None)
    assert "quantstudio[onnx]" in why_not(starter.folder)
