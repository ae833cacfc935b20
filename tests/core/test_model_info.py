"""What is read off a model folder, and each way in which one can be broken."""

import json
import os

import pytest

from quantstudio.core.errors import ModelDamaged, ModelNotFound, ModelUnsafe, ModelUnsupported
from quantstudio.core.model_info import Part, read_model_info


def slots_of(info, part):
    return [slot for slot in info.slots if slot.part is part]


def test_a_llama_is_described_completely(make_model):
    folder = make_model("Some-Llama")
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: apache-2.0\n---\n# Card\n", encoding="utf-8")
    info = read_model_info(folder)
    blocks = 3 * (4 * 64 * 64 + 3 * 64 * 152 + 2 * 64)
    assert (info.name, info.architecture, info.model_type) == ("Some-Llama", "LlamaForCausalLM", "llama")
    assert info.parameters == 2 * 320 * 64 + blocks + 64
    assert info.nbytes == 2 * info.parameters
    assert (info.dtype, info.tied, info.license, info.quantized) == ("BF16", False, "apache-2.0", "")
    assert (info.vocab_size, info.context_length, info.hidden_size, info.layers) == (320, 1024, 64, 3)
    assert len(slots_of(info, Part.LAYER)) == 21
    down = next(slot for slot in info.slots if slot.module == "model.layers.2.mlp.down_proj")
    assert (down.rows, down.columns, down.quantizable) == (64, 152, True)
    assert {tensor.name for tensor in info.tensors if tensor.part is Part.REST} == {
        *(f"model.layers.{i}.{n}_layernorm.weight" for i in range(3) for n in ("input", "post_attention")),
        "model.norm.weight",
    }


def test_a_sharded_model_reads_like_a_whole_one(make_model):
    whole, split = read_model_info(make_model()), read_model_info(make_model.sharded(shards=3))
    assert {slot.module for slot in whole.slots} == {slot.module for slot in split.slots}
    assert (whole.nbytes, whole.parameters) == (split.nbytes, split.parameters)
    assert len({tensor.file for tensor in split.tensors}) == 3


def test_a_tied_model_has_a_head_that_is_the_embedding(make_model):
    info = read_model_info(make_model(tensors=make_model.llama_tensors(head=False), tie_word_embeddings=True))
    (head,) = slots_of(info, Part.HEAD)
    (embedding,) = slots_of(info, Part.EMBEDDING)
    assert info.tied
    assert (head.module, head.tensor) == ("lm_head", embedding.tensor)
    assert (head.rows, head.columns, head.quantizable) == (320, 64, True)


def test_two_matrices_in_the_files_count_as_two_whatever_the_configuration_says(make_model):
    info = read_model_info(make_model(tie_word_embeddings=True))
    assert not info.tied
    assert slots_of(info, Part.HEAD)[0].tensor == "lm_head.weight"


def test_families_that_tie_by_default_do(make_model):
    config = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 3}
    info = read_model_info(make_model(config=config, tensors=make_model.llama_tensors(head=False)))
    assert info.tied
    assert (info.vocab_size, info.hidden_size) == (320, 64)  # read off the embedding


def test_a_model_without_a_head_is_refused_instead_of_getting_a_random_one(make_model):
    with pytest.raises(ModelDamaged, match="no output head"):
        read_model_info(make_model(tensors=make_model.llama_tensors(head=False)))


def test_fewer_blocks_than_promised_are_missed(make_model):
    with pytest.raises(ModelDamaged, match="9 of the model's 12 layers are missing"):
        read_model_info(make_model(num_hidden_layers=12))


def test_experts_and_routers_are_named_as_not_quantizable(make_model):
    tensors = make_model.llama_tensors() | {
        "model.layers.0.mlp.gate.weight": ("BF16", (8, 64)),
        "model.layers.0.mlp.experts.7.up_proj.weight": ("BF16", (32, 64)),
        "model.layers.1.mlp.experts.gate_up_proj": ("BF16", (8, 64, 64)),
        "model.layers.1.block_sparse_moe.gate.weight": ("BF16", (8, 64)),
    }
    info = read_model_info(make_model(tensors=tensors))
    refused = {slot.module: slot.why_not for slot in info.slots if not slot.quantizable}
    assert refused == {
        "model.layers.0.mlp.gate": "router of a mixture-of-experts layer",
        "model.layers.1.block_sparse_moe.gate": "router of a mixture-of-experts layer",
        "model.layers.0.mlp.experts.7.up_proj": "expert of a mixture-of-experts layer (stored fused)",
        "model.layers.1.mlp.experts.gate_up_proj": "expert of a mixture-of-experts layer (stored fused)",
    }


