"""Names against the truth: what transformers itself says about real models of every supported family."""

import pytest

from quantstudio.core.model_info import Part, read_model_info

torch = pytest.importorskip("torch")

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": GROUPED,
    "qwen2": GROUPED | {"tie_word_embeddings": True},
    "qwen3": GROUPED | {"head_dim": 16},
    "gemma3_text": GROUPED | {"head_dim": 16},
    "phi3": GROUPED | {"pad_token_id": 0},
    "mistral": GROUPED,
    "gpt_neox": SIZES,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "opt": {"vocab_size": 320, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"max_position_embeddings": 128, "word_embed_proj_dim": 64},
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "qwen3_moe": GROUPED | {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
}
IN_THE_FILES = {"lm_head": {"gpt_neox": "embed_out"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each family as transformers saves it: (folder, model)."""
    import transformers

    def make(family):
        config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        return folder, model

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_are_the_linear_layers_of_the_real_model(saved, family):
    folder, model = saved(family)
    info = read_model_info(folder)
    linear, embedding = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            linear.add((IN_THE_FILES.get(name, {}).get(family, name), *module.weight.shape))
        elif isinstance(module, torch.nn.Embedding) and module is model.get_input_embeddings():
            embedding.add((name, *module.weight.shape))
    found = {(slot.module, slot.rows, slot.columns): slot.part for slot in info.slots if slot.quantizable}
    assert {key for key, part in found.items() if part in (Part.LAYER, Part.HEAD)} == linear
    assert {key for key, part in found.items() if part is Part.EMBEDDING} == embedding


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_those_of_the_real_model(saved, family):
    folder, model = saved(family)
    info = read_model_info(folder)
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert info.tied is shared
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert info.dtype == "BF16"
    assert (info.vocab_size, info.context_length, info.hidden_size, info.layers) == (320, 128, 64, 2)
    assert info.architecture == type(model).__name__
