"""Crafted folders: each trick is caught, in time, and ordinary models are left in peace."""

import json
import os
import random
import time

import pytest

from quantstudio.core.errors import ModelDamaged, ModelNotFound, ModelUnsafe, QuantStudioError
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.safety import Finding, Level, check_folder, require_safe


def change(folder, name="config.json", **keys):
    path = folder / name
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(data | keys), encoding="utf-8")


def test_ordinary_folders_are_clean(make_model):
    assert check_folder(make_model()) == []
    assert check_folder(make_model.sharded()) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "attacker/kernel"},
        {"_attn_implementation": "attacker/kernel@main:evil"},
        {"text_config": {"_attn_implementation_internal": "paged|attacker/kernel"}},
        {"experts_implementation": "attacker/experts"},
        {"use_kernels": True},
        {"text_config": {"kernel_config": {"kernel_mapping": {}}}},
        {"trust_remote_code": True},
        {"num_hidden_layers": 1_000_000},
        {"n_layer": -1},
        {"text_config": {"num_layers": 10**9}},
        {"vocab_size": 10**12},
        {"hidden_size": 1e30},
        {"intermediate_size": float("nan")},
        {"intermediate_size": [64] * 5000},
        {"max_position_embeddings": -5},
        {"quantization_config": {"quant_method": "homemade"}},
        {"quantization_config": {"bits": 4}},
        {"quantization_config": "gptq please"},
        {"quantization_config": {"quant_method": ["gptq"]}},
        {"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["re:(a+)+$"]}},
        {"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["re:" + "x" * 1000]}},
    ],
    ids=lambda keys: json.dumps(keys)[:50],
)
def test_configurations_that_ask_for_too_much(make_model, keys):
    folder = make_model()
    change(folder, **keys)
    with pytest.raises(ModelUnsafe):
        require_safe(folder)
    with pytest.raises(ModelUnsafe):
        read_model_info(folder)
    assert check_folder(folder)[0].level is Level.BLOCK


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "sdpa"},
        {"_attn_implementation": "flash_attention_2"},
        {"trust_remote_code": False},
        {"n_inner": None},
        {"quantization_config": {"quant_method": "compressed-tensors", "ignore": [r"re:.*\.layers\.(0|1)\..*"]}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
    ids=lambda keys: json.dumps(keys)[:50],
)
def test_configurations_that_real_models_have(make_model, keys):
    folder = make_model()
    change(folder, **keys)
    assert check_folder(folder) == []


def test_code_is_noted_but_does_not_block_because_it_never_runs(make_model):
    """Phi-3 and others still carry code from before transformers knew them."""
    folder = make_model()
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tok", None]})
    (folder / "modeling_evil.py").write_text("raise SystemExit", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert check_folder(folder) == [
        Finding(Level.NOTE, "The folder holds Python code (modeling_evil.py). It is never run."),
        Finding(Level.NOTE, "The folder holds pickle files (pytorch_model.bin). They are never opened."),
        Finding(Level.NOTE, "config.json asks for Python code of its own (auto_map). It is never run."),
        Finding(Level.NOTE, "tokenizer_config.json asks for Python code of its own (auto_map). It is never run."),
    ]
    read_model_info(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..\\b.safetensors", ".hidden.safetensors"),
        *("C:evil.safetensors", "model.bin", "x\n.safetensors", 7, None, ["a.safetensors"], "\0.safetensors"),
    ],
    ids=repr,
)
def test_an_index_may_not_name_files_elsewhere(make_model, name):
    folder = make_model.sharded()
    make_model.index(folder, {"a.weight": name})
    with pytest.raises(ModelUnsafe, match="outside the model's folder"):
        read_model_info(folder)


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret", "loop"])
def test_links_may_not_lead_out(make_model, target):
    folder = make_model()
    (folder.parent / "secret").write_text("x", encoding="utf-8")
    (folder / "loop").symlink_to(target)
    with pytest.raises(ModelUnsafe, match="leads out of the model's folder"):
        require_safe(folder)


