"""The promise of the file format: a saved folder loads in plain transformers and gives the logits of our own reference.

The reference is made here from the codes that the folder holds, read by our reader: every quantized matrix replaced by
its dequantized weights, and the inputs of A8 layers rounded by our arithmetic for them. The difference must be 0.
"""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, Recipe
from quantstudio.core.schemes import W2A8, W2A16, W3A8, W3A16, W4A8, W4A16, W8A8, W8A16, ActivationKind
from quantstudio.engine.formats.compressed_tensors import read_config, read_weights
from quantstudio.engine.kernels.activations import fake_quantize_per_token
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import silent
from quantstudio.engine.safetensors_io import CheckpointReader

SIZE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
WIDE = SIZE | {"hidden_size": 256, "intermediate_size": 512}
MODELS = {
    "llama": LlamaConfig(**SIZE, **GROUPED),
    "llama tied": LlamaConfig(**SIZE, **GROUPED, tie_word_embeddings=True),
    "llama 224": LlamaConfig(**SIZE | {"hidden_size": 224, "intermediate_size": 448}),
    "llama 256": LlamaConfig(**WIDE, **GROUPED),
    "qwen2": Qwen2Config(**SIZE, **GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, **GROUPED, head_dim=16, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**SIZE, **GROUPED, head_dim=16, sliding_window=32, tie_word_embeddings=True),
    "phi3": Phi3Config(**SIZE, **GROUPED),
    "mistral": MistralConfig(**SIZE, **GROUPED),
    "gpt_neox": GPTNeoXConfig(**SIZE),
    "gpt_neox tied": GPTNeoXConfig(**SIZE, tie_word_embeddings=True),
    "mixtral experts": MixtralConfig(**SIZE, **GROUPED, num_local_experts=4),
    "olmo": OlmoConfig(**SIZE, **GROUPED, clip_qkv=None),
}
SCHEMES = {
    "W8A16": W8A16(),
    "W8A8": W8A8(),
    "W4A16 g32": W4A16(group_size=32),
    "W4A16 g32 asym": W4A16(group_size=32, symmetric=False),
    "W4A16 g64": W4A16(group_size=64),
    "W4A16 g128": W4A16(group_size=128),
    "W4A16 g224": W4A16(group_size=224),
    "W4A16 g224 asym": W4A16(group_size=224, symmetric=False),
    "W4A16 g256": W4A16(group_size=256),
    "W4A16 channel": W4A16(group_size="channel"),
    "W4A16 channel asym": W4A16(group_size="channel", symmetric=False),
    "W4A8 g32": W4A8(group_size=32),
    "W3A16 g32": W3A16(group_size=32),
    "W3A8 g32 asym": W3A8(group_size=32, symmetric=False),
    "W2A16 g32": W2A16(group_size=32),
    "W2A8 channel": W2A8(group_size="channel"),
    "W4A8 channel asym": W4A8(group_size="channel", symmetric=False),
}
IDS = torch.randint(3, 200, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A random-weight model by its name in MODELS, as (folder, model, logits), made once."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.bfloat16)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
                    else:
                        parameter.mul_(3)  # so that layers, not the residual, decide the logits
            folder = tmp_path_factory.mktemp("model") / name.replace(" ", "-")
            model.save_pretrained(folder)
            model = load(folder)
            made[name] = folder, model, logits(model)
        return made[name]

    return make


def save(source, out, scheme, **layers):
    out.mkdir()
    recipe = Recipe(scheme=scheme, layers=LayersSection(**layers))
    info = read_model_info(source)
    plan = make_plan(info, recipe)
    return plan, quantize_model(info, plan, recipe, out, silent())


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, local_files_only=True
    ).eval()


def reference(model, saved):
    """A copy of the original model with the weights that the saved folder stands for."""
    model = copy.deepcopy(model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())  # untied: the folder says what each of the two is
    modules = dict(model.named_modules())
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in read_weights(saved):
            if isinstance(weight, QuantizedWeight):
                modules[name].weight.copy_(weight.dequantize())
                if weight.spec.activations is ActivationKind.INT8_TOKEN:
                    modules[name].register_forward_pre_hook(lambda _, inputs: (fake_quantize_per_token(inputs[0]),))
            elif name in state:
                assert torch.equal(state[name], weight)
    return model


