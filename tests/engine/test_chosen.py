"""What a method has chosen outlives its process, part by part, and is what is written."""

import json

import pytest
import torch
from safetensors.torch import load_file

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_precision import PerLayer
from quantstudio.core.schemes import W3A16, W4A16, WeightSpec
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.formats.compressed_tensors import read_weights
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import silent


def test_parts_come_back_from_the_folder(tmp_path):
    asymmetric = quantize_rtn(torch.randn(8, 64), WeightSpec(3, 32, symmetric=False))
    plain = quantize_rtn(torch.randn(8, 64), WeightSpec(4, None))
    first = Chosen(tmp_path)
    first.put("block.0", {"a": asymmetric}, {"norm.weight": torch.ones(3)})
    first.put("block.1", {"b": plain})
    again = Chosen(tmp_path)
    assert again.has("block.1")
    assert not again.has("block.2")
    for name, weight in (("a", asymmetric), ("b", plain)):
        read = again.weight(name)
        assert read is not None
        assert read.spec == weight.spec == again.spec(name)
        assert torch.equal(read.dequantize(), weight.dequantize())
    assert torch.equal(again.tensor("norm.weight"), torch.ones(3))
    assert again.weight("c") is None
    assert again.tensor("c") is None


def test_a_half_written_part_does_not_count(tmp_path):
    (tmp_path / "block.0.safetensors.partial").write_bytes(b"half")
    assert not Chosen(tmp_path).has("block.0")


@pytest.fixture
def chosen_model(tiny_folder, tmp_path):
    """A tiny model of which a method has chosen one layer's codes (all 1) and one norm (all 2)."""
    info = read_model_info(tiny_folder)
    recipe = Recipe(scheme=W4A16(group_size=32))
    plan = make_plan(info, recipe)
    layer = next(layer for layer in plan.layers if layer.slot.module.endswith("q_proj"))
    rows, columns = layer.slot.rows, layer.slot.columns
    ones = QuantizedWeight(
        torch.ones(rows, columns, dtype=torch.int8), torch.ones(rows, columns // 32).bfloat16(), None, layer.spec
    )
    chosen = Chosen(tmp_path / "work")
    norm = next(tensor for tensor in info.tensors if tensor.name.endswith("input_layernorm.weight"))
    chosen.put("block", {layer.slot.module: ones}, {norm.name: torch.full(norm.shape, 2.0)})
    out = tmp_path / "out"
    out.mkdir()
    quantize_model(info, plan, recipe, out, silent(), chosen)
    return out, layer.slot.module, norm.name


def test_what_was_chosen_is_written(chosen_model):
    out, module, norm = chosen_model
    weights = dict(read_weights(out))
    assert bool((weights[module].codes == 1).all())
    assert bool((weights[norm] == 2).all())
    other = module.replace("q_proj", "k_proj")
    assert weights[other].codes.unique().numel() > 2


def test_listed_bits_are_what_is_written(tiny_folder, tmp_path):
    info = read_model_info(tiny_folder)
    recipe = Recipe(scheme=W3A16(group_size=32), precision=PerLayer(bits=("*.q_proj=8", "*.0.*=2")))
    plan = make_plan(info, recipe)
    out = tmp_path / "out"
    out.mkdir()
    result = quantize_model(info, plan, recipe, out, silent())
    bits = {name: weight.spec.bits for name, weight in read_weights(out) if isinstance(weight, QuantizedWeight)}
    assert bits["model.layers.0.self_attn.q_proj"] == 8
    assert bits["model.layers.0.mlp.down_proj"] == 2
    assert bits["model.layers.1.mlp.down_proj"] == 3
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"] for group in config["config_groups"].values()} == {2, 3, 8}
    files = sum(tensor.nbytes for path in out.glob("*.safetensors") for tensor in load_file(path).values())
    assert files == result.sizes.total == plan.sizes.total
