"""The card says what was done and measured, and nothing of the machine's folders."""

import re

import pytest

from quantstudio.core.recipe import LayersSection, ModelSection, Recipe
from quantstudio.core.result import Environment, Interval, KeptLayer, Quality, Quantization, RunResult, Sizes
from quantstudio.core.schemes import W4A8, W4A16, W8A16
from quantstudio.engine.model_card import write_model_card

QUANTIZATION = Quantization(
    label="W4A16 g128",
    quantized_layers=44,
    kept=(KeptLayer(name="model.layers.0.mlp.gate", reason="router of a mixture-of-experts layer"),),
    original_sizes=Sizes(embedding=4_000_000, layers=12_000_000, head=0, rest=30_000),
    sizes=Sizes(embedding=2_000_000, layers=3_200_000, head=8_000, rest=30_000),
    layer_bits_per_weight=4.125,
    seconds=3.0,
    peak_rss=500_000_000,
)
KEEP = LayersSection(head="keep", embedding="keep")


def card(folder, recipe=None, result=None, license="apache-2.0"):
    write_model_card(folder, recipe or Recipe(), QUANTIZATION, result, license=license)
    return (folder / "README.md").read_text()


def quality():
    one = Interval(value=0.05, low=0.04, high=0.06)
    many = Interval(value=42.0, low=40.0, high=44.0)
    return Quality(
        tokens=4096,
        windows=8,
        text="two novels",
        original_perplexity=many,
        perplexity=many,
        perplexity_change=one,
        original_bits_per_byte=one,
        bits_per_byte=one,
        kl=one,
        top1=one,
    )


def result():
    return RunResult(
        run_id="1",
        name="a run",
        model_name="starter",
        recipe=Recipe(),
        quantization=QUANTIZATION,
        quality=quality(),
        verdict=("Half as large, hardly worse.",),
        environment=Environment(machine="x", cpu="Fast CPU", cores=2, memory=1, os="Linux", versions={}),
    )


def test_it_says_what_was_done(tmp_path):
    text = card(tmp_path)
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "- compressed-tensors\n" in text
    assert "5.24 MB instead of 16 MB" in text
    assert "4.12 bits per weight" in text
    assert "`model.layers.0.mlp.gate`: router" in text
    assert "Measurements" not in text


def test_measurements_come_with_the_second_writing_and_the_licence_stays(tmp_path):
    first = card(tmp_path, license="mit")
    text = card(tmp_path, result=result(), license="")
    assert "## Measurements" in text
    assert "Fast CPU" in text
    assert "Half as large, hardly worse." in text
    assert "license: mit" in first
    assert "license: mit" in text
    assert card(tmp_path, license="") == first


def test_a_model_of_the_hub_is_linked(tmp_path):
    text = card(tmp_path, Recipe(model=ModelSection(id="Qwen/Qwen2.5-0.5B")))
    assert 'base_model: "Qwen/Qwen2.5-0.5B"' in text
    assert "(https://huggingface.co/Qwen/Qwen2.5-0.5B)" in text


@pytest.mark.parametrize(
    "path", ["/home/ada/models/secret-lab/my-model", "C:\\Users\\ada\\my-model", "./models/x/my-model"]
)
def test_folders_of_the_machine_stay_private(tmp_path, path):
    text = card(tmp_path, Recipe(model=ModelSection(id=path)))
    assert "my-model" in text
    assert "ada" not in text.replace("Readable", "")
    assert "base_model:" not in text


@pytest.mark.parametrize(
    ("recipe", "refused"),
    [
        (Recipe(scheme=W8A16(), layers=KEEP), ""),
        (Recipe(scheme=W4A16(), layers=KEEP), ""),
        (Recipe(), "a quantized embedding and a quantized output head"),
        (Recipe(scheme=W4A16(symmetric=False), layers=KEEP), "zero points"),
        (Recipe(scheme=W4A8(), layers=KEEP), "int8 activations"),
    ],
)
def test_it_says_honestly_whether_vllm_reads_it(tmp_path, recipe, refused):
    text = card(tmp_path, recipe)
    assert ("vllm serve" in text) == (not refused)
    assert refused in text


@pytest.mark.parametrize(
    ("license", "line"),
    [("LICENSE", "license: other"), ("mit\nevil: 1", None), ("", None), ("cc-by-4.0", "license: cc-by-4.0")],
)
def test_licences_are_identifiers(tmp_path, license, line):
    found = re.findall(r"^license:.*$", card(tmp_path, license=license), flags=re.MULTILINE)
    assert found == ([line] if line else [])


def test_names_from_strangers_cannot_bring_markup(tmp_path):
    hostile = QUANTIZATION.model_copy(update={"kept": (KeptLayer(name="a`](x)\n# evil <script>", reason="|x|"),)})
    write_model_card(tmp_path, Recipe(), hostile, None)
    text = (tmp_path / "README.md").read_text()
    assert "<script>" not in text
    assert "\n# evil" not in text
