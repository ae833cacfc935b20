"""What is written is what compressed-tensors would write, and comes back bit for bit; hostile folders are refused."""

import json

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file

from quantstudio.core.errors import ModelDamaged, ModelUnsupported
from quantstudio.core.model_parts import Part
from quantstudio.core.schemes import INT8_PER_CHANNEL, ActivationKind, WeightSpec
from quantstudio.engine.formats.compressed_tensors import (
    Encoding,
    StoredModule,
    encode,
    encoding_for,
    layout,
    pack,
    quantization_config,
    read_config,
    read_weights,
    unpack,
)
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.safetensors_io import CheckpointWriter, NewTensor
from quantstudio.engine.scratch import Scratch

A8 = ActivationKind.INT8_TOKEN
SPECS = [
    WeightSpec(2, 32),
    WeightSpec(3, 32),
    WeightSpec(3, 32, symmetric=False),
    WeightSpec(4, 32),
    WeightSpec(4, 32, symmetric=False),
    WeightSpec(4, None),
    WeightSpec(4, None, symmetric=False, activations=A8),
    WeightSpec(8, None),
    WeightSpec(8, None, activations=A8),
    WeightSpec(8, None, symmetric=False),
]


def random_weight(rows=41, columns=96, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def write_folder(folder, modules, weights, extra=()):
    """A folder with these modules, `weights` by module name, and bf16 tensors of ones."""
    tensors = [tensor for stored in modules for tensor in layout(stored)]
    tensors += [NewTensor(name, "BF16", (3,)) for name in extra]
    with CheckpointWriter(folder, tensors, 1 << 30) as writer:
        for stored in modules:
            for name, tensor in encode(weights[stored.module], stored).items():
                writer.write(name, tensor)
        for name in extra:
            writer.write(name, torch.ones(3, dtype=torch.bfloat16))
        writer.finish()
    config = {"model_type": "llama", "quantization_config": quantization_config(modules, [])}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def stored_module(name, spec, part=Part.LAYER, rows=41, columns=96, **more):
    return StoredModule(name, rows, columns, spec, encoding_for(spec, part), **more)


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [8, 64, 67])
def test_packing_is_that_of_the_library(bits, columns):
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (37, columns)).to(torch.int8)
    packed = pack(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)
    assert torch.equal(pack(codes.t(), bits).t(), pack_to_int32(codes, bits, packed_dim=0))
    column = codes[:, :1]
    assert torch.equal(pack(column.t(), bits).t(), pack_to_int32(column, bits, packed_dim=0))
    assert torch.equal(unpack(pack(column.t(), bits), bits, 37).t(), column)


def test_zero_points_decode_with_the_library():
    weight = quantize_rtn(random_weight(), WeightSpec(4, 32, symmetric=False))
    stored = encode(weight, stored_module("a", weight.spec))["a.weight_zero_point"]
    assert stored.shape == (41, 3)
    assert torch.equal(unpack_from_int32(stored, 4, torch.Size((41, 3)), packed_dim=0), weight.zero_points)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
@pytest.mark.parametrize("part", [Part.LAYER, Part.HEAD])
def test_weights_come_back_bit_for_bit(tmp_path, spec, part):
    weight = quantize_rtn(random_weight(), spec)
    module = stored_module("model.layers.0.mlp.up_proj", spec, part)
    folder = write_folder(tmp_path, [module], {module.module: weight}, extra=["model.norm.weight"])

    assert read_config(folder).specs == {module.module: spec}
    found = dict(read_weights(folder))
    assert sorted(found) == ["model.layers.0.mlp.up_proj", "model.norm.weight"]
    back = found[module.module]
    assert back.spec == spec
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scales, weight.scales)
    assert (back.zero_points is None) == spec.symmetric
    if back.zero_points is not None:
        assert torch.equal(back.zero_points, weight.zero_points)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_layout_promises_what_encode_gives(spec):
    for part in (Part.LAYER, Part.EMBEDDING):
        stored = stored_module("a.b", spec, part)
        given = {
            name: (tensor.dtype, tuple(tensor.shape))
            for name, tensor in encode(quantize_rtn(random_weight(), spec), stored).items()
        }
        names = {"BF16": torch.bfloat16, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}
        assert given == {tensor.name: (names[tensor.dtype], tensor.shape) for tensor in layout(stored)}


