"""What transformers builds is compared with what the files' names promise."""

import json
import logging

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.model_info import read_model_info
from quantstudio.core.model_parts import Part
from quantstudio.engine.architecture import build_empty, inspect_architecture, quiet_transformers

SIZE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(config, folder):
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return read_model_info(folder)


def why_not(info):
    architecture = inspect_architecture(info)
    return {slot.module: architecture.why_not(slot) for slot in info.slots}


def test_every_linear_layer_and_embedding_of_a_llama_is_found(tmp_path):
    info = saved(LlamaConfig(**SIZE, tie_word_embeddings=True), tmp_path)
    architecture = inspect_architecture(info)
    assert architecture.linears["model.layers.0.mlp.down_proj"] == (32, 64)
    assert architecture.embeddings == {"model.embed_tokens": (96, 32)}
    assert len(architecture.linears) == 8
    assert architecture.modules["lm_head"] == "lm_head"
    assert not any(why_not(info).values())
    assert architecture.fusions == ()


def test_nothing_is_allocated(tmp_path):
    saved(LlamaConfig(**SIZE), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 10_000_000, "hidden_size": 8192}))
    model = build_empty(tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.lm_head.weight.shape == (10_000_000, 8192)


def test_renamed_modules_have_the_name_that_transformers_looks_for(tmp_path):
    info = saved(GPTNeoXConfig(**SIZE), tmp_path)
    head = next(slot for slot in info.slots if slot.part is Part.HEAD)
    assert head.tensor == "embed_out.weight"
    assert inspect_architecture(info).modules[head.module] == "lm_head"


def test_conv1d_is_no_linear_layer(tmp_path):
    info = saved(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2), tmp_path)
    problems = why_not(info)
    assert {problem for name, problem in problems.items() if ".attn." in name} == {"Conv1D layer"}
    assert problems["transformer.wte"] == problems["lm_head"] == ""


def test_experts_are_fused(tmp_path):
    info = saved(MixtralConfig(**SIZE, num_local_experts=2), tmp_path)
    architecture = inspect_architecture(info)
    assert sorted(fusion.target for fusion in architecture.fusions) == [
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
    ]
    expert = next(slot for slot in info.slots if ".experts." in slot.module)
    assert "fused" in architecture.why_not(expert)


def test_a_fusion_is_what_transformers_loads(tmp_path):
    info = saved(MixtralConfig(**SIZE, num_local_experts=2), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False, use_safetensors=True)
    stored = {}
    for file in {tensor.file for tensor in info.tensors}:
        from safetensors.torch import load_file

        stored |= load_file(tmp_path / file)
    for fusion in inspect_architecture(info).fusions:
        for name, tensor in fusion.fuse(stored.__getitem__).items():
            assert torch.equal(model.get_parameter(name), tensor)


def test_a_shape_that_config_json_contradicts_is_said(tmp_path):
    saved(LlamaConfig(**SIZE), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    problems = why_not(read_model_info(tmp_path))
    assert problems["model.layers.0.mlp.up_proj"] == "stored as 64 × 32, but the model wants 128 × 32"
    assert problems["model.layers.0.self_attn.q_proj"] == ""


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "nothing-known", "architectures": ["NothingForCausalLM"]},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"num_attention_heads": 0},
        {"hidden_act": "__import__"},
        {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}, "model_type": "evil"},
    ],
)
def test_what_cannot_be_built_is_refused_in_words(tmp_path, change):
    saved(LlamaConfig(**SIZE), tmp_path)
    (tmp_path / "modeling.py").write_text("raise SystemExit('this code must not run')")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelUnsupported, match=r"cannot be built by transformers"):
        inspect_architecture(read_model_info(tmp_path))


def test_transformers_is_quiet_inside_and_as_before_outside(caplog):
    logger = transformers.logging.get_logger("transformers.test")
    before = transformers.logging.get_verbosity()
    with quiet_transformers():
        assert not logger.isEnabledFor(logging.WARNING)
    assert transformers.logging.get_verbosity() == before


def test_a_subclass_counts_as_its_kind(tmp_path):
    info = saved(
        transformers.Gemma3TextConfig(**SIZE, head_dim=16, num_key_value_heads=1, tie_word_embeddings=True), tmp_path
    )
    model = build_empty(tmp_path)
    assert type(model.model.embed_tokens) is not nn.Embedding
    assert not any(why_not(info).values())