def test_links_below_folders_are_found_and_inner_links_are_fine(make_model):
    folder = make_model()
    (folder / "copy.json").symlink_to("config.json")
    require_safe(folder)
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "out").symlink_to("/")
    with pytest.raises(ModelUnsafe, match="out is a link"):
        require_safe(folder)


def test_a_snapshots_links_may_reach_their_own_blobs_but_not_another_models(make_model):
    folder = make_model("hub/models--a--b/snapshots/" + "a" * 40)
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    (folder / "config.json").rename(blobs / "1")
    (folder / "config.json").symlink_to("../../blobs/1")
    require_safe(folder)
    other = folder.parent.parent.parent / "models--c--d"
    other.mkdir()
    (other / "1").write_text("{}", encoding="utf-8")
    (folder / "generation_config.json").symlink_to("../../../models--c--d/1")
    with pytest.raises(ModelUnsafe, match="generation_config"):
        require_safe(folder)


def test_a_model_reached_through_a_link_is_fine(make_model):
    folder = make_model()
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert read_model_info(link).parameters == read_model_info(folder).parameters


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", "[" * 100_000, ModelUnsafe),
        ("config.json", '{"a":' * 60 + "1" + "}" * 60, ModelUnsafe),
        ("config.json", " " * (5 << 20), ModelUnsafe),
        ("config.json", "[]", ModelDamaged),
        ("config.json", '{"a": 1, "a": 2}', ModelDamaged),
        ("config.json", '{"a": ' + "9" * 5000 + "}", ModelDamaged),
        ("config.json", "{'a': 1}", ModelDamaged),
        ("generation_config.json", " " * (2 << 20), ModelUnsafe),
        ("tokenizer_config.json", json.dumps({"chat_template": "x" * 600_000}), ModelUnsafe),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"template": "x" * 600_000}]}), ModelUnsafe),
        ("chat_template.jinja", "x" * 600_000, ModelUnsafe),
        ("additional_chat_templates/rag.jinja", "x" * 600_000, ModelUnsafe),
        ("adapter_config.json", "{}", ModelUnsafe),
        ("model.safetensors.index.json", " " * (33 << 20), ModelUnsafe),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_files_that_are_too_large_too_deep_or_no_json(make_model, name, content, error):
    folder = make_model()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    if "index" in name:
        (folder / "model.safetensors").unlink()
    started = time.monotonic()
    with pytest.raises(error):
        read_model_info(folder)
    assert time.monotonic() - started < 2


def test_a_header_that_claims_to_be_huge_is_not_read(make_model):
    folder = make_model()
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(2 << 30)  # sparse: takes no room on the disk
    started = time.monotonic()
    with pytest.raises(ModelUnsafe, match="claims"):
        read_model_info(folder)
    assert time.monotonic() - started < 1


def test_a_folder_with_too_many_files_is_no_model(make_model, monkeypatch):
    monkeypatch.setattr("quantstudio.core.safety.MAX_ENTRIES", 10)
    folder = make_model()
    for number in range(12):
        (folder / f"{number}.txt").touch()
    with pytest.raises(ModelUnsafe, match="more than 10 files"):
        require_safe(folder)


def test_findings_name_every_blocker_of_a_thoroughly_bad_folder(make_model):
    folder = make_model.sharded()
    make_model.index(folder, {"a": "../b.safetensors"})
    change(folder, num_hidden_layers=10**7)
    (folder / "out").symlink_to("/")
    findings = check_folder(folder)
    assert [finding.level for finding in findings] == [Level.BLOCK] * 3


def test_no_folder_is_a_finding_too(tmp_path):
    assert check_folder(tmp_path / "nowhere")[0].level is Level.BLOCK
    with pytest.raises(ModelNotFound):
        require_safe(tmp_path / "nowhere")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said(make_model):
    folder = make_model()
    (folder / "config.json").chmod(0)
    with pytest.raises(ModelDamaged, match="cannot be read"):
        read_model_info(folder)


