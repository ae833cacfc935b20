"""Reading the small parts of a model folder (JSON files, safetensors headers) as hostile input.

Everything is capped before it is parsed: sizes, depth, lengths. Weights are never read: a safetensors file says in its
header, a few kilobytes at its start, which tensors it holds and where, and that can be checked against the file's size.
The format is specified at https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from quantstudio.core.errors import ModelDamaged, ModelNotFound, ModelUnsafe, ModelUnsupported

MAX_CONFIG_BYTES = 4 << 20
MAX_INDEX_BYTES = 32 << 20
MAX_HEADER_BYTES = 32 << 20
MAX_DEPTH = 40
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 31
MAX_NAME = 400

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

DTYPE_BITS: dict[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits per element of every dtype that safetensors knows."""

_TENSOR_NAME = re.compile(rf"[\w./:@+-]{{1,{MAX_NAME}}}")
"""No blanks, quotes or angle brackets: names end up in messages, patterns and pages."""
_COPY_AGAIN = "Download or copy the model again."


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a safetensors header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def read_json_object(path: Path, limit: int) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises ModelNotFound (no such file), ModelDamaged (not JSON, not an object) or ModelUnsafe (larger than `limit`
    bytes, or nested deeper than any honest file).
    """
    try:
        size = _size(path)
        if size > limit:
            raise ModelUnsafe(
                f"{path.name} is {size >> 20} MB of JSON.",
                why=f"Honest models need less than {limit >> 20} MB; a file like this can exhaust the memory.",
                hint="Use a model from a source that you trust.",
            )
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError as error:
        raise ModelNotFound(f"There is no {path.name} in {path.parent}.", hint=_COPY_AGAIN) from error
    except OSError as error:
        raise ModelDamaged(f"{path} cannot be read.", why=f"{error.strerror}.", hint=_COPY_AGAIN) from error
    return parse_json_object(raw, path.name)


def parse_json_object(raw: bytes, name: str) -> dict[str, Any]:
    """Parse bytes that must be a JSON object. Duplicate keys are refused: two readers could take different ones."""
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise _too_deep(name) from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, integers of thousands of digits
        raise ModelDamaged(f"{name} is not valid JSON.", why=f"{error}.", hint=_COPY_AGAIN) from error
    if not isinstance(data, dict):
        raise ModelDamaged(f"{name} does not hold a JSON object.", hint=_COPY_AGAIN)
    if _depth_exceeds(data, MAX_DEPTH):
        raise _too_deep(name)
    return data


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, in the order of the file.

    Reads only the header. Raises ModelDamaged if the file is missing or cut short, or if offsets, shapes and dtypes
    contradict each other or the file's size; ModelUnsafe if the header is larger than any honest one.
    """
    try:
        size = _size(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length + 8 > size:
                raise _damaged(path, f"It is cut short: {size:,} bytes do not even hold its header")
            if length > MAX_HEADER_BYTES:
                raise ModelUnsafe(f"The header of {path.name} claims {length:,} bytes.", hint="Do not use this model.")
            raw = file.read(length)
    except FileNotFoundError as error:
        raise ModelDamaged(f"The weight file {path.name} is missing.", hint=_COPY_AGAIN) from error
    except OSError as error:
        raise ModelDamaged(f"{path} cannot be read.", why=f"{error.strerror}.", hint=_COPY_AGAIN) from error
    return _tensors(path, parse_json_object(raw, f"the header of {path.name}"), size - 8 - length)


def weight_files(folder: Path) -> dict[Path, frozenset[str]]:
    """The safetensors files of a model, each with the tensor names that the index promises for it (empty: no index).

    The same order as transformers: a single `model.safetensors` wins over an index. Raises ModelUnsupported (only
    pickles, or no weights), ModelDamaged, ModelUnsafe (the index names files outside the folder).
    """
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: frozenset()}
    if (folder / INDEX).is_file():
        return _indexed(folder, read_json_object(folder / INDEX, MAX_INDEX_BYTES))
    if any(entry.suffix in PICKLES for entry in folder.iterdir()):
        raise ModelUnsupported(
            f"{folder.name} holds its weights as pickle files (.bin, .pt) only.",
            why="Pickles can run programs when they are read, so they are not opened.",
            hint="Use a version of the model with .safetensors files; most models on the Hub have one.",
        )
    raise ModelNotFound(
        f"There are no weights in {folder}.",
        why=f"Neither {SINGLE_FILE} nor {INDEX} is there.",
        hint="Pick the folder that holds the .safetensors files, or finish the download.",
    )


