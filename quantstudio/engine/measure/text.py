"""The text that models are judged by, cut into windows of tokens.

Windows do not overlap and never see each other. Each begins with the tokenizer's start token where it has one
(Gemma's scores are useless without), and its first token of text is context only, so every scored token has been
predicted from text.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantstudio.core.errors import ModelUnsupported, RecipeError
from quantstudio.core.paths import resources
from quantstudio.core.recipe import BuiltinText, FileText

BUILTIN_NAME = "built-in novels"
_FIELD = "measure.text.path"
_MIN_BYTES = 2048
_MIN_SCORED = 256
_BYTES_PER_TOKEN = 16
"""More than any tokenizer takes on average, so that a text of this many bytes a token has tokens enough."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text and what to call it."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Windows:
    """`ids`: int64 `[windows, length]`, start token included. The rest is for positions 1 … of each window:
    `scored`: bool, `nbytes`: int64, both `[windows, length - 1]`; the bytes of text that each scored token adds."""

    ids: NDArray[np.int64]
    scored: NDArray[np.bool_]
    nbytes: NDArray[np.int64]


def read_text(choice: BuiltinText | FileText, tokens: int) -> Text:
    """The evaluation text, as much of its beginning as `tokens` tokens can need (at least 1 MB).

    Raises RecipeError when a person's file is missing, a folder, empty, too short, binary or not UTF-8.
    """
    if isinstance(choice, BuiltinText):
        return Text(BUILTIN_NAME, _decode(resources() / "text" / "evaluation.txt", tokens))
    if not choice.path.strip():
        raise _refuse("No evaluation text is chosen.", "Choose a text file, or use the built-in text.")
    path = Path(choice.path).expanduser()
    content = _decode(path, tokens)
    if len(content.encode()) < _MIN_BYTES:
        raise _refuse(
            f"The evaluation text {path.name} is too short.",
            f"Choose a text of at least {_MIN_BYTES:,} characters; a few pages give useful numbers.",
        )
    return Text(path.name, content)


def prompt_ids(text: Text, tokenizer: Any, tokens: int, seed: int) -> list[int]:
    """A prompt of exactly `tokens` tokens of the text, from a place that the seed picks; a short text is repeated."""
    if tokens <= 0:
        return []
    span = tokens * _BYTES_PER_TOKEN
    start = int(np.random.default_rng(seed).integers(0, max(1, len(text.content) - span)))
    ids = _start_ids(tokenizer) + _ids(tokenizer, text.content[start : start + span])
    while len(ids) < tokens:
        ids += ids
    return ids[:tokens]


def cut_windows(text: Text, tokenizer: Any, length: int, tokens: int, seed: int) -> Windows:
    """Windows of `length` tokens, about `tokens` in all, picked by the seed from the whole text.

    Raises RecipeError when the text is too short, ModelUnsupported when the tokenizer cannot say where its tokens lie.
    """
    encoded = _encode(tokenizer, text.content)
    start_ids = _start_ids(tokenizer)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    step = min(length - len(start_ids), len(ids))
    if step < 2 or len(ids) - len(ids) // step < _MIN_SCORED:
        raise _refuse(
            f"The evaluation text {text.name} is too short: it has only {len(ids)} tokens.",
            "Choose a longer text.",
        )
    count = min(max(1, tokens // length), len(ids) // step)
    picked = np.random.default_rng(seed).choice(len(ids) // step, size=count, replace=False)
    places = (np.sort(picked) * step)[:, None] + np.arange(step)
    ends, clean = _borders(text.content, encoded["offset_mapping"])
    nbytes = np.diff(ends, prepend=0)[places]
    scored = _between_clean(clean[places])
    pad = len(start_ids)
    return Windows(
        np.concatenate([np.tile(np.asarray(start_ids, dtype=np.int64), (count, 1)), ids[places]], axis=1),
        np.pad(scored, ((0, 0), (pad, 0)))[:, 1:],
        np.pad(nbytes, ((0, 0), (pad, 0)))[:, 1:],
    )


def _decode(path: Path, tokens: int) -> str:
    limit = max(1 << 20, tokens * _BYTES_PER_TOKEN)
    try:
        with path.open("rb") as file:
            data = file.read(limit)
            cut = bool(file.read(1))
    except OSError as error:
        reason = "There is no such file." if isinstance(error, FileNotFoundError) else f"{error.strerror or error}."
        raise _refuse(f"The evaluation text {path} cannot be read.", "Choose a UTF-8 text file.", reason) from error
    if not data:
        raise _refuse(f"The evaluation text {path.name} is empty.", "Choose a text of at least a few pages.")
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=not cut)
    except UnicodeDecodeError as error:
        raise _refuse(
            f"The evaluation text {path.name} is not UTF-8.",
            "Save it as UTF-8 in a text editor, or choose a plain text file.",
            f"Byte {error.start:,} belongs to no UTF-8 character.",
        ) from error
    if "\x00" in text:
        raise _refuse(f"{path.name} is not a text file.", "Choose a UTF-8 text file.", "It holds zero bytes.")
    return text


def _encode(tokenizer: Any, content: str) -> Any:
    try:
        return tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise ModelUnsupported(
            "The quality of this model cannot be measured.",
            why="Its tokenizer does not say which characters a token stands for.",
            hint="Turn off the measurement, or use a copy of the model that has a tokenizer.json.",
            field="measure.enabled",
        ) from error


def _ids(tokenizer: Any, content: str) -> list[int]:
    return list(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"])


def _start_ids(tokenizer: Any) -> list[int]:
    """The start token, when the tokenizer itself would put it in front of a text."""
    start = tokenizer.bos_token_id
    return [start] if start is not None and tokenizer("a")["input_ids"][:1] == [start] else []


def _borders(content: str, offsets: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each token: the byte at which it ends, and whether that is between two characters.

    Tokens of byte-level vocabularies may share a character; the tokenizer then names the whole character for each.
    """
    codes = np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(lengths)])
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    ends = np.maximum.accumulate(spans[:, 1])
    clean = np.append(ends[:-1] <= spans[1:, 0], True)
    return bytes_before[ends], clean


def _between_clean(clean: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tokens of each window are scored: those after the first clean border up to the last clean border.

    So the scored tokens of a window spell whole characters, and their bytes are exact.
    """
    after_first = np.cumsum(clean, axis=1) - clean > 0
    before_last = np.cumsum(clean[:, ::-1], axis=1)[:, ::-1] > 0
    return after_first & before_last


def _refuse(what: str, hint: str, why: str = "") -> RecipeError:
    return RecipeError(what, why=why, hint=hint, field=_FIELD)
