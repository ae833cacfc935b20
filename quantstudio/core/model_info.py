"""What a model folder holds, read from config.json and the headers of its safetensors files: no torch, no weights.

A 100-gigabyte model takes milliseconds. What is said here about layers comes from their names (`model_parts`); the
engine checks it against the real modules before it writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from quantstudio.core.errors import ModelDamaged, ModelNotFound
from quantstudio.core.model_files import CONFIG, MAX_CONFIG_BYTES, read_header, read_json_object, weight_files
from quantstudio.core.model_parts import (
    PACKED,
    QUANTIZED_COMPANIONS,
    SCALE,
    TIED_BY_DEFAULT,
    TIED_HEAD,
    Part,
    TensorInfo,
    WeightSlot,
    is_position_table,
    part_of,
    slot_of,
)
from quantstudio.core.safety import require_safe

__all__ = ["ModelInfo", "Part", "TensorInfo", "WeightSlot", "read_model_info"]

MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelInfo:
    """A causal language model on disk."""

    path: Path
    name: str
    architecture: str
    """Class name from config.json, such as "LlamaForCausalLM"; empty when it does not say."""
    model_type: str
    parameters: int
    """Weights of all tensors; a tied matrix counts once, the scales of a quantized model do not."""
    dtype: str
    """The dtype of most bytes, as safetensors writes it ("BF16")."""
    nbytes: int
    """Bytes of all tensors."""
    tied: bool
    """Whether head and embedding are one matrix in the files."""
    license: str
    """From the model card's front matter or the name of a licence file; empty when nothing says."""
    vocab_size: int
    context_length: int
    """Positions the model was made for; 0 when config.json does not say."""
    hidden_size: int
    layers: int
    """Number of decoder blocks."""
    slots: tuple[WeightSlot, ...]
    tensors: tuple[TensorInfo, ...]
    quantized: str
    """How the model was quantized already ("compressed-tensors", "gptq" …), or empty."""
    removed_layers: int = 0
    removed_parameters: int = 0
    """Last decoder blocks that the files hold and this description leaves out (`first_layers`), and their weights."""

    @property
    def has_position_table(self) -> bool:
        """Whether positions are looked up in a table (GPT-2, OPT): such a model cannot go beyond its context at all."""
        return any(is_position_table(tensor.name, tensor.shape) for tensor in self.tensors)