def test_gpt2_layers_are_conv1d_and_positions_are_rest(make_model):
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_positions": 128, "vocab_size": 320}
    tensors = {
        "transformer.wte.weight": ("F32", (320, 64)),
        "transformer.wpe.weight": ("F32", (128, 64)),
        "transformer.h.0.attn.c_attn.weight": ("F32", (64, 192)),
        "transformer.h.0.attn.bias": ("F32", (1, 1, 128, 128)),
        "transformer.h.0.attn.c_attn.bias": ("F32", (192,)),
    }
    info = read_model_info(make_model(config=config, tensors=tensors))
    assert [(slot.module, slot.why_not) for slot in info.slots if not slot.quantizable] == [
        ("transformer.h.0.attn.c_attn", "Conv1D layer")
    ]
    assert [slot.module for slot in info.slots if slot.quantizable] == ["transformer.wte", "lm_head"]
    assert (info.context_length, info.layers, info.tied, info.has_position_table) == (128, 1, True, True)


def test_what_compressed_tensors_stores_counts_for_the_part_it_belongs_to(make_model):
    down = "model.layers.0.mlp.down_proj"
    tensors = make_model.llama_tensors()
    del tensors[f"{down}.weight"]
    tensors |= {
        f"{down}.weight_packed": ("I32", (64, 19)),
        f"{down}.weight_scale": ("BF16", (64, 19)),
        f"{down}.weight_shape": ("I64", (2,)),
        "lm_head.weight": ("I8", (320, 64)),
        "lm_head.weight_scale": ("BF16", (320, 1)),
    }
    method = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    quantized = read_model_info(make_model("q", tensors=tensors, quantization_config=method))
    plain = read_model_info(make_model("p"))
    parts = {tensor.name: tensor.part for tensor in quantized.tensors}
    assert quantized.quantized == "compressed-tensors"
    assert quantized.parameters == plain.parameters
    assert {parts[f"{down}.weight_{leaf}"] for leaf in ("packed", "scale", "shape")} == {Part.LAYER}
    assert parts["lm_head.weight_scale"] is Part.HEAD
    assert {slot.module: slot.why_not for slot in quantized.slots if not slot.quantizable} == {
        down: "already quantized",
        "lm_head": "stored as I8, not as floating point",
    }


def test_a_snapshot_of_the_cache_is_called_by_its_owner_and_name(make_model):
    folder = make_model("models--HuggingFaceTB--SmolLM2-135M/snapshots/" + "a" * 40)
    assert read_model_info(folder).name == "HuggingFaceTB/SmolLM2-135M"


def test_a_licence_file_stands_in_for_a_card(make_model):
    folder = make_model()
    (folder / "LICENSE-MIT").write_text("…", encoding="utf-8")
    assert read_model_info(folder).license == "LICENSE-MIT"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("---\nlicense: <b>free</b>\n---\n", ""),
        ("license: mit\n", ""),
        ("---\nlicense:\n- mit\n---\n", ""),
    ],
)
def test_the_licence_is_what_the_front_matter_says(make_model, card, licence):
    folder = make_model()
    (folder / "README.md").write_bytes(card.encode())
    assert read_model_info(folder).license == licence


def test_names_that_are_no_names_do_not_reach_the_screen(make_model):
    folder = make_model(
        model_type="<img src=x>", architectures=["<script>"], quantization_config={"quant_method": "gptq"}
    )
    info = read_model_info(folder)
    assert (info.model_type, info.architecture, info.quantized) == ("", "", "gptq")
    make_model.write_safetensors(folder / "model.safetensors", {"<b>bold</b>.weight": ("BF16", (4, 4))})
    with pytest.raises(ModelDamaged, match="no tensor"):
        read_model_info(folder)


def test_encoders_of_images_stay_and_are_named(make_model):
    tensors = make_model.llama_tensors() | {
        "model.vision_tower.layers.0.fc1.weight": ("BF16", (64, 64)),
        "model.vision_tower.layers.0.fc1.bias": ("BF16", (64,)),
    }
    info = read_model_info(make_model(tensors=tensors))
    (slot,) = [slot for slot in info.slots if not slot.quantizable]
    assert (slot.module, slot.part) == ("model.vision_tower.layers.0.fc1", Part.REST)
    assert slot.why_not == "part of the encoder for images or sound"


