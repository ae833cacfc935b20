"""Tokenizers of the families that models come with must be what transformers alone makes of their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from quantstudio.core.errors import ModelDamaged
from quantstudio.core.paths import resources
from quantstudio.engine import load_tokenizer as module
from quantstudio.engine.load_tokenizer import load_tokenizer

TEXTS = (
    "It was a dark night; the whaler's captain stood – silent.",
    "  Two spaces,\n\n\ttabs and 12345 numbers, naïve Ünicode 東京 \U0001f40b.",
    "<|im_start|>user\nHello<|im_end|>\n<tool>call</tool><pad></s>",
    "",
)
TEMPLATE = "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def _byte_level(specials: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _trained(made, specials, pre_tokenizers.ByteLevel.alphabet())


def _llama3(specials: list[str]) -> Tokenizer:
    made = _byte_level(specials)
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def _sentence_pieces(specials: list[str], prepend: str) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prepend else []), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] * bool(prepend)),
        ]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    return _trained(made, [*specials, *fallback], [])


def _trained(made: Tokenizer, specials: list[str], alphabet: list[str]) -> Tokenizer:
    text = (resources() / "text" / "evaluation.txt").read_text(encoding="utf-8")[:30_000]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(text.splitlines(), trainer)
    made.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    made.add_tokens([AddedToken("<tool>", lstrip=True, normalized=False), AddedToken("</tool>", rstrip=True)])
    return made


PIECES = ["<pad>", "<s>", "</s>", "<unk>"]
FAMILIES: dict[str, tuple[str, str, Callable[[], Tokenizer]]] = {
    "qwen2": ("qwen2", "Qwen2Tokenizer", lambda: _byte_level(PIECES)),
    "qwen2 as transformers 5 writes it": ("qwen2", "TokenizersBackend", lambda: _byte_level(PIECES)),
    "qwen3": ("qwen3", "Qwen2Tokenizer", lambda: _byte_level(PIECES)),
    "llama 3": ("llama", "PreTrainedTokenizerFast", lambda: _llama3(PIECES)),
    "llama 2": ("llama", "LlamaTokenizer", lambda: _sentence_pieces(PIECES, "▁")),
    "byte-level named as llama 2": ("llama", "LlamaTokenizerFast", lambda: _byte_level(PIECES)),
    "mistral": ("mistral", "LlamaTokenizer", lambda: _sentence_pieces(PIECES, "▁")),
    "gemma": ("gemma3_text", "GemmaTokenizer", lambda: _sentence_pieces(PIECES, "")),
    "gpt2": ("gpt2", "GPT2Tokenizer", lambda: _byte_level(PIECES)),
    "gpt_neox": ("gpt_neox", "GPTNeoXTokenizerFast", lambda: _byte_level(PIECES)),
    "olmo": ("olmo", "GPTNeoXTokenizer", lambda: _byte_level(PIECES)),
    "phi3": ("phi3", "LlamaTokenizer", lambda: _sentence_pieces(PIECES, "▁")),
}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder of each family, without weights."""
    model_type, tokenizer_class, make = FAMILIES[request.param]
    made = make()
    made.save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path / "config.json", {"model_type": model_type, "vocab_size": made.get_vocab_size()})
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "tool_token": "<tool>",
        "padding_side": "left",
        "model_max_length": 256,
        "extra_special_tokens": ["<|im_start|>"],
        "chat_template": TEMPLATE,
    }
    _write(tmp_path / "tokenizer_config.json", config)
    return tmp_path


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _changed(path: Path, **changes: Any) -> None:
    _write(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _assert_as_transformers_makes_it(folder: Path) -> PreTrainedTokenizerBase:
    expected = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    found = load_tokenizer(folder)
    assert found is not None
    assert type(found) is type(expected)
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    for text in TEXTS:
        for special in (True, False):
            ids = expected(text, add_special_tokens=special)["input_ids"]
            assert found(text, add_special_tokens=special)["input_ids"] == ids
        assert found.decode(ids) == expected.decode(ids)
        assert found.decode(ids, skip_special_tokens=True) == expected.decode(ids, skip_special_tokens=True)
    assert found(list(TEXTS), padding=True)["input_ids"] == expected(list(TEXTS), padding=True)["input_ids"]
    turns = [{"role": "user", "content": "Where is the whale?"}]
    assert found.apply_chat_template(turns) == expected.apply_chat_template(turns)
    assert _state(found) == _state(expected)
    return found


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything that it knows, save for what it was built from."""
    held = {name: value for name, value in vars(tokenizer).items() if name not in ("_tokenizer", "_vocab", "_merges")}
    added = {number: repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    return {name: _plain(value) for name, value in held.items()} | {"added": added, "ids": tokenizer.all_special_ids}


def _plain(value: Any) -> Any:
    """Added tokens that say the same are different objects, and the order of a dictionary says nothing."""
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else repr(value)


def test_added_tokens_are_told_and_nothing_else_changes(folder):
    told = module._added_tokens(folder)
    contents = [token.content for token in told["added_tokens_decoder"].values()]
    assert contents[-4:] == ["<|im_start|>", "<|im_end|>", "<tool>", "</tool>"]
    _assert_as_transformers_makes_it(folder)


def test_added_tokens_of_the_configuration_are_left_to_transformers(folder):
    saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).added_tokens_decoder
    listed = {str(number): token.__getstate__() for number, token in saved.items()}
    _changed(folder / "tokenizer_config.json", added_tokens_decoder=listed)
    assert module._added_tokens(folder) == {}
    _assert_as_transformers_makes_it(folder)


def test_a_map_of_special_tokens_is_left_to_transformers(folder):
    _write(folder / "special_tokens_map.json", {"pad_token": {"content": "<unk>", "lstrip": True, "rstrip": False}})
    assert module._added_tokens(folder) == {}
    assert _assert_as_transformers_makes_it(folder).pad_token == "<unk>"


def test_a_folder_that_was_saved_anew_reads_the_same(folder, tmp_path):
    again = tmp_path / "again"
    load_tokenizer(folder).save_pretrained(again)
    (again / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert module._added_tokens(again)
    _assert_as_transformers_makes_it(again)


def test_the_vocabulary_is_parsed_once(folder, monkeypatch):
    parsed: list[str] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **how: parsed.append(text) or loads(text, **how))
    load_tokenizer(folder)
    assert sum('"merges"' in text for text in parsed if isinstance(text, str)) <= 1


def test_a_class_in_python_gets_the_same_added_tokens(tmp_path):
    _byte_level(PIECES).save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path / "config.json", {"model_type": "llama"})
    _write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    assert module._added_tokens(tmp_path)
    expected = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    found = load_tokenizer(tmp_path)
    assert type(found) is type(expected)
    assert found.get_vocab() == expected.get_vocab()
    assert repr(found.added_tokens_decoder) == repr(expected.added_tokens_decoder)
    assert [found.tokenize(text) for text in TEXTS] == [expected.tokenize(text) for text in TEXTS]


@pytest.mark.parametrize(
    "head",
    [
        "",
        "[]",
        '{"version": "1.0"}',
        '{"version" "1.0", "added_tokens": []}',
        '{"added_tokens": [{"id": 1, "content": "<s>"',
        '{"added_tokens": [1, 2]}',
        '{"added_tokens": 7}',
        '{"added_tokens": [{"content": "<s>"}]}',
        '{"added_tokens": [{"id": [], "content": "<s>"}]}',
        '{"added_tokens": [{"id": 1, "content": 5}]}',
        '{"deep": ' + "[" * 100_000,
        '{"model": {"vocab": "' + "x" * module._HEAD_BYTES + '"}, "added_tokens": []}',
        "\ufeff\udc80{",
    ],
)
def test_what_is_not_found_at_the_start_is_left_to_transformers(tmp_path, head):
    (tmp_path / "tokenizer.json").write_text(head, encoding="utf-8", errors="surrogateescape")
    _write(tmp_path / "tokenizer_config.json", {})
    assert module._added_tokens(tmp_path) == {}


@pytest.mark.parametrize("config", ["", "null", "7", '{"fast_tokenizer_files": ["tokenizer.4.json"]}'])
def test_a_configuration_that_says_something_else_is_left_to_transformers(tmp_path, config):
    _byte_level(PIECES).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    assert module._added_tokens(tmp_path) == {}


def test_a_broken_tokenizer_is_named(folder):
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: text.index('"model"')] + '"model": {', encoding="utf-8")
    assert module._added_tokens(folder)
    with pytest.raises(ModelDamaged, match="tokenizer"):
        load_tokenizer(folder)
