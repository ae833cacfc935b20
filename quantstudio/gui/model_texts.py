"""A model in words: where it is from, what it is, and whether this machine can work on it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quantstudio.core.estimate import estimate
from quantstudio.core.humanize import human_bytes, human_count, plural
from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.core.machine import Machine, read_machine
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.recipe import Recipe

KINDS = {
    ModelKind.STARTER: "In the box",
    ModelKind.FOLDER: "Your folder",
    ModelKind.CACHE: "Hugging Face cache",
    ModelKind.RUN: "Made here",
}
_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64", "I8": "int8", "I32": "int32", "U8": "uint8"}


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits this machine. `level`: success, warning or error; `short` is for a badge."""

    level: str
    short: str
    sentence: str


def fits(models: Iterable[FoundModel], runs_folder: Path) -> dict[str, Fit]:
    """Each readable model's `Fit` by id. Slow: asks the machine, and plans each model once."""
    machine = read_machine(runs_folder)
    return {model.id: fit(model.info, machine, runs_folder) for model in models if model.info}


def fit(info: ModelInfo, machine: Machine, runs_folder: Path) -> Fit:
    """Whether the recommended recipe can be carried out and measured here."""
    if info.quantized:
        return Fit("success", "Quantized", f"Already quantized ({info.quantized}). It can be talked to and measured.")
    costs = estimate(info, Recipe(), machine, runs_folder)
    have = f"this machine has {human_bytes(machine.memory)}"
    if costs.quantize_memory_bytes > machine.memory:
        need = human_bytes(costs.quantize_memory_bytes)
        return Fit("error", "Too large", f"Too large: quantizing needs about {need} of memory; {have}.")
    if costs.disk_bytes > machine.free_disk:
        need, free = human_bytes(costs.disk_bytes), human_bytes(machine.free_disk)
        return Fit("error", "Disk too small", f"The result needs {need} of disk space; {free} are free.")
    if costs.measure_memory_bytes > machine.memory:
        need = human_bytes(costs.measure_memory_bytes)
        return Fit("warning", "Tight", f"Can be quantized, but measuring it needs about {need}; {have}.")
    if costs.peak_memory_bytes > machine.available_memory:
        free = human_bytes(machine.available_memory)
        return Fit("warning", "Tight", f"Fits when other programs are closed: {free} are free just now; {have}.")
    need = human_bytes(costs.peak_memory_bytes)
    return Fit("success", "Fits", f"Fits: quantizing and measuring need about {need} of memory; {have}.")


def summary(model: FoundModel) -> str:
    """One line for a list: `8.4M parameters · Llama · bf16`, or why the model cannot be used."""
    info = model.info
    if info is None:
        return model.error
    parts = (f"{human_count(info.parameters)} parameters", architecture_text(info), dtype_text(info))
    return " · ".join(part for part in parts if part)


def details(model: FoundModel) -> list[tuple[str, str]]:
    """(name, value) of everything worth knowing, in order."""
    info = model.info
    if info is None:
        return [("Where", str(model.path))]
    return [
        ("Parameters", f"{human_count(info.parameters)} ({info.parameters:,})"),
        ("Size", human_bytes(info.nbytes)),
        ("Numbers", dtype_text(info)),
        ("Architecture", info.architecture or info.model_type or "not given"),
        ("Layers", f"{info.layers} of width {info.hidden_size:,}" if info.layers else "not given"),
        ("Vocabulary", f"{info.vocab_size:,} tokens" if info.vocab_size else "not given"),
        ("Context", f"{info.context_length:,} tokens" if info.context_length else "not given"),
        ("Licence", info.license or "not given"),
    ]


def history(model: FoundModel) -> list[tuple[str, str]]:
    """(name, value): where a model came from, what it takes, when it was used, what was made from it."""
    partial = f"{human_bytes(model.partial_bytes)} of an unfinished download" if model.partial_bytes else ""
    facts = [
        ("From", model.origin),
        ("On disk", human_bytes(model.nbytes) if model.nbytes else ""),
        ("Unfinished", partial),
        ("Last used", last_used_text(model.last_used)),
        ("Checked", _checked_text(model)),
        ("Made from it", plural(len(model.made), "run") if model.made else ""),
    ]
    return [(name, value) for name, value in facts if value]


def last_used_text(stamp: float, now: float | None = None) -> str:
    """`today`, `yesterday`, `12 days ago`, `never here`."""
    if not stamp:
        return "never here"
    days = int(((now or time.time()) - stamp) // 86400)
    return {0: "today", 1: "yesterday"}.get(days, f"{days} days ago")


def _checked_text(model: FoundModel) -> str:
    if model.kind is not ModelKind.CACHE or model.error:
        return ""
    return "every file matches its checksum" if model.verified else "not yet"


def dtype_text(info: ModelInfo) -> str:
    """`bf16`; for a quantized model how it is stored."""
    return f"quantized ({info.quantized})" if info.quantized else dtype_word(info.dtype)


def dtype_word(dtype: str) -> str:
    """`bf16` for safetensors' BF16."""
    return _DTYPES.get(dtype, dtype)


def architecture_text(info: ModelInfo) -> str:
    """`Llama` for LlamaForCausalLM."""
    return (info.architecture or info.model_type).removesuffix("ForCausalLM").removesuffix("LMHeadModel")