def assert_same_logits(original_model, original_logits, saved):
    loaded = logits(load(saved))
    assert loaded.dtype == torch.bfloat16
    assert (loaded - logits(reference(original_model, saved))).abs().max().item() == 0
    assert (loaded - original_logits).abs().max().item() > 0  # something was quantized


CASES = (
    [("llama tied", name, {}) for name in SCHEMES if not any(size in name for size in ("g64", "g128", "g224", "g256"))]
    + [(model, name, {}) for model in MODELS for name in ("W4A16 g32", "W8A8") if " " not in model]
    + [("llama", name, {"head": "same"}) for name in ("W8A16", "W4A8 channel asym")]
    + [("gpt_neox tied", "W4A8 g32", {})]
    + [("llama 224", name, {}) for name in ("W4A16 g224", "W4A16 g224 asym")]
    + [("llama 256", name, {}) for name in ("W4A16 g64", "W4A16 g128", "W4A16 g256")]
)


@pytest.mark.parametrize(("name", "scheme", "layers"), CASES, ids=lambda value: str(value or "").strip("{}'"))
def test_plain_transformers_gives_the_same_logits(original, tmp_path, name, scheme, layers):
    source, model, original_logits = original(name)
    plan, result = save(source, tmp_path / "out", SCHEMES[scheme], **layers)
    assert result.quantized_layers == len(plan.quantized)
    assert_same_logits(model, original_logits, tmp_path / "out")


CHOICES = [
    # head, embedding, whether config.json says tied, tables on disk that hold one row per word
    ("int8", "int8", True, {"model.embed_tokens.weight"}),
    ("same", "int8", False, {"model.embed_tokens.weight", "lm_head.weight_packed"}),
    ("int8", "keep", False, {"model.embed_tokens.weight", "lm_head.weight"}),
    ("keep", "int8", False, {"model.embed_tokens.weight", "lm_head.weight"}),
    ("keep", "keep", True, {"model.embed_tokens.weight"}),
]


@pytest.mark.parametrize(("head", "embedding", "tied", "tables"), CHOICES)
def test_tied_head_and_embedding_in_every_combination(original, tmp_path, head, embedding, tied, tables):
    source, model, original_logits = original("llama tied")
    out = tmp_path / "out"
    save(source, out, W4A16(group_size=32), head=head, embedding=embedding)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tied
    with CheckpointReader(out) as reader:
        assert {
            name for name, tensor in reader.tensors.items() if tensor.shape[:1] == (200,) and "scale" not in name
        } == tables
    assert_same_logits(model, original_logits, out)


def test_one_table_serves_tied_head_and_embedding(original, tmp_path):
    source, *_ = original("llama tied")
    save(source, tmp_path / "out", W4A16(group_size=32))
    loaded = {name: weight for name, weight in read_weights(tmp_path / "out") if isinstance(weight, QuantizedWeight)}
    assert loaded["lm_head"].codes is loaded["model.embed_tokens"].codes


def test_a_smaller_group_and_a_kept_layer_get_groups_of_their_own(original, tmp_path):
    source, model, original_logits = original("llama 224")
    info = read_model_info(source)
    layers = LayersSection(on_misfit="smaller", keep=("model.layers.1.mlp.down_proj",))
    recipe = Recipe(scheme=W4A16(group_size=128), layers=layers)
    (out := tmp_path / "out").mkdir()
    result = quantize_model(info, make_plan(info, recipe), recipe, out, silent())
    assert {kept.name: kept.reason for kept in result.kept} == {"model.layers.1.mlp.down_proj": "kept by the recipe"}
    specs = read_config(out).specs
    assert specs["model.layers.0.self_attn.q_proj"].group_size == 32
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert "model.layers.1.mlp.down_proj" in config["ignore"]
    assert_same_logits(model, original_logits, out)


def test_fused_experts_stay_and_still_load(original, tmp_path):
    source, model, original_logits = original("mixtral experts")
    _, result = save(source, tmp_path / "out", W4A16(group_size=32))
    experts = [kept for kept in result.kept if ".experts." in kept.name]
    assert len(experts) == 2 * 4 * 3
    assert "expert" in experts[0].reason
    assert_same_logits(model, original_logits, tmp_path / "out")
