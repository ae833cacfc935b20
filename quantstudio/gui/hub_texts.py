"""Models of the Hub and what they need here, in words for people who know nothing of memory or bits."""

from __future__ import annotations

from datetime import datetime

from quantstudio.client.download_queue import Download, DownloadStatus
from quantstudio.core.fit import Instead, Need, Range, Task, Verdict, rough_needs, usable
from quantstudio.core.hub import DownloadState, ModelSummary, TransferStage
from quantstudio.core.humanize import human_bytes, human_count, human_rate, human_seconds, rough_seconds
from quantstudio.core.machine import Machine
from quantstudio.core.protocol import Error
from quantstudio.gui.model_texts import Fit, dtype_word

TASKS = {
    Task.DOWNLOAD: "Download it",
    Task.QUANTIZE: "Quantize it",
    Task.MEASURE: "Measure it afterwards",
    Task.CHAT: "Chat with the result",
    Task.LORA: "Train it to be quantized, LoRA",
    Task.QAT: "Train it to be quantized, all weights",
}
TASK_TIPS = {
    Task.DOWNLOAD: "Fetch the files that are not on this machine yet. The time depends on your line.",
    Task.QUANTIZE: "Round the weights and write them. Works block by block, so it needs little memory.",
    Task.MEASURE: "Load original and result one after the other, and both together to compare what they write.",
    Task.CHAT: "Load the quantized model and keep the whole conversation, as long as the context, in memory.",
    Task.LORA: "Quantization-aware training of small added matrices only, with the quick preset.",
    Task.QAT: "Quantization-aware training of every weight with the quick preset: keeps four numbers for each of them.",
}
_LEVELS = {Verdict.FITS: "success", Verdict.CLOSE: "warning", Verdict.NO: "error"}
_SHORT = {Verdict.FITS: "Fits", Verdict.CLOSE: "Just fits", Verdict.NO: "Does not fit"}


def summary_line(model: ModelSummary) -> str:
    """`1.54B parameters · bf16 · Qwen2 · apache-2.0 · changed 2 Jan 2026`; unknown parts are left out."""
    size = f"{human_count(model.parameters)} parameters" if model.parameters else ""
    kind = f"quantized ({model.quantized})" if model.quantized else dtype_word(model.dtype)
    changed = day(model.modified)
    parts = (size, kind, family_word(model), model.licence, f"changed {changed}" if changed else "")
    return " · ".join(part for part in parts if part)


def family_word(model: ModelSummary) -> str:
    """The architecture without the ending that all of them have."""
    return model.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel") or model.family


def day(iso: str) -> str:
    """`2 Jan 2026`, or nothing for what is no date."""
    try:
        found = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return ""
    return f"{found.day} {found:%b %Y}"


def summary_fit(model: ModelSummary, machine: Machine) -> Fit:
    """Whether this machine can work with a model of the list, as far as its size alone says."""
    nbytes, parameters = model.download_bytes, model.parameters
    if not nbytes or not parameters:
        return Fit("info", "Size unknown", "The Hub does not say how large it is. Open it to see what it needs.")
    have, free = human_bytes(machine.memory), human_bytes(machine.free_disk)
    chat, measure = rough_needs(parameters, nbytes)
    if nbytes > machine.free_disk:
        return Fit("error", "Disk too small", f"The download is {human_bytes(nbytes)}; {free} are free on your disk.")
    if chat > usable(machine.memory):
        text = f"Too large for this machine: even in 4 bits it needs about {human_bytes(chat)} of memory to answer; "
        return Fit("error", "Too large", f"{text}there are {have}. Look for one with fewer parameters.")
    if model.quantized:
        text = (
            f"Fits: it is quantized already and needs about {human_bytes(chat)} of memory to answer; there are {have}."
        )
        return Fit("success", "Fits", text)
    if measure > usable(machine.memory):
        text = f"Fits once it is quantized. Comparing it with the original would need about {human_bytes(measure)} of "
        return Fit("warning", "Fits quantized", f"{text}memory; there are {have}. Turn off measuring for this one.")
    text = f"Fits: quantizing and comparing it needs about {human_bytes(measure)} of memory; there are {have}."
    return Fit("success", "Fits", text)