def read_model_info(folder: Path) -> ModelInfo:
    """Look at a model folder without loading anything.

    Raises ModelNotFound (not a model folder), ModelDamaged (missing or cut files), ModelUnsafe (hostile content),
    ModelUnsupported (weights as pickles only).
    """
    folder = Path(folder).absolute()
    config = _read_config(folder)
    require_safe(folder)
    tensors = _read_tensors(folder)
    text = _text_config(config)
    model_type = _word(text.get("model_type")) or _word(config.get("model_type"))
    blocks = _number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    _check_blocks(tensors, blocks)
    slots = [slot for tensor in tensors if (slot := slot_of(tensor, model_type))]
    tied = _is_tied(config, text, model_type, slots, _number(text, "vocab_size"))
    if tied:
        slots.append(_tied_head(slots))
    embedding = next((slot for slot in slots if slot.part is Part.EMBEDDING), None)
    return ModelInfo(
        path=folder,
        name=model_name(folder),
        architecture=_architecture(config),
        model_type=model_type,
        parameters=_parameters(config, tensors),
        dtype=_main_dtype(tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        tied=tied,
        license=_license(folder),
        vocab_size=_number(text, "vocab_size") or (embedding.rows if embedding else 0),
        context_length=_number(
            text, "max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length"
        ),
        hidden_size=_number(text, "hidden_size", "n_embd", "d_model") or (embedding.columns if embedding else 0),
        layers=blocks,
        slots=tuple(slots),
        tensors=tuple(tensors),
        quantized=_quantized(config, tensors),
    )


def model_name(folder: Path) -> str:
    """A model's name for people: `owner/name` for a snapshot of the Hugging Face cache, else the folder's name."""
    cached = next((part for part in folder.parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/", 1) if cached else folder.name


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelNotFound(f"There is no folder {folder}.", hint="Check the path of the model.", field="model.id")
    if not (folder / CONFIG).is_file():
        raise ModelNotFound(
            f"{folder} is not a model folder.",
            why="It has no config.json.",
            hint="Pick the folder that holds config.json and the .safetensors files.",
            field="model.id",
        )
    return read_json_object(folder / CONFIG, MAX_CONFIG_BYTES)


def _read_tensors(folder: Path) -> list[TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for file, promised in weight_files(folder).items():
        stored = read_header(file)
        names = {tensor.name for tensor in stored}
        if lost := sorted(promised - names) or sorted(names & found.keys()):
            raise ModelDamaged(
                f"The index and the weight file {file.name} contradict each other over {lost[0]}.",
                hint="Download or copy the model again.",
            )
        for tensor in stored:
            part = part_of(tensor.name, tensor.shape)
            found[tensor.name] = TensorInfo(tensor.name, tensor.shape, tensor.dtype, file.name, tensor.nbytes, part)
    if not found:
        raise ModelDamaged(f"The weight files in {folder} hold no tensors.", hint="Download or copy the model again.")
    return list(found.values())


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model; multimodal ones keep it in `text_config`."""
    text = config.get("text_config")
    return config | text if isinstance(text, dict) else config


def _check_blocks(tensors: list[TensorInfo], blocks: int) -> None:
    """Refuse files that hold fewer decoder blocks than config.json promises: loaders fill the rest at random."""
    numbers = (re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.", tensor.name) for tensor in tensors)
    present = {int(number.group(1)) for number in numbers if number}
    if present and (missing := blocks - len(present & set(range(blocks)))) > 0:
        raise ModelDamaged(
            f"{missing} of the model's {blocks} layers are missing from its files.",
            hint="Finish the download, or copy the missing files into the folder.",
        )


def _is_tied(
    config: dict[str, Any], text: dict[str, Any], model_type: str, slots: list[WeightSlot], vocab_size: int
) -> bool:
    """Whether the files hold one matrix for head and embedding.

    With a head of its own in the files the model is not tied here, whatever config.json says: transformers ties the
    two only if they are equal, and then keeping both is right, if not smallest.
    """
    embeddings = [slot for slot in slots if slot.part is Part.EMBEDDING]
    if any(slot.part is Part.HEAD for slot in slots) or not embeddings:
        return False
    says = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    ties = says if isinstance(says, bool) else model_type in TIED_BY_DEFAULT
    unnamed_head = any(slot.part is Part.LAYER and slot.rows == vocab_size for slot in slots)
    if not ties and not unnamed_head:
        raise ModelDamaged(
            "The model has no output head.",
            why="config.json says that head and embedding are two matrices, but the files hold only the embedding.",
            hint="Use a folder that was saved with its language model head.",
        )
    return ties


def _tied_head(slots: Iterable[WeightSlot]) -> WeightSlot:
    table = next(slot for slot in slots if slot.part is Part.EMBEDDING)
    return WeightSlot(TIED_HEAD, table.tensor, table.rows, table.columns, Part.HEAD, table.quantizable, table.why_not)


def _quantized(config: dict[str, Any], tensors: list[TensorInfo]) -> str:
    settings = config.get("quantization_config", config.get("compression_config"))
    if isinstance(settings, dict):
        return _word(settings.get("quant_method")) or "unknown"
    if any(tensor.dtype.startswith("F8_") for tensor in tensors):
        return "float8"
    return ""


def _parameters(config: dict[str, Any], tensors: list[TensorInfo]) -> int:
    """Number of weights; a packed int32 holds as many as its bits say."""
    specs = _packings(config)
    scales = {tensor.name: tensor.shape for tensor in tensors if tensor.name.endswith(SCALE)}
    total = 0
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        if leaf == PACKED and tensor.shape:
            columns = _columns(tensor.shape[-1], scales.get(f"{module}.{SCALE}", ()), specs)
            total += prod(tensor.shape[:-1]) * columns
        elif leaf not in QUANTIZED_COMPANIONS:
            total += prod(tensor.shape)
    return total


def _packings(config: dict[str, Any]) -> list[tuple[int, int]]:
    """(bits, group size or 0) of each scheme in a compressed-tensors configuration, those with groups first."""
    groups = _inner(_inner(config, "quantization_config"), "config_groups")
    weights = [_inner(_inner(groups, name), "weights") for name in groups]
    found = [(_number(each, "num_bits"), _number(each, "group_size")) for each in weights]
    return sorted((each for each in found if 0 < each[0] <= 8), key=lambda each: (each[1] == 0, each))


def _columns(words: int, scale: tuple[int, ...], specs: list[tuple[int, int]]) -> int:
    """Weights in a row of so many int32. Layers may differ in bits: which scheme it was is told by the scales' number.

    Without groups a last word that is not full is counted as if it were.
    """
    for bits, group_size in specs:
        columns = scale[-1] * group_size if scale and group_size else words * 32 // bits
        if -(-columns * bits // 32) == words:
            return columns
    return words * 32 // min((bits for bits, _ in specs), default=4)


def _inner(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return _word(names[0]) if isinstance(names, list) and names else ""


def _word(value: object) -> str:
    """A name from a stranger's file if it looks like one, else nothing: it is shown to people and put into pages."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,80}", value) else ""


def _main_dtype(tensors: list[TensorInfo]) -> str:
    nbytes: dict[str, int] = {}
    for tensor in tensors:
        nbytes[tensor.dtype] = nbytes.get(tensor.dtype, 0) + tensor.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype])


def _number(config: dict[str, Any], *names: str) -> int:
    """The first of these fields that is a whole number above 0; 0 when there is none."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), 0)


def _license(folder: Path) -> str:
    text = _card(folder / "README.md")
    front = re.match(r"---\s*\n(.*?)\n---", text, flags=re.DOTALL)
    for field in ("license_name", "license"):  # where the licence is "other", the first one says which
        pattern = rf"^{field}:[ \t]*[\"']?([\w.+-]{{1,60}})"
        if front and (found := re.search(pattern, front.group(1), flags=re.MULTILINE)):
            return found.group(1)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.upper().startswith(("LICENSE", "LICENCE")))
    return next(filter(None, map(_word, names)), "")


def _card(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""  # a card that may not be read is no reason to refuse the model: the licence is simply not known
