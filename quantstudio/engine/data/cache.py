"""The tokenized text of a run, kept so that a run that goes on does not tokenize again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from quantstudio.core.disk import write_atomically
from quantstudio.core.errors import DataUnusable
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.result import DataSummary
from quantstudio.engine.data.prepared import PreparedData, fingerprint
from quantstudio.engine.data.sources import identity

VERSION = 1
_PARTS = ("calibration", "training", "training_mask", "held_out", "held_out_mask")


def place(folder: Path, section: DataSection, tokenizer: Any, seed: int) -> Path | None:
    """The file that holds exactly this text for this tokenizer, if any does; None when the source cannot be read."""
    try:
        source = identity(section)
    except (OSError, DataUnusable):
        return None  # whoever reads the source says what is wrong with it
    parts = [str(VERSION), section.model_dump_json(), source, tokenizer_identity(tokenizer), str(seed)]
    return folder / f"data-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.safetensors"


def load(path: Path) -> dict[str, Any] | None:
    """The fields of `PreparedData`; None when there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in _PARTS}
            summary = DataSummary.model_validate_json((file.metadata() or {})["summary"])
    except (OSError, SafetensorError, KeyError, ValidationError):
        return None
    arrays = [tensors[name].numpy().astype(np.int32) for name in ("calibration", "training", "held_out")]
    if fingerprint(*arrays) != summary.fingerprint:
        return None
    return {name: t if name.endswith("mask") else t.to(torch.int64) for name, t in tensors.items()} | {
        "summary": summary
    }


def save(path: Path, prepared: PreparedData) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(prepared, name) for name in _PARTS}
    small = {name: t if t.dtype is torch.bool else t.to(torch.int32) for name, t in tensors.items()}
    write_atomically(path, to_bytes(small, {"summary": prepared.summary.model_dump_json()}))


def tokenizer_identity(tokenizer: Any) -> str:
    """A fingerprint of the vocabulary, how it is applied, and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    about = [rules, str(tokenizer.chat_template), str(tokenizer.eos_token_id), str(tokenizer.bos_token_id)]
    return hashlib.sha256("\0".join([type(tokenizer).__name__, *about]).encode()).hexdigest()