def need_fit(need: Need, machine: Machine) -> Fit:
    """One task's verdict in a sentence."""
    pool = "your GPU has" if need.on_gpu else "this machine has"
    have = human_bytes(machine.gpu_memory if need.on_gpu else machine.memory)
    wants = range_words(need.memory)
    if need.disk_short:
        free = human_bytes(machine.free_disk)
        return Fit("error", "Disk too small", f"It needs {human_bytes(need.disk)} of disk space; {free} are free.")
    if need.verdict is Verdict.NO:
        text = f"It needs {wants} of memory; {pool} {have}."
        return Fit("error", _SHORT[need.verdict], " ".join(filter(None, (text, instead_words(need.instead)))))
    if need.verdict is Verdict.CLOSE and need.task in (Task.LORA, Task.QAT):
        text = f"It fits when little is held in memory at once, which takes longer: {wants}; {pool} {have}."
        return Fit("warning", _SHORT[need.verdict], text)
    if need.verdict is Verdict.CLOSE:
        text = f"It may just fit: {wants} of memory are needed; {pool} {have}. Close other programs first."
        return Fit("warning", _SHORT[need.verdict], text)
    return Fit("success", _SHORT[need.verdict], f"There is room: {wants} of memory are needed; {pool} {have}.")


def instead_words(instead: Instead | None) -> str:
    """What would fit instead, as advice."""
    if instead is None:
        return ""
    if instead.scheme:
        return f"With fewer bits it would fit: {instead.scheme}."
    if instead.context:
        return f"With a context of {instead.context:,} tokens it would fit."
    if instead.task is Task.LORA:
        return "Training with LoRA would fit, and reaches nearly the same."
    if instead.parameters:
        return f"A model of up to about {human_count(instead.parameters)} parameters would fit."
    return "No model of this kind would fit on this machine."


def range_words(span: Range) -> str:
    """`1.2–1.5 GB`, or one figure where both ends read the same."""
    low, high = human_bytes(span.low), human_bytes(span.high)
    if low == high:
        return low
    number, _, unit = low.partition(" ")
    return f"{number}–{high}" if high.endswith(f" {unit}") else f"{low} – {high}"


def time_words(need: Need) -> str:
    """`about 3 to 20 minutes`-like words, a speed for a chat, or a dash."""
    if need.tokens_per_s:
        low, high = human_rate(need.tokens_per_s.low, ""), human_rate(need.tokens_per_s.high)
        return f"{low.strip()}–{high}"
    if need.seconds is None:
        return "–"
    low, high = rough_seconds(need.seconds.low), rough_seconds(need.seconds.high)
    return low if low == high else f"{low} – {high.removeprefix('about ')}"


def error_words(error: Error) -> str:
    """An error as one paragraph."""
    return " ".join(part for part in (error.what, error.why, error.hint) if part)


def transfer_words(download: Download) -> str:
    """One line about a download: what it does, how fast, how long still."""
    state = download.state
    match download.status:
        case DownloadStatus.WAITING:
            return "Waits for the download before it"
        case DownloadStatus.PAUSING:
            return "Pausing …"
        case DownloadStatus.PAUSED:
            return f"Paused. {_kept_words(state)}" if state.done else "Paused"
        case DownloadStatus.INTERRUPTED:
            return f"The window was closed before it was whole. {_kept_words(state)}".strip()
        case DownloadStatus.DONE:
            return "Whole and verified"
        case DownloadStatus.FAILED:
            return "Stopped by a problem. What was fetched is kept."
        case _:
            return _stage_words(download)


def _kept_words(state: DownloadState) -> str:
    of = f" of {human_bytes(state.total)}" if state.total else ""
    return f"{human_bytes(state.done)}{of} are kept." if state.done else ""


def _stage_words(download: Download) -> str:
    state = download.state
    match state.stage:
        case TransferStage.LOOKING:
            return "Looking at the model …"
        case TransferStage.WAITING:
            return state.detail or "The connection broke off; it is tried again in a moment."
        case TransferStage.VERIFYING:
            return f"Comparing {state.file} with its checksum"
        case TransferStage.CONVERTING:
            return "Converting to safetensors"
        case _:
            left = f" · {human_seconds(state.eta_s)} left" if state.eta_s is not None else ""
            speed = f" · {human_bytes(state.bytes_per_s)}/s" if state.bytes_per_s else ""
            return f"{human_bytes(state.done)} of {human_bytes(state.total)}{speed}{left}"
