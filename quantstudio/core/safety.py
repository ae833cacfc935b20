"""Is a stranger's model folder safe to hand to a loader? Told without a loader, without torch, in milliseconds.

Loaders guard against pickles and against code when told so. What they do not guard against is kept out here: files that
reach outside the folder, sizes that hang or fill the memory, names of downloadable kernels, settings that load a model
as something it is not. Two outcomes: a *blocker* raises, a *note* is worth knowing (Python code lies in the folder and
will not be run). Not covered: what the weights make a model say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from quantstudio.core.errors import ModelDamaged, ModelNotFound, ModelUnsafe, ModelUnsupported
from quantstudio.core.model_files import (
    CONFIG,
    MAX_CONFIG_BYTES,
    PICKLES,
    read_header,
    read_json_object,
    weight_files,
)

MAX_ENTRIES = 20_000
MAX_FOLDER_DEPTH = 4
MAX_LAYERS = 1_000
MAX_SIZE = 20_000_000
MAX_TEMPLATE_BYTES = 512 << 10
MAX_TOKENIZER_BYTES = 256 << 20
SIZE_LIMITS = {
    "generation_config.json": 1 << 20,
    "tokenizer_config.json": 32 << 20,
    "special_tokens_map.json": 4 << 20,
    "added_tokens.json": 32 << 20,
    "chat_template.json": MAX_TEMPLATE_BYTES,
    "processor_config.json": 1 << 20,
    "preprocessor_config.json": 1 << 20,
}
"""JSON files that loaders read besides config.json, with the most bytes that honest ones have."""

KNOWN_QUANT_METHODS = frozenset(
    {"compressed-tensors", "torchao", "gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "finegrained_fp8", "mxfp4"}
    | {"mxfp8", "nvfp4", "hqq", "quanto", "aqlm", "vptq", "spqr", "higgs", "eetq", "bitnet", "auto-round", "quark"}
    | {"fp_quant", "sinq", "metal", "gemma", "fouroversix", "bitsandbytes_4bit", "bitsandbytes_8bit"}
)
"""Methods that transformers knows; a model with another one would be loaded as if it were not quantized."""

_LAYER_COUNTS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers"})
_SIZES = frozenset(
    {"vocab_size", "hidden_size", "intermediate_size", "ffn_dim", "n_embd", "n_inner", "d_model", "head_dim"}
    | {"max_position_embeddings", "n_positions", "n_ctx", "num_attention_heads", "num_key_value_heads", "n_head"}
    | {"num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"}
)
_IMPLEMENTATIONS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_NESTED_REPEAT = re.compile(r"[*+}]\)[*+{]|\)[*+]\)[*+{]")


class Level(StrEnum):
    """How bad a finding is."""

    BLOCK = "block"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a model folder that a person should know."""

    level: Level
    text: str


Check = Callable[[Path], Iterable[str]]
"""Yields notes; raises a named error for a blocker."""


def check_folder(folder: Path) -> list[Finding]:
    """Everything that is remarkable about a model folder, blockers first; empty for an ordinary one. Never raises."""
    findings: list[Finding] = []
    for check in (*_CHECKS, _check_weights):
        try:
            findings += [Finding(Level.NOTE, note) for note in check(folder)]
        except (ModelDamaged, ModelNotFound, ModelUnsafe, ModelUnsupported) as error:
            findings.append(Finding(Level.BLOCK, str(error)))
    return sorted(findings, key=lambda finding: finding.level is Level.NOTE)


def require_safe(folder: Path) -> None:
    """Raise the first blocker found beside the weights; their headers are checked by whoever reads them.

    Raises ModelNotFound, ModelUnsafe, ModelDamaged.
    """
    for check in _CHECKS:
        for _ in check(folder):
            pass


def _check_entries(folder: Path) -> Iterator[str]:
    """Links that leave the folder, and files that no loader of ours will open."""
    root = _root(folder)
    code: list[str] = []
    pickles: list[str] = []
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_symlink() and not _leads_inside(path, root):
            raise _unsafe(
                f"{entry.name} is a link that leads out of the model's folder.",
                why="It could make the program read any file of yours.",
                hint="Put the file itself there instead of the link.",
            )
        if path.suffix == ".py":
            code.append(entry.name)
        if path.suffix in PICKLES:
            pickles.append(entry.name)
    if code:
        yield f"The folder holds Python code ({_some(code)}). It is never run."
    if pickles:
        yield f"The folder holds pickle files ({_some(pickles)}). They are never opened."


def _check_config(folder: Path) -> Iterator[str]:
    config = read_json_object(folder / CONFIG, MAX_CONFIG_BYTES)
    for key, value in _pairs(config):
        if key == "auto_map":
            yield "config.json asks for Python code of its own (auto_map). It is never run."
        if key == "trust_remote_code" and value:
            raise _unsafe("config.json asks to trust code that comes with the model.")
        if _IMPLEMENTATIONS.fullmatch(key) and isinstance(value, str) and re.search(r"[/:@]", value):
            raise _unsafe(f"config.json names a program to download and run ({key}: {value[:60]!r}).")
        if key in ("use_kernels", "kernel_config") and value:
            raise _unsafe(f"config.json asks for downloaded programs ({key}).")
        _check_size(key, value)
    _check_quantization(config)


