"""The Hub's answers, checked: a stranger's JSON goes in, plain values that are safe to show and to use come out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from quantstudio.core.errors import HubAnswerUnusable
from quantstudio.core.hub import MODEL_ID, HubFile, ModelSummary
from quantstudio.core.model_files import DTYPE_BITS

MAX_FILES = 20_000
MAX_PATH = 400
MAX_PART = 150
"""Characters of one part of a path; file systems stop at 255 bytes, and a lock file adds some."""
_ID = re.compile(MODEL_ID)
_WORD = re.compile(r"[\w.+:/ -]{1,80}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{5,15}Z?")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def is_model_id(name: object) -> bool:
    """Whether this is `owner/name` as the Hub allows it: safe in an address and as a folder's name."""
    return isinstance(name, str) and bool(_ID.fullmatch(name)) and ".." not in name and "--" not in name


def is_safe_path(path: object) -> bool:
    """Whether a repository's file name may become a file here: relative, inside, printable, on any system."""
    if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH or not path.isprintable():
        return False
    if any(character in path for character in '\\:*?"<>|'):
        return False
    parts = path.split("/")
    return all(
        part not in ("", ".", "..")
        and len(part.encode("utf-8", "replace")) <= MAX_PART
        and not part.endswith((".", " "))
        and not part.startswith(" ")
        and not _RESERVED.fullmatch(part)
        for part in parts
    )


def read_commit(info: Any) -> str:
    """The commit of a model's description. Raises HubAnswerUnusable."""
    sha = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(sha, str) or not _COMMIT.fullmatch(sha):
        raise HubAnswerUnusable("The Hub does not say which commit of the model it means.")
    return sha


def read_summary(info: Any) -> ModelSummary | None:
    """One model from a list or a description; None when its name is none."""
    if not isinstance(info, dict) or not is_model_id(name := info.get("id", info.get("modelId"))):
        return None
    card, config, counts = _dict(info.get("cardData")), _dict(info.get("config")), _parameters(info)
    bits = sum(count * DTYPE_BITS.get(dtype, 16) for dtype, count in counts.items())
    architectures = config.get("architectures")
    return ModelSummary(
        id=str(name),
        parameters=sum(counts.values()) or None,
        dtype=max(counts, key=lambda dtype: counts[dtype] * DTYPE_BITS.get(dtype, 16)) if counts else "",
        download_bytes=bits // 8 or None,
        licence=_licence(card, info),
        gated=info.get("gated") not in (False, None, "False", "false"),
        private=info.get("private") is True,
        family=_word(config.get("model_type")),
        architecture=_word(architectures[0]) if isinstance(architectures, list) and architectures else "",
        quantized=_word(_dict(config.get("quantization_config")).get("quant_method")),
        downloads=_count(info.get("downloads")),
        likes=_count(info.get("likes")),
        modified=_date(info.get("lastModified")),
    )


def read_base_model(info: Any) -> str:
    """The model from which this one was made, as its card says; empty when it does not."""
    base = _dict(_dict(info).get("cardData")).get("base_model")
    first = base[0] if isinstance(base, list) and base else base
    return str(first) if is_model_id(first) else ""


def read_files(entries: Any) -> list[HubFile]:
    """The files of a repository's tree.

    Raises HubAnswerUnusable for what could write outside the model's folder, over another file, or without checksum.
    """
    if not isinstance(entries, list):
        raise HubAnswerUnusable("The Hub's list of files is none.")
    if len(entries) > MAX_FILES:
        raise HubAnswerUnusable(f"The repository holds more than {MAX_FILES:,} files.")
    files = [_file(entry) for entry in entries if _dict(entry).get("type") != "directory"]
    _refuse_collisions(file.path for file in files)
    return files


def _file(entry: Any) -> HubFile:
    data = _dict(entry)
    path, size, lfs = data.get("path"), data.get("size"), _dict(data.get("lfs"))
    if not is_safe_path(path):
        raise HubAnswerUnusable(
            f"The repository holds a file with a dangerous name: {str(path)[:80]!r}.",
            why="It could write outside the model's folder, or cannot be written at all.",
            hint="Do not use this model.",
        )
    if lfs:
        size = lfs.get("size", size)
    sha256, sha1 = lfs.get("oid", "") if lfs else "", data.get("oid", "")
    sound = isinstance(sha1, str) and _COMMIT.fullmatch(sha1)
    if lfs:
        sound = isinstance(sha256, str) and _SHA256.fullmatch(sha256)
    if type(size) is not int or not 0 <= size < 1 << 50 or not sound:
        raise HubAnswerUnusable(f"The Hub gives no size or no checksum for {path}.", hint="Do not use this model.")
    return HubFile(path=str(path), size=size, sha256=sha256, git_sha1="" if lfs else sha1)


def _refuse_collisions(paths: Iterable[str]) -> None:
    """Refuse names that differ only in case, and a file that is also a folder: one would be written over the other."""
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for path in paths:
        key = path.casefold()
        if key in seen:
            raise HubAnswerUnusable(
                f"Two files of the repository have the same name but for the case: {seen[key]} and {path}.",
                hint="Do not use this model.",
            )
        seen[key] = path
        parts = key.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if both := folders & seen.keys():
        raise HubAnswerUnusable(f"{min(both)} is a file and a folder at once.", hint="Do not use this model.")


def _parameters(info: dict[str, Any]) -> dict[str, int]:
    safetensors = _dict(info.get("safetensors"))
    counts = _dict(safetensors.get("parameters"))
    sound = {
        dtype: count
        for dtype, count in counts.items()
        if isinstance(dtype, str) and re.fullmatch(r"\w{1,16}", dtype) and type(count) is int and 0 < count < 1 << 50
    }
    total = safetensors.get("total")
    return sound or ({"BF16": total} if type(total) is int and 0 < total < 1 << 50 else {})


def _licence(card: dict[str, Any], info: dict[str, Any]) -> str:
    tags = info.get("tags")
    tagged = [tag[8:] for tag in tags if isinstance(tag, str) and tag.startswith("license:")] if tags else []
    named = [card.get("license_name"), card.get("license"), *tagged]
    return next(filter(None, map(_word, named)), "")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: Any) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


def _date(value: Any) -> str:
    return value if isinstance(value, str) and _DATE.fullmatch(value) else ""


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 50 else 0