def _indexed(folder: Path, index: dict[str, Any]) -> dict[Path, frozenset[str]]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelDamaged(f"{INDEX} does not say which file holds which weight.", hint=_COPY_AGAIN)
    promised: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not is_plain_file_name(file):
            raise ModelUnsafe(
                f"{INDEX} names a weight file outside the model's folder: {str(file)[:80]!r}.",
                why="A model has no business reading other files of this machine.",
                hint="Do not use this model.",
            )
        promised.setdefault(file, set()).add(tensor)
    missing = sorted(name for name in promised if not (folder / name).is_file())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelDamaged(
            f"{len(missing)} of {len(promised)} weight files are missing: {', '.join(missing[:3])}{more}.",
            why=f"{INDEX} lists them, but they are not in {folder}.",
            hint="Finish the download, or copy the missing files into the folder.",
        )
    return {folder / name: frozenset(promised[name]) for name in sorted(promised)}


def is_plain_file_name(name: object) -> bool:
    """Whether a shard's name from an index is a safetensors file directly inside the folder."""
    return (
        isinstance(name, str)
        and len(name) <= MAX_NAME
        and name.endswith(".safetensors")
        and not name.startswith(".")
        and not any(character in name for character in "/\\:\0")
        and name.isprintable()
    )


def _size(path: Path) -> int:
    """Size of a file in bytes. Pipes and devices are refused: reading one could wait for ever."""
    if path.exists() and not path.is_file():
        raise ModelUnsafe(f"{path.name} is not an ordinary file.", hint="Do not use this model.")
    return path.stat().st_size


def _tensors(path: Path, header: dict[str, Any], data_bytes: int) -> list[StoredTensor]:
    entries = []
    for name, entry in header.items():
        if name != "__metadata__":
            tensor, begin, end = _entry(path, name, entry)
            entries.append((begin, end, tensor))
    entries.sort(key=lambda item: item[:2])
    position = 0
    for begin, end, tensor in entries:
        if begin != position:
            raise _damaged(path, f"Its header leaves a gap or an overlap before {tensor.name}")
        position = end
    if position != data_bytes:
        lost = position - data_bytes
        what = f"{lost:,} bytes are missing at its end" if lost > 0 else f"it has {-lost:,} bytes too many"
        raise _damaged(path, f"By its header, {what}")
    return [tensor for _, _, tensor in entries]


def _entry(path: Path, name: str, entry: object) -> tuple[StoredTensor, int, int]:
    """Check one entry of a header; returns the tensor and where its bytes begin and end."""
    if not isinstance(entry, dict) or not _TENSOR_NAME.fullmatch(name):
        raise _damaged(path, f"Its header has an entry that is no tensor: {name[:60]!r}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, f"{name} has the unknown dtype {str(dtype)[:40]!r}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS or max(shape, default=0) > MAX_DIMENSION:
        raise _damaged(path, f"{name} has the impossible shape {str(shape)[:60]}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{name} does not say where its bytes are")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise _damaged(path, f"{name} with shape {list(shape)} in {dtype} does not fill bytes {begin} to {end}")
    return StoredTensor(name, tuple(shape), dtype, bits // 8), begin, end


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key appears twice")
    return data


def _depth_exceeds(data: object, limit: int) -> bool:
    level: list[object] = [data]
    for _ in range(limit):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return False
        level = below
    return True


def _too_deep(name: str) -> ModelUnsafe:
    return ModelUnsafe(
        f"{name} is nested more than {MAX_DEPTH} levels deep.",
        why="No honest model needs that; such files are made to crash programs.",
        hint="Do not use this model.",
    )


def _damaged(path: Path, why: str) -> ModelDamaged:
    return ModelDamaged(f"The weight file {path.name} is damaged.", why=f"{why}.", hint=_COPY_AGAIN)