def test_int4_is_half_a_byte():
    stored = stored_module("a", WeightSpec(4, 128), rows=64, columns=1024)
    bits = sum(tensor.nbytes for tensor in layout(stored)) * 8 / (64 * 1024)
    assert bits == pytest.approx(4 + 16 / 128, abs=0.01)


def test_encodings():
    assert encoding_for(WeightSpec(4, 32), Part.HEAD) is Encoding.PACKED
    assert encoding_for(WeightSpec(8, None), Part.LAYER) is Encoding.PACKED
    assert encoding_for(WeightSpec(8, None), Part.EMBEDDING) is Encoding.PLAIN
    assert encoding_for(WeightSpec(8, None, activations=A8), Part.LAYER) is Encoding.PLAIN


def test_a_tied_head_comes_back_with_the_very_codes_of_its_embedding(tmp_path):
    weight = quantize_rtn(random_weight(), INT8_PER_CHANNEL)
    modules = [
        stored_module("model.embed_tokens", INT8_PER_CHANNEL, Part.EMBEDDING),
        stored_module("lm_head", INT8_PER_CHANNEL, Part.HEAD, shares_codes=True),
    ]
    folder = write_folder(tmp_path, modules, {module.module: weight for module in modules})
    assert read_config(folder).shared == {"lm_head": "model.embed_tokens"}
    found = list(read_weights(folder))
    assert [name for name, _ in found] == ["model.embed_tokens", "lm_head"]
    assert found[0][1].codes is found[1][1].codes
    assert torch.equal(found[1][1].scales, weight.scales)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights_read_into_one_scratch_are_right_one_after_the_other(tmp_path, bits):
    spec = WeightSpec(bits, 32)
    shapes = {"a": (41, 96), "b": (16, 64), "c": (64, 96)}
    weights = {name: quantize_rtn(torch.randn(shape), spec) for name, shape in shapes.items()}
    modules = [stored_module(name, spec, rows=rows, columns=columns) for name, (rows, columns) in shapes.items()]
    folder = write_folder(tmp_path, modules, weights)
    seen = []
    for name, weight in read_weights(folder, Scratch()):
        assert torch.equal(weight.codes, weights[name].codes)
        assert torch.equal(weight.scales, weights[name].scales)
        seen.append(name)
    assert sorted(seen) == ["a", "b", "c"]


def test_codes_of_8_bits_stay_whole_although_there_is_scratch(tmp_path):
    spec = WeightSpec(8, None)
    weights = {name: quantize_rtn(torch.randn(41, 96), spec) for name in "ab"}
    modules = [stored_module(name, spec) for name in weights]
    folder = write_folder(tmp_path, modules, weights)
    found = dict(read_weights(folder, Scratch()))
    assert all(torch.equal(found[name].codes, weights[name].codes) for name in weights)


def test_the_largest_weights_come_first(tmp_path):
    weight = quantize_rtn(random_weight(), WeightSpec(4, 32))
    table = quantize_rtn(torch.randn(410, 96), INT8_PER_CHANNEL)
    layers = [stored_module(f"model.layers.{number}", weight.spec) for number in range(2)]
    head = stored_module("z_head", INT8_PER_CHANNEL, Part.HEAD, rows=410)
    folder = write_folder(tmp_path, [*layers, head], {layer.module: weight for layer in layers} | {head.module: table})
    assert [name for name, _ in read_weights(folder)] == ["z_head", "model.layers.0", "model.layers.1"]


def test_kinds_of_weights_become_groups_that_the_library_accepts():
    modules = [
        stored_module("model.layers.0.a", WeightSpec(4, 32)),
        stored_module("model.layers.0.b", WeightSpec(4, 16)),
        stored_module("model.layers.1.a", WeightSpec(4, 32)),
        stored_module("lm_head", INT8_PER_CHANNEL, Part.HEAD),
    ]
    config = quantization_config(modules, ["model.layers.1.b"])
    assert config["format"] == "mixed-precision"
    assert [group["targets"] for group in config["config_groups"].values()] == [
        ["model.layers.0.a", "model.layers.1.a"],
        ["model.layers.0.b"],
        ["lm_head"],
    ]
    parsed = QuantizationConfig.model_validate(json.loads(json.dumps(config)))
    assert parsed.config_groups["group_1"].weights.group_size == 16
    assert quantization_config(modules[:1], [])["format"] == "pack-quantized"


