"""The tokenizer of a model folder, made by transformers, without what costs most of the time there.

For a vocabulary of 152,000 tokens that takes 0.35 s (Zen 5) of Python's lock, which other threads wait for. Half of it
is the Rust library making its tables; letting it read `tokenizer.json` by itself takes as long, keeps the lock too, and
would have to be proven to give what transformers' classes make of the same file. So it is not done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from quantstudio.core.errors import ModelDamaged
from quantstudio.engine.memory import garbage_kept

_WHOLE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_TOKENIZER_FILES = (_WHOLE, "tokenizer.model", "vocab.json", _CONFIG)
_OTHER_WORD_OF_THEM = ("special_tokens_map.json", "added_tokens.json")
_ADDED, _DECODER = "added_tokens", "added_tokens_decoder"
_HEAD_BYTES = 1 << 20
"""Added tokens come before the vocabulary; a thousand of them take 0.2 MB."""
_SPACE = re.compile(r"[ \t\r\n]*")


@garbage_kept()
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model folder that was found safe; None when it has none. Raises ModelDamaged."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, **_added_tokens(folder)
        )
    except Exception as error:
        known = isinstance(error, OSError | ValueError | KeyError)
        if not known and type(error) is not Exception:  # the Rust library raises nothing more particular than that
            raise
        raise ModelDamaged(f"The tokenizer in {folder} cannot be read.", why=str(error)) from error
    _forget_copies(tokenizer)
    return tokenizer


def _added_tokens(folder: Path) -> dict[str, dict[int, AddedToken]]:
    """What transformers would otherwise parse all of `tokenizer.json` once more for, as an argument for it.

    It does so where the configuration does not list the added tokens; transformers 5 writes such folders. Empty when it
    lists them, when other files speak of them too, or when they are not found: then transformers looks for itself.
    """
    if any((folder / name).exists() for name in _OTHER_WORD_OF_THEM):
        return {}
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        if _DECODER in config or "fast_tokenizer_files" in config:
            return {}
        with (folder / _WHOLE).open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", errors="ignore")
        entries = next(value for key, value in _members(head) if key == _ADDED)
        return {_DECODER: {entry.pop("id"): AddedToken(**entry) for entry in entries}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return {}


def _members(text: str) -> Iterator[tuple[Any, Any]]:
    """Key and value of each member of the JSON object that begins here. Raises ValueError where the text breaks off."""
    decoder = json.JSONDecoder()
    place = _after_space(text, 0)
    while text[place : place + 1] in ("{", ","):
        key, place = decoder.raw_decode(text, _after_space(text, place + 1))
        place = _after_space(text, place)
        if text[place : place + 1] != ":":
            raise ValueError("a key without a value")
        value, place = decoder.raw_decode(text, _after_space(text, place + 1))
        yield key, value
        place = _after_space(text, place)


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _forget_copies(tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop what transformers built its Rust tokenizer from and never asks again: 54 MB for 150,000 tokens."""
    held = vars(tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        for name in ("_vocab", "_merges"):
            if isinstance(held.get(name), dict | list):
                held[name] = type(held[name])()
