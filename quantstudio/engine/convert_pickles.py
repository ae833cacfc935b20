"""Weights that exist only as pickles become safetensors, once, in a worker.

torch reads them with `weights_only=True`: a list of harmless types, and no code of the file's own. The result is laid
out like a revision of the Hugging Face cache, but in a place of ours, so that no other tool takes it for the Hub's.
"""

from __future__ import annotations

import json
import pickle  # only for the name of its error
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from quantstudio.core.disk import partial_of, publish_folder, remove_tree
from quantstudio.core.errors import ModelDamaged, ModelUnsafe
from quantstudio.core.model_files import INDEX, MAX_INDEX_BYTES, SINGLE_FILE, read_json_object
from quantstudio.core.paths import converted_cache
from quantstudio.engine.reporter import Reporter

SHARD = "model-{number:05}-of-{total:05}.safetensors"
_PICKLE_INDEX = "pytorch_model.bin.index.json"


def convert_pickles(snapshot: Path, reporter: Reporter) -> Path:
    """Convert a revision of the cache; the new folder, which is whole or absent.

    One pickle is in memory at a time. Raises ModelUnsafe (a pickle that is more than weights), ModelDamaged, OSError.
    """
    repo = converted_cache() / snapshot.parent.parent.name
    folder = repo / "snapshots" / snapshot.name
    if folder.is_dir():
        return folder
    partial = partial_of(folder)
    remove_tree(partial)
    partial.mkdir(parents=True)
    pickles = _pickles(snapshot)
    weight_map: dict[str, str] = {}
    for number, path in enumerate(pickles):
        reporter.progress(number, len(pickles), "files", path.name)
        name = SINGLE_FILE if len(pickles) == 1 else SHARD.format(number=number + 1, total=len(pickles))
        weight_map |= dict.fromkeys(_convert(path, partial / name), name)
    if len(pickles) > 1:
        (partial / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    for path in snapshot.iterdir():
        if path.is_file() and path not in pickles and path.name != _PICKLE_INDEX:
            shutil.copyfile(path, partial / path.name)
    publish_folder(partial, folder, {"source": snapshot.parent.parent.name, "commit": snapshot.name})
    refs = repo / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(snapshot.name, encoding="ascii")
    return folder


def _pickles(snapshot: Path) -> list[Path]:
    index = snapshot / _PICKLE_INDEX
    if not index.is_file():
        return [snapshot / "pytorch_model.bin"]
    names = set(read_json_object(index, MAX_INDEX_BYTES)["weight_map"].values())
    return [snapshot / name for name in sorted(names)]


def _convert(path: Path, target: Path) -> Iterator[str]:
    from safetensors.torch import save_file

    tensors = {name: tensor for name, tensor in _load(path).items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        raise ModelDamaged(f"{path.name} holds no weights.", hint="Use another version of the model.")
    # Tied weights share memory, which safetensors refuses to write; the copy is tied again when it is loaded.
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, str(target), {"format": "pt"})
    return iter(tensors)


def _load(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnsafe(
            f"{path.name} is more than weights: it asks for a program to be run.",
            why="It was read in a mode that refuses that, and nothing was run.",
            hint="Do not use this model.",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelDamaged(f"{path.name} cannot be read.", hint="Use another version of the model.") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ModelDamaged(f"{path.name} holds no weights.", hint="Use another version of the model.")
    return found