def test_a_folder_without_quantization_has_no_specs(tmp_path):
    folder = write_folder(tmp_path, [], {}, extra=["model.norm.weight"])
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert read_config(folder).specs == {}
    assert [name for name, _ in read_weights(folder)] == ["model.norm.weight"]


REFUSED = {
    "another method": lambda config: config.update(quant_method="gptq"),
    "patterns": lambda config: config["config_groups"]["group_0"].update(targets=["re:.*"]),
    "five bits": lambda config: config["config_groups"]["group_0"]["weights"].update(num_bits=5),
    "float": lambda config: config["config_groups"]["group_0"]["weights"].update(type="float"),
    "blocks": lambda config: config["config_groups"]["group_0"]["weights"].update(strategy="block"),
    "static activations": lambda config: config["config_groups"]["group_0"].update(
        input_activations={"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}
    ),
    "no groups": lambda config: config.update(config_groups=[]),
    "a group that is none": lambda config: config.update(config_groups={"group_0": "W4A16"}),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_other_quantization_is_refused_in_words(tmp_path, change):
    spec = WeightSpec(4, 32)
    folder = write_folder(tmp_path, [stored_module("a", spec)], {"a": quantize_rtn(random_weight(), spec)})
    change_config(folder, change)
    with pytest.raises(ModelUnsupported, match=r"cannot be run here\. .+\. Start from"):
        read_config(folder)


CONTRADICTIONS = {
    "another group size": lambda config: config["config_groups"]["group_0"]["weights"].update(group_size=48),
    "another width": lambda config: config["config_groups"]["group_0"]["weights"].update(num_bits=8),
    "zero points that are not there": lambda config: config["config_groups"]["group_0"]["weights"].update(
        symmetric=False
    ),
    "a module that is not listed": lambda config: config["config_groups"]["group_0"].update(targets=["b"]),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradictions_are_damage(tmp_path, change):
    spec = WeightSpec(4, 32)
    folder = write_folder(tmp_path, [stored_module("a", spec)], {"a": quantize_rtn(random_weight(), spec)})
    change_config(folder, change)
    with pytest.raises(ModelDamaged):
        list(read_weights(folder))


BAD_SHAPES = {
    "of another matrix": torch.tensor([41, 64]),
    "negative": torch.tensor([-41, 96]),
    "three numbers": torch.tensor([41, 96, 1]),
    "no shape": None,
}


@pytest.mark.parametrize("shape", BAD_SHAPES.values(), ids=BAD_SHAPES.keys())
def test_a_shape_that_is_not_the_matrix_is_damage(tmp_path, shape):
    spec = WeightSpec(4, 32)
    folder = write_folder(tmp_path, [stored_module("a", spec)], {"a": quantize_rtn(random_weight(), spec)})
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("a.weight_shape")
    save_file(tensors | ({} if shape is None else {"a.weight_shape": shape}), folder / "model.safetensors")
    with pytest.raises(ModelDamaged):
        list(read_weights(folder))


def test_short_zero_points_of_other_programs_are_read(tmp_path):
    spec = WeightSpec(4, 32, symmetric=False)
    weight = quantize_rtn(random_weight(), spec)
    folder = write_folder(tmp_path, [stored_module("a", spec)], {"a": weight})
    tensors = load_file(folder / "model.safetensors")
    tensors["a.weight_zero_point"] = pack_to_int32(weight.zero_points, 4, packed_dim=0).contiguous()
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(dict(read_weights(folder))["a"].zero_points, weight.zero_points)


def test_a_tied_head_without_its_table_is_damage(tmp_path):
    weight = quantize_rtn(random_weight(), INT8_PER_CHANNEL)
    head = stored_module("lm_head", INT8_PER_CHANNEL, Part.HEAD, shares_codes=True)
    folder = write_folder(tmp_path, [head], {"lm_head": weight})
    with pytest.raises(ModelDamaged, match="lm_head are missing"):
        read_config(folder)


def test_class_names_as_targets_are_read(tmp_path):
    spec = WeightSpec(4, 32)
    folder = write_folder(tmp_path, [stored_module("a", spec)], {"a": quantize_rtn(random_weight(), spec)})
    change_config(folder, lambda config: config["config_groups"]["group_0"].update(targets=["Linear"]))
    assert read_config(folder).specs == {"a": spec}