def test_no_folder_and_no_model_folder(tmp_path):
    with pytest.raises(ModelNotFound, match="There is no folder"):
        read_model_info(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        read_model_info(tmp_path)


def test_a_folder_without_weights(make_model):
    folder = make_model()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="no weights"):
        read_model_info(folder)


def test_pickles_alone_are_refused_with_a_hint(make_model):
    folder = make_model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnsupported, match="safetensors") as caught:
        read_model_info(folder)
    assert "can run programs" in caught.value.why


def test_a_missing_shard_is_named(make_model):
    folder = make_model.sharded()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelDamaged, match=r"1 of 2 weight files are missing: model-00002-of-00002\.safetensors"):
        read_model_info(folder)


@pytest.mark.parametrize("extra", [-1, -40_000, 7])
def test_a_file_cut_short_or_padded_is_damaged(make_model, extra):
    folder = make_model()
    make_model.write_safetensors(folder / "model.safetensors", make_model.llama_tensors(), extra)
    with pytest.raises(ModelDamaged, match=r"bytes are missing at its end" if extra < 0 else "7 bytes too many"):
        read_model_info(folder)


@pytest.mark.parametrize("size", [0, 5, 8, 40])
def test_a_file_cut_inside_its_header_is_damaged(make_model, size):
    folder = make_model()
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(ModelDamaged, match="cut short"):
        read_model_info(folder)


def test_an_index_that_promises_what_no_file_holds(make_model):
    folder = make_model.sharded()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    make_model.index(folder, index["weight_map"] | {"ghost.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(ModelDamaged, match=r"contradict each other over ghost\.weight"):
        read_model_info(folder)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 31]}, "does not fill bytes 0 to 31"),
        ({"dtype": "BF16", "shape": [-4, -4], "data_offsets": [0, 32]}, "impossible shape"),
        ({"dtype": "BF16", "shape": [1 << 40, 0], "data_offsets": [0, 0]}, "impossible shape"),
        ({"dtype": "BF16", "shape": [True, 16], "data_offsets": [0, 32]}, "impossible shape"),
        ({"dtype": "PICKLE", "shape": [4, 4], "data_offsets": [0, 32]}, "unknown dtype"),
        ({"dtype": "BF16", "shape": [4, 4], "data_offsets": [8, 40]}, "gap or an overlap"),
        ({"dtype": "BF16", "shape": [4, 4], "data_offsets": "all"}, "does not say where"),
        ([], "no tensor"),
    ],
)
def test_a_header_that_lies(make_model, entry, words):
    folder = make_model()
    make_model.write_header(folder / "model.safetensors", json.dumps({"a.weight": entry}).encode(), 32)
    with pytest.raises(ModelDamaged, match=words):
        read_model_info(folder)


def test_a_tensor_named_twice_is_damaged(make_model):
    folder = make_model()
    entry = b'"a.weight":{"dtype":"BF16","shape":[4,4],"data_offsets":[0,32]}'
    make_model.write_header(folder / "model.safetensors", b"{" + entry + b"," + entry + b"}", 32)
    with pytest.raises(ModelDamaged, match="twice"):
        read_model_info(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in the file system are a Unix thing")
@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors", "generation_config.json"])
def test_a_pipe_does_not_make_us_wait(make_model, name):
    folder = make_model()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "README.md":
        assert read_model_info(folder).license == ""
    else:
        with pytest.raises((ModelNotFound, ModelUnsafe)):
            read_model_info(folder)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_packed_weights_are_counted_where_layers_differ_in_bits(make_model, bits):
    tensors = make_model.llama_tensors()
    down = "model.layers.0.mlp.down_proj"
    rows, columns = tensors.pop(f"{down}.weight")[1]
    groups, group_size = columns // 8, 8
    words = -(-columns * bits // 32)
    tensors |= {f"{down}.weight_packed": ("I32", (rows, words)), f"{down}.weight_scale": ("BF16", (rows, groups))}
    schemes = {f"group_{each}": {"weights": {"num_bits": each, "group_size": group_size}} for each in (2, 3, 4)}
    schemes["group_8"] = {"weights": {"num_bits": 8, "group_size": None}}
    method = {"quant_method": "compressed-tensors", "config_groups": schemes}
    quantized = read_model_info(make_model("q", tensors=tensors, quantization_config=method))
    assert quantized.parameters == read_model_info(make_model("p")).parameters
