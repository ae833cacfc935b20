"""The quantize job: what it writes, what it copies, what it refuses, and that it does so the same way every time."""

import errno
import hashlib
import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from quantstudio.core.errors import BadWeights, Cancelled, DiskProblem, LayerMisfit, ModelUnsafe, ModelUnsupported
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.protocol import Progress
from quantstudio.core.recipe import LayersSection, OutputSection, Recipe
from quantstudio.core.schemes import W4A16, W8A8, W8A16
from quantstudio.engine import quantize, safetensors_io
from quantstudio.engine.formats.compressed_tensors import read_weights
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter, silent

G32 = Recipe(scheme=W4A16(group_size=32))
LLAMA = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def make_model(folder, dtype=torch.bfloat16, config=None):
    torch.manual_seed(0)
    config = config or LlamaConfig(**LLAMA, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("llama") / "tiny")
    for name, text in {
        "tokenizer.json": '{"version": "1.0"}',
        "chat_template.jinja": "{{ messages }}",
        "LICENSE": "Do good.",
        "NOTICE.txt": "Made by someone.",
        "modeling_evil.py": "raise SystemExit",
        "LICENSE.py": "raise SystemExit",
        "weights.bin": "pickle",
        "notes.txt": "private",
        "README.md": "---\nlicense: mit\n---\nThe original's own card.",
    }.items():
        (folder / name).write_text(text)
    return folder


def run(source, out, recipe=G32, reporter=None):
    out.mkdir()
    info = read_model_info(source)
    return quantize_model(info, make_plan(info, recipe), recipe, out, reporter or silent())


