"""The model in the box: what it promises, and what quantizing does to it."""

import json

import pytest
from transformers import AutoTokenizer

from quantstudio.core.model_info import read_model_info
from quantstudio.core.paths import resources, starter_model
from quantstudio.core.plan import make_plan
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import BuiltinText, MeasureSection
from quantstudio.engine.load import load_model
from quantstudio.engine.measure.quality import measure_quality
from quantstudio.engine.measure.text import read_text
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

# A quarter of a run's tokens, for speed. A whole run measures +2.1 % and +0.05 %, far inside the limits below.
MEASURE = MeasureSection(quality_tokens=8192, window=256)


@pytest.fixture(scope="module")
def original():
    return load_model(starter_model(), "cpu", silent())


def changed(original, folder, preset):
    """Quantization and quality of the starter model under a preset."""
    recipe = preset_recipe(preset)
    info = read_model_info(starter_model())
    done = quantize_model(info, make_plan(info, recipe), recipe, folder, silent())
    quantized = load_model(folder, "cpu", silent())
    return done, measure_quality(original, quantized, read_text(BuiltinText(), 8192), MEASURE, 0, silent())


def test_it_is_small_and_shaped_like_llama():
    info = read_model_info(starter_model())
    assert info.architecture == "LlamaForCausalLM"
    assert info.parameters <= 10_000_000
    assert (starter_model() / "model.safetensors").stat().st_size <= 20_000_000
    assert info.dtype == "BF16"
    assert info.license
    assert (starter_model() / "train.py").is_file()


def test_its_tokenizer_can_chat():
    tokenizer = AutoTokenizer.from_pretrained(starter_model(), trust_remote_code=False)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who goes there?"}], tokenize=False, add_generation_prompt=True
    )
    assert "Who goes there?" in text
    specials = [token for token in tokenizer.all_special_tokens if token in text]
    assert specials
    assert all(len(tokenizer.encode(token, add_special_tokens=False)) == 1 for token in specials)


def test_the_texts_are_small():
    texts = resources() / "text"
    assert (texts / "evaluation.txt").stat().st_size <= 500_000
    assert (texts / "training.txt.xz").stat().st_size <= 3_600_000


def test_its_record_says_how_good_it_is():
    log = json.loads((starter_model() / "training_log.json").read_text(encoding="utf-8"))
    assert log
    assert "bits per byte" in (starter_model() / "README.md").read_text(encoding="utf-8")


def test_int4_costs_it_little(original, tmp_path):
    done, quality = changed(original, tmp_path, Preset.RECOMMENDED)
    assert done.layer_bits_per_weight <= 4.25
    assert quality.perplexity_change.value < 0.08
    assert quality.top1.value > 0.85


def test_int8_costs_it_nearly_nothing(original, tmp_path):
    done, quality = changed(original, tmp_path, Preset.CLOSEST)
    assert done.sizes.total < 0.52 * done.original_sizes.total
    assert abs(quality.perplexity_change.value) < 0.002
    assert quality.kl.value < 0.002