def _check_size(key: str, value: object) -> None:
    if key not in _LAYER_COUNTS and key not in _SIZES:
        return
    limit = MAX_LAYERS if key in _LAYER_COUNTS else MAX_SIZE
    absurd_list = isinstance(value, list) and len(value) > MAX_LAYERS
    absurd_number = isinstance(value, int | float) and not 0 <= value <= limit
    if absurd_list or absurd_number:
        raise _unsafe(
            f"config.json sets {key} to {str(value)[:40]}.",
            why=f"Honest models stay below {limit:,}; building this one would hang or fill the memory.",
        )


def _check_quantization(config: dict[str, Any]) -> None:
    settings = config.get("quantization_config")
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if not isinstance(settings, dict) or not isinstance(method, str) or method not in KNOWN_QUANT_METHODS:
        raise _unsafe(
            f"config.json says that the model is quantized by {str(method)[:60]!r}, which nobody knows.",
            why="It would be loaded as if it were not quantized, and answer nonsense.",
        )
    for pattern in _strings(settings):
        if pattern.startswith("re:") and (len(pattern) > 300 or _NESTED_REPEAT.search(pattern)):
            raise _unsafe(
                f"config.json picks layers by a pattern that can take for ever: {pattern[:60]!r}.",
            )


def _check_companions(folder: Path) -> Iterator[str]:
    """The other JSON files that loaders read."""
    for name, limit in SIZE_LIMITS.items():
        if (folder / name).exists():
            for key, value in _pairs(read_json_object(folder / name, limit)):
                if key == "auto_map":
                    yield f"{name} asks for Python code of its own (auto_map). It is never run."
                if key == "chat_template":
                    _check_templates(name, value)
    if (folder / "adapter_config.json").exists():
        raise _unsafe(
            "The folder holds an adapter (adapter_config.json) beside the model.",
            why="Loaders follow it to another model, which is then the one that is measured.",
            hint="Merge the adapter into the model, or move adapter_config.json away.",
        )


def _check_tokenizer(folder: Path) -> Iterator[str]:
    for path in (folder / "chat_template.jinja", *_files(folder / "additional_chat_templates")):
        if path.exists() and path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise _unsafe(f"The chat template {path.name} is {path.stat().st_size >> 10} kB long.")
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt"):
        path = folder / name
        if path.exists() and (not path.is_file() or path.stat().st_size > MAX_TOKENIZER_BYTES):
            raise _unsafe(f"{name} is no ordinary file, or larger than {MAX_TOKENIZER_BYTES >> 20} MB.")
    yield from ()


def _check_templates(name: str, value: object) -> None:
    if sum(len(text) for text in _strings(value)) > MAX_TEMPLATE_BYTES:
        raise _unsafe(f"The chat template in {name} is longer than {MAX_TEMPLATE_BYTES >> 10} kB.")


def _check_weights(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        for file in weight_files(folder):
            read_header(file)
    yield from ()


_CHECKS: tuple[Check, ...] = (_check_entries, _check_config, _check_companions, _check_tokenizer)


def _root(folder: Path) -> Path:
    """The folder that links may not leave: for a snapshot of the Hugging Face cache, the model's whole folder there."""
    real = folder.resolve()
    owner = real.parent.parent
    return owner if real.parent.name == "snapshots" and owner.name.startswith("models--") else real


def _leads_inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Files, folders and links below `folder`, not through links and not in hidden folders."""
    waiting, seen = [(folder, 0)], 0
    while waiting:
        here, depth = waiting.pop()
        try:
            with os.scandir(here) as found:
                for entry in found:
                    seen += 1
                    if seen > MAX_ENTRIES:
                        raise _unsafe(
                            f"The folder holds more than {MAX_ENTRIES:,} files.", hint="Pick a model's folder."
                        )
                    yield entry
                    if (
                        entry.is_dir(follow_symlinks=False)
                        and not entry.name.startswith(".")
                        and depth < MAX_FOLDER_DEPTH
                    ):
                        waiting.append((Path(entry.path), depth + 1))
        except FileNotFoundError as error:
            raise ModelNotFound(f"There is no folder {here}.", hint="Check the path of the model.") from error
        except OSError as error:
            raise ModelDamaged(f"{here} cannot be read.", why=f"{error.strerror}.") from error


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _pairs(data: object) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth (depth was limited when the file was parsed)."""
    if isinstance(data, dict):
        yield from data.items()
    children = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    for child in children:
        if isinstance(child, dict | list):
            yield from _pairs(child)


def _strings(data: object) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for child in data.values() if isinstance(data, dict) else data:
            yield from _strings(child)


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")


def _unsafe(what: str, *, why: str = "", hint: str = "Use a model from a source that you trust.") -> ModelUnsafe:
    return ModelUnsafe(what, why=why, hint=hint, field="model.id")