def fingerprints(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_same_recipe_twice_gives_the_same_bytes(llama, tmp_path):
    recipe = Recipe(scheme=W4A16(group_size=32, symmetric=False), output=OutputSection(shard_mb=16))
    run(llama, tmp_path / "first", recipe)
    run(llama, tmp_path / "second", recipe)
    assert fingerprints(tmp_path / "first") == fingerprints(tmp_path / "second")


def test_blocks_and_shards_change_no_weight(llama, tmp_path, monkeypatch):
    recipe = Recipe(scheme=W4A16(group_size=32, symmetric=False))
    run(llama, tmp_path / "whole", recipe)
    monkeypatch.setattr(quantize, "BLOCK_WEIGHTS", 64 * 13)
    monkeypatch.setattr(quantize, "MB", 5)
    run(llama, tmp_path / "pieces", recipe)
    assert len(list((tmp_path / "pieces").glob("model-*-of-*.safetensors"))) > 3
    whole, pieces = (dict(read_weights(tmp_path / name)) for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys()
    for name, weight in whole.items():
        if isinstance(weight, QuantizedWeight):
            assert torch.equal(weight.dequantize(), pieces[name].dequantize())
        else:
            assert torch.equal(weight, pieces[name])


def test_codes_are_those_of_the_method(llama, tmp_path):
    run(llama, tmp_path / "out")
    original = load_file(llama / "model.safetensors")
    saved = dict(read_weights(tmp_path / "out"))
    name = "model.layers.1.mlp.down_proj"
    expected = quantize_rtn(original[f"{name}.weight"], G32.scheme.weight_spec())
    assert torch.equal(saved[name].codes, expected.codes)
    assert torch.equal(saved["model.norm.weight"], original["model.norm.weight"])


def test_only_known_files_travel(llama, tmp_path):
    run(llama, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "LICENSE",
        "NOTICE.txt",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "out/LICENSE").read_text() == "Do good."
    card = (tmp_path / "out/README.md").read_text()
    assert "license: mit" in card
    assert "The original's own card" not in card


def test_result_counts_what_the_files_hold(llama, tmp_path):
    result = run(llama, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert result.label == "W4A16 g32"
    assert result.quantized_layers == 2 * 7 + 2
    assert result.kept == ()
    assert result.sizes.total == sum(tensor.nbytes for tensor in tensors.values())
    assert result.sizes.embedding == 200 * 64 + 200 * 2
    assert result.sizes.head == 200 * 2
    assert result.original_sizes.total == sum(t.nbytes for t in load_file(llama / "model.safetensors").values())
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert result.layer_bits_per_weight == pytest.approx(4 + 16 / 32 + 2 * 7 * 128 / weights)
    assert result.layer_bits_per_weight == pytest.approx(result.sizes.layers * 8 / weights)
    assert result.peak_rss > 0
    assert result.seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_become_bf16(tmp_path, dtype):
    source = make_model(tmp_path / "source", dtype)
    config = json.loads((source / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (source / "config.json").write_text(json.dumps(config))
    run(source, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.bfloat16}
    saved = json.loads((tmp_path / "out/config.json").read_text())
    assert saved["dtype"] == "bfloat16"
    assert "torch_dtype" not in saved
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    # fp32 weights are rounded once, not first to bf16 and then to the grid.
    original = load_file(source / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    saved_weight = dict(read_weights(tmp_path / "out"))["model.layers.0.mlp.up_proj"]
    assert torch.equal(saved_weight.codes, quantize_rtn(original, G32.scheme.weight_spec()).codes)


def test_progress_ends_at_all_bytes(llama, tmp_path):
    seen = []
    run(llama, tmp_path / "out", reporter=Reporter(seen.append))
    steps = [message for message in seen if isinstance(message, Progress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total
    assert any("mlp" in step.detail for step in steps)


def test_cancelling_stops_between_blocks_and_leaves_no_thread(llama, tmp_path):
    cancel = threading.Event()
    before = threading.active_count()

    def stop_at_the_fifth(message):
        count.append(message)
        if len(count) == 5:
            cancel.set()

    count = []
    with pytest.raises(Cancelled):
        run(llama, tmp_path / "out", reporter=Reporter(stop_at_the_fifth, cancel))
    assert len(count) == 5
    assert threading.active_count() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights_are_named(tmp_path, value):
    source = make_model(tmp_path / "source")
    change_weights(source, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 5), value))
    with pytest.raises(BadWeights, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        run(source, tmp_path / "out")


def test_a_disk_that_fills_up_is_said_in_words(llama, tmp_path, monkeypatch):
    class FullDisk:
        def seek(self, position):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    real = safetensors_io.CheckpointWriter._begin_shard

    def begin(writer, number, shard):
        real(writer, number, shard)
        shard.file.close()
        shard.file = FullDisk()

    monkeypatch.setattr(safetensors_io.CheckpointWriter, "_begin_shard", begin)
    with pytest.raises(DiskProblem, match="The disk is full"):
        run(llama, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_said_in_words(llama, tmp_path, monkeypatch):
    def refuse(*_args):
        raise PermissionError(errno.EACCES, "Permission denied", "out")

    monkeypatch.setattr(safetensors_io.CheckpointWriter, "_begin_shard", refuse)
    with pytest.raises(DiskProblem, match="cannot be written"):
        run(llama, tmp_path / "out")


def test_a_quantized_model_is_not_quantized_again(llama, tmp_path):
    run(llama, tmp_path / "once")
    with pytest.raises(ModelUnsupported, match="already quantized"):
        run(tmp_path / "once", tmp_path / "twice")


def test_a_group_that_does_not_fit_is_refused(llama, tmp_path):
    with pytest.raises(LayerMisfit, match="48"):
        run(llama, tmp_path / "out", Recipe(scheme=W4A16(group_size=48)))
    assert list((tmp_path / "out").iterdir()) == []


def test_conv1d_layers_stay_and_are_named(tmp_path):
    source = make_model(tmp_path / "source", config=GPT2Config(vocab_size=200, n_embd=64, n_layer=2, n_head=2))
    result = run(source, tmp_path / "out")
    assert result.quantized_layers == 2
    assert len(result.kept) == 8
    assert {kept.reason for kept in result.kept} == {"Conv1D layer"}
    assert result.layer_bits_per_weight == 0
    with pytest.raises(ModelUnsupported, match="Nothing"):
        run(source, tmp_path / "none", Recipe(layers=LayersSection(head="keep", embedding="keep")))


def test_layers_that_only_look_linear_stay_and_are_named(tmp_path):
    """The names in the files promise linear layers; config.json makes transformers build something else."""
    source = make_model(tmp_path / "source", config=LlamaConfig(**LLAMA))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    result = run(source, tmp_path / "out")
    assert len(result.kept) == 6
    assert "model wants" in result.kept[0].reason


def test_unknown_architectures_and_hostile_folders_are_refused(tmp_path):
    source = make_model(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "new-thing"}))
    with pytest.raises(ModelUnsupported, match="cannot be built"):
        run(source, tmp_path / "unknown")
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1_000_000}))
    with pytest.raises(ModelUnsafe):
        run(source, tmp_path / "hostile")


def test_code_is_not_mentioned_in_the_output(tmp_path):
    source = make_model(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Config"}}))
    run(source, tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out/config.json").read_text()


FORETOLD = {
    "int4": G32,
    "asymmetric": Recipe(scheme=W4A16(group_size=32, symmetric=False)),
    "W8A16": Recipe(scheme=W8A16()),
    "W8A8": Recipe(scheme=W8A8()),
    "head of its own": Recipe(scheme=W8A8(), layers=LayersSection(head="same")),
    "bf16 head of its own": Recipe(scheme=W4A16(group_size="channel"), layers=LayersSection(head="keep")),
}


@pytest.mark.parametrize("recipe", FORETOLD.values(), ids=FORETOLD.keys())
def test_the_plan_foretells_the_bytes(llama, tmp_path, recipe):
    plan = make_plan(read_model_info(llama), recipe)
    result = run(llama, tmp_path / "out", recipe)
    assert result.sizes == plan.sizes
    assert result.original_sizes == plan.original_sizes
