"""One token the short way gives transformers' scores, for every family and kernel that it takes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import KvCache, LayersSection, Recipe
from quantstudio.core.schemes import W2A16, W4A8, W4A16, W8A8, W8A16
from quantstudio.engine.generate import Generator
from quantstudio.engine.llama_step import LlamaStep, make_llama_step
from quantstudio.engine.load import load_model
from quantstudio.engine.native import build
from quantstudio.engine.native_step import NativeStep, make_native_step
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

SIZE = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
MODELS = {
    "llama": LlamaConfig(**SIZE, num_key_value_heads=2, tie_word_embeddings=True),
    "llama with one key for each query": LlamaConfig(**SIZE, num_key_value_heads=4, attention_bias=True),
    "qwen2": Qwen2Config(**SIZE, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=32),
    "mistral": MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=24),
}
RECIPES = {
    "W8A16": Recipe(scheme=W8A16()),
    "W8A8": Recipe(scheme=W8A8()),
    "W4A16": Recipe(scheme=W4A16(group_size=32)),
    "W4A8 asymmetric": Recipe(scheme=W4A8(group_size=64, symmetric=False)),
    "W2A16": Recipe(scheme=W2A16(group_size=32)),
    "keys kept in bf16": Recipe(scheme=W4A16(group_size=32), layers=LayersSection(keep=("*.k_proj",))),
}


@pytest.fixture
def original(tmp_path):
    """A folder of a small model with biases that are not zero: `original("qwen2")`."""

    def make(name):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(tmp_path / "original")
        return tmp_path / "original"

    return make


@pytest.fixture(params=[NativeStep, LlamaStep])
def way(request):
    """The two short ways: this program's own C++, and torch's operators where that could not be built."""
    if request.param is LlamaStep:
        request.getfixturevalue("without_native")
    elif build.native().library is None:
        pytest.skip(build.native().why_not)
    return request.param


def both(folder, way, kv_cache=KvCache.BF16):
    """Scores of 40 tokens: the short way, and transformers' own code over the same weights."""
    loaded = load_model(folder, "cpu", silent())
    assert type(loaded.step) is way
    found = scores(loaded, kv_cache)
    loaded.step = None
    return found, scores(loaded, kv_cache)


def scores(loaded, kv_cache=KvCache.BF16):
    tokens = torch.randint(3, 300, (52,), generator=torch.Generator().manual_seed(1)).tolist()
    generator = Generator(loaded, kv_cache)
    rows = [generator.prefill(tokens[:12])]
    rows += [generator.decode_step(token) for token in tokens[12:]]
    return torch.stack(rows).float()


def require_same(found, expected, allowed=0.015):
    # Sums are made in another order; in bf16 that shows as a rounding here and there (0.010 where torch uses AMX).
    assert torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected) < allowed


@pytest.mark.parametrize("name", MODELS)
def test_the_original_scores_the_same(name, original, way):
    require_same(*both(original(name), way))


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_a_cache_in_int8_holds_the_same(name, original, way):
    # A key or value that is rounded to int8 the other way moves by a whole step.
    require_same(*both(original(name), way, KvCache.INT8), allowed=0.02)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["llama with one key for each query", "qwen2"])
def test_every_kernel_scores_the_same(name, recipe, original, tmp_path, way):
    info = read_model_info(original(name))
    out = tmp_path / "out"
    out.mkdir()
    quantize_model(info, make_plan(info, RECIPES[recipe]), RECIPES[recipe], out, silent())
    # An activation that is rounded to int8 the other way moves an input by a whole step.
    require_same(*both(out, way), allowed=0.03 if "A8" in recipe else 0.015)


def test_joined_weights_are_in_memory_once(original, tmp_path):
    info = read_model_info(original("qwen2"))
    quantize_model(info, make_plan(info, RECIPES["W8A16"]), RECIPES["W8A16"], tmp_path, silent())
    loaded = load_model(tmp_path, "cpu", silent(), "cpu_int8")
    attention = loaded.model.model.layers[0].self_attn
    storages = {part.codes.untyped_storage().data_ptr() for part in (attention.q_proj, attention.k_proj)}
    assert len(storages) == 1
    assert attention.k_proj.codes.untyped_storage().nbytes() == 2 * 128 * 128


def test_other_models_keep_their_own_code(tiny_model, original):
    for make in (make_llama_step, make_native_step):
        assert make(tiny_model("gemma3", torch.bfloat16)) is None
        assert make(tiny_model("llama", torch.float32)) is None
    assert load_model(original("llama"), "cpu", silent(), "reference").step is None


@pytest.mark.parametrize(
    "odd",
    [
        LlamaConfig(**SIZE | {"num_attention_heads": 8}, num_key_value_heads=3, head_dim=32),
        LlamaConfig(**SIZE | {"intermediate_size": 250}),
        LlamaConfig(**SIZE, head_dim=24),
        LlamaConfig(**SIZE, hidden_act="gelu"),
    ],
    ids=["heads without a group", "inner layer", "size of heads", "activation"],
)
def test_sizes_that_the_library_would_misread_stay_out_of_it(odd):
    model = AutoModelForCausalLM.from_config(odd, dtype=torch.bfloat16).eval()
    assert make_native_step(model) is None


def test_heads_that_turn_in_part_stay_out_of_it(original):
    model = AutoModelForCausalLM.from_pretrained(original("llama"), dtype=torch.bfloat16, use_safetensors=True)
    assert build.native().library is None or make_native_step(model) is not None
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:8]
    assert make_native_step(model) is None
