"""The whole way on an NVIDIA GPU: kernels chosen, and one token recorded as a graph. See test_greedy_parity, too."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, Recipe
from quantstudio.core.schemes import W4A8, W4A16, W8A16
from quantstudio.engine.generate import Generator
from quantstudio.engine.kernels import trial
from quantstudio.engine.kernels.gpu_int4 import has_programs
from quantstudio.engine.kernels.registry import Chooser
from quantstudio.engine.kernels.trial import Trials
from quantstudio.engine.load import load_model
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)


def quantized(source, out, recipe):
    info = read_model_info(source)
    out.mkdir(exist_ok=True)
    quantize_model(info, make_plan(info, recipe), recipe, out, silent())
    return load_model(out, "cuda", silent())


def small(kind, **more):
    config = kind(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


FAMILIES = {
    "Llama": lambda: small(LlamaConfig, tie_word_embeddings=True),
    "Llama with biases": lambda: small(LlamaConfig, attention_bias=True, mlp_bias=True),
    "Qwen2": lambda: small(Qwen2Config),
    "Qwen3": lambda: small(Qwen3Config, head_dim=64),
}
RECIPES = {
    "bf16": None,
    "int4": Recipe(scheme=W4A16(group_size=32), layers=LayersSection(head="same")),
    "int8": Recipe(scheme=W8A16()),
}


@pytest.mark.skipif(not has_programs(), reason="triton is missing")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_short_way_scores_like_transformers_own(family, recipe, tmp_path, caplog):
    model = FAMILIES[family]()
    for name, value in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(value, mean=0.5, std=0.3)
    model.save_pretrained(tmp_path / "original")
    if RECIPES[recipe] is None:
        loaded = load_model(tmp_path / "original", "cuda", silent())
    else:
        loaded = quantized(tmp_path / "original", tmp_path / "quantized", RECIPES[recipe])
    assert loaded.gpu_step is not None
    prompt = torch.randint(0, 512, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    generator = Generator(loaded)
    generator.prefill(prompt, reserve=40)
    for token in range(40):
        found = generator.decode_step(token)
        if token in (0, 1, 39):
            with torch.inference_mode():
                ids = torch.tensor([prompt + list(range(token + 1))], device="cuda")
                expected = loaded.model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
            assert float((found.float() - expected).norm() / expected.norm()) < 0.02
    assert not caplog.records, "the graph was not recorded"


@pytest.mark.skipif(not has_programs(), reason="triton is missing")
def test_rounded_activations_go_the_long_way(tmp_path):
    FAMILIES["Llama"]().save_pretrained(tmp_path / "original")
    loaded = quantized(tmp_path / "original", tmp_path / "quantized", Recipe(scheme=W4A8(group_size=32)))
    assert loaded.gpu_step is None
    assert loaded.kernels["gpu_int4"] > 0


def test_kernels_are_tried_on_the_gpu_and_told_of(tmp_path, monkeypatch):
    """Weights of 32 MB in bf16 take longer to read than those in 4 bits, and one row of either is far from a prompt."""
    monkeypatch.setattr(trial, "_DISTURBED", float("inf"))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()  # what the tests before this one keep
    trials = Trials(torch.device("cuda"), 60.0, tmp_path / "kernels.json")
    chooser = Chooser(torch.device("cuda"), "auto", print, trials)
    kernel = chooser.choose(W4A16(group_size=128).weight_spec(), 4096, 4096)
    (use,) = chooser.uses()
    assert use.kernel == kernel.name != "dequantized"
    assert use.decode_ratio is not None
    assert 1 < use.decode_ratio < 8
    own, bf16 = chooser.totals()
    assert 1e-6 < own.one < own.prompt < 1e-2
    assert 5e-6 < bf16.one < 1e-3, "32 MB at 0.03 to 6 TB a second"
    assert torch.cuda.memory_reserved() - before < 256 << 20, "what was tried is gone again"
    trials.save()
    assert torch.cuda.get_device_name() in (tmp_path / "kernels.json").read_text()
