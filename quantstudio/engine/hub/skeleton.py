"""A model's folder without its weights: configuration and headers fetched, the rest of each weight file a hole.

Whoever reads a model folder on disk (`core.model_info`, `core.safety`) then reads this one as well: the same checks
hold before and after a download. The holes have the right size and take no room on file systems with sparse files.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from quantstudio.core.errors import HubAnswerUnusable, ModelUnsafe
from quantstudio.core.hub import HubFile
from quantstudio.core.model_files import (
    CONFIG,
    INDEX,
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    MAX_INDEX_BYTES,
    is_plain_file_name,
    parse_json_object,
)
from quantstudio.engine.hub.answers import is_safe_path
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.needed import PICKLE_INDEX, index_of, is_companion

FIRST_PIECE = 64 << 10
"""Most headers are smaller, and one request then does."""
MAX_TEXT = 256 << 10


def read_shards(api: HubApi, model: str, commit: str, files: Collection[HubFile], *, pickles: bool = False) -> set[str]:
    """The weight files that the model's index names; empty when there is no index.

    Raises ModelUnsafe for names that leave the folder.
    """
    index = index_of(files, pickles=pickles)
    if index is None:
        return set()
    raw = whole(api, model, commit, index, MAX_INDEX_BYTES)
    weight_map = parse_json_object(raw, index.path).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) and _hashable(weight_map) else {""}
    good = is_pickle_shard if pickles else is_plain_file_name
    if bad := [name for name in names if not good(name)]:
        raise ModelUnsafe(
            f"{index.path} names a weight file outside the model's folder: {str(bad[0])[:80]!r}.",
            why="A model has no business reading other files of this machine.",
            hint="Do not use this model.",
        )
    return names


def is_pickle_shard(name: object) -> bool:
    """As `is_plain_file_name`, for pickles."""
    return is_safe_path(name) and isinstance(name, str) and "/" not in name and name.endswith(".bin")


def write_skeleton(api: HubApi, model: str, commit: str, needed: Collection[HubFile], folder: Path) -> None:
    """Fetch everything but the weights of `needed` into `folder`. Raises as `HubApi`, HubAnswerUnusable, OSError."""
    for number, file in enumerate(needed):
        api.reporter.progress(number, len(needed), "files", file.path)
        path = folder / file.path
        if file.path.endswith(".safetensors"):
            header = fetch_header(api, model, commit, file)
            with path.open("wb") as target:
                target.write(header)
                target.truncate(file.size)
        elif file.path in (CONFIG, INDEX, PICKLE_INDEX):
            limit = MAX_CONFIG_BYTES if file.path == CONFIG else MAX_INDEX_BYTES
            path.write_bytes(whole(api, model, commit, file, limit))
        elif is_companion(file) and file.size <= MAX_TEXT:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(whole(api, model, commit, file, MAX_TEXT))


def fetch_header(api: HubApi, model: str, commit: str, file: HubFile) -> bytes:
    """The length and the header of a safetensors file."""
    first = api.piece(model, commit, file.path, 0, min(FIRST_PIECE, file.size))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length + 8 > file.size or length > MAX_HEADER_BYTES:
        return first[:8]  # the reader of the header says what is wrong with it
    missing = length + 8 - len(first)
    rest = api.piece(model, commit, file.path, len(first), len(first) + missing) if missing > 0 else b""
    return (first + rest)[: length + 8]


def whole(api: HubApi, model: str, commit: str, file: HubFile, limit: int) -> bytes:
    """A small file's contents. Raises HubAnswerUnusable when it is larger than `limit` or comes incomplete."""
    if file.size > limit:
        raise ModelUnsafe(
            f"{file.path} is {file.size >> 20} MB.",
            why=f"Honest models need less than {limit >> 20} MB.",
            hint="Do not use this model.",
        )
    data = api.piece(model, commit, file.path, 0, file.size) if file.size else b""
    if len(data) != file.size:
        raise HubAnswerUnusable(f"The Hub sends {len(data):,} bytes of {file.path} instead of {file.size:,}.")
    return data


def _hashable(weight_map: dict[str, object]) -> bool:
    return all(isinstance(name, str) for name in weight_map.values())