def _mutated(raw, randomness):
    """A few bytes flipped, dropped, doubled, or swapped for JSON's own characters."""
    data = bytearray(raw)
    for _ in range(randomness.randint(1, 6)):
        place = randomness.randrange(len(data))
        match randomness.randrange(4):
            case 0:
                data[place] = randomness.randrange(256)
            case 1:
                del data[place : place + randomness.randint(1, 20)]
            case 2:
                data[place:place] = data[place : place + randomness.randint(1, 40)]
            case 3:
                data[place : place + 1] = randomness.choice(
                    [b"[", b"}", b'"', b"-", b"9" * 30, b"null", b"1e999", b"{"]
                )
        if not data:
            return b"{}"
    return bytes(data)


def _outcome(folder):
    """What planning for this folder comes to; anything but a named error with words fails the test."""
    try:
        make_plan(read_model_info(folder), Recipe())
    except QuantStudioError as error:
        return error.kind if error.what and len(str(error)) < 2000 else f"too few or too many words: {error}"
    return "fine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"])
def test_only_named_errors_come_out_of_random_damage(make_model, name):
    """Whatever the bytes: a whole description, or an error that a person can read. Seeded, so it repeats."""
    randomness = random.Random(20_240_601)  # noqa: S311
    folder = make_model.sharded(quantization_config={"quant_method": "compressed-tensors", "config_groups": {}})
    change(folder, "tokenizer_config.json", chat_template=[{"name": "default", "template": "x"}], auto_map={})
    whole = (folder / name).read_bytes()
    outcomes = set()
    for _ in range(300):
        (folder / name).write_bytes(_mutated(whole, randomness))
        outcomes.add(_outcome(folder))
    assert "model_damaged" in outcomes
    assert outcomes <= {"model_damaged", "fine", "model_unsafe"}


def test_only_named_errors_come_out_of_damaged_headers(make_model):
    randomness = random.Random(7)  # noqa: S311
    folder = make_model()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    outcomes = set()
    for _ in range(300):
        make_model.write_header(file, _mutated(whole[8:length], randomness), len(whole) - length)
        outcomes.add(_outcome(folder))
    assert outcomes == {"model_damaged", "fine"}


def test_only_named_errors_come_out_of_random_bytes_at_the_start_of_weights(make_model):
    randomness = random.Random(8)  # noqa: S311
    folder = make_model()
    file = folder / "model.safetensors"
    for size in range(0, 300, 3):
        file.write_bytes(randomness.randbytes(size))
        assert _outcome(folder) in ("model_damaged", "model_unsafe")


def test_a_row_of_two_billion_weights_does_not_make_planning_wait(make_model):
    folder = make_model()
    make_model.write_safetensors(folder / "model.safetensors", {"a.weight": ("BF16", (1, 2**31 - 1))})
    change(folder, num_hidden_layers=0)
    started = time.monotonic()
    make_plan(read_model_info(folder), Recipe())
    assert time.monotonic() - started < 1


def test_only_named_errors_come_out_of_random_values(make_model):
    """Every key of the configuration with values of every kind."""
    folder = make_model(text_config={}, quantization_config={"quant_method": "gptq"}, architectures=["X"])
    path = folder / "config.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    values = [None, True, -1, 0, 2**70, 1.5, "", "x" * 500, [], [[]], {}, {"a": {"b": None}}, "\ud800", 1e308]
    values += [{"weights": {"num_bits": 0}}, {"config_groups": {"g": {"weights": 3}}}, {"model_type": 3}]
    outcomes = set()
    for key in [*whole, "n_layer", "compression_config", "unknown"]:
        for value in values:
            path.write_text(json.dumps(whole | {key: value}), encoding="utf-8")
            outcomes.add(_outcome(folder))
    assert outcomes == {"fine", "model_unsafe"}
