"""Exceptions of libraries become errors in a person's words: once, here, at the border of the job.

Only types and numbers decide, with the few libraries that say "out of memory" in a text as the exception. What is
not recognized is an internal error: said plainly, with the traceback in the run's log. Access tokens are struck out
of every text that leaves.
"""

from __future__ import annotations

import re
import sys
import traceback

from quantstudio.core import protocol
from quantstudio.core.disk import disk_problem
from quantstudio.core.errors import (
    DiskProblem,
    ModelDamaged,
    OutOfMemory,
    QuantStudioError,
)
from quantstudio.core.recipe import MachineSection, MeasureSection, Recipe

INTERNAL = "internal"
_OUT_OF_MEMORY_TEXTS = ("not enough memory", "out of memory", "cannot allocate memory", "bad_alloc", "bad allocation")
_SECRETS = (
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{8,}"), r"\1_…"),
    (re.compile(r"(?i)\b(bearer)\s+[^\s\"',;]{6,}"), r"\1 …"),
    (re.compile(r"(?i)\b(token|password|api[_-]?key)([\"']?\s*[:=]\s*)[\"']?[^\s\"',;&]{6,}"), r"\1\2…"),
    (re.compile(r"(\w+://)[^/\s:@]+:[^/\s@]+@"), r"\1…@"),
)


def without_secrets(text: str) -> str:
    """The text with access tokens and passwords struck out."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def translate(error: BaseException, recipe: Recipe | None = None) -> QuantStudioError | None:
    """The error in a person's words; None when it is not one that we know. Follows causes (`raise … from`)."""
    seen: BaseException | None = error
    while seen is not None:
        if (known := _known(seen, recipe)) is not None:
            return known
        seen = seen.__cause__
    return None


def as_message(error: BaseException, now: float, recipe: Recipe | None = None) -> protocol.Error:
    """The terminal message for an exception."""
    known = translate(error, recipe)
    if known is None:
        return protocol.Error(
            t=now,
            kind=INTERNAL,
            what="Something went wrong inside QuantStudio.",
            why=without_secrets(f"{type(error).__name__}: {_short(str(error))}".rstrip(": ") + "."),
            hint="This should not happen. The details are in the log; please report them.",
        )
    return protocol.Error(
        t=now,
        kind=known.kind,
        what=without_secrets(known.what),
        why=without_secrets(known.why),
        hint=without_secrets(known.hint),
        field=known.field,
    )


def details(error: BaseException) -> str:
    """The traceback, for the log."""
    return without_secrets("".join(traceback.format_exception(error)).rstrip())


def memory_advice(recipe: Recipe | None) -> str:
    """What to try when memory ran out, from what the recipe asks for."""
    measure = recipe.measure if recipe else MeasureSection()
    machine = recipe.machine if recipe else MachineSection()
    advice = ["close other programs"]
    if machine.device != "cpu" and _cuda_in_use():
        advice.append("set the device to CPU")
    if measure.enabled and measure.window > 128:
        advice.append(f"use a shorter window than {measure.window}")
    if measure.enabled and measure.prompt_tokens > 128:
        advice.append(f"use a shorter prompt than {measure.prompt_tokens}")
    advice.append("take a smaller model")
    return "Try to " + ", ".join(advice[:-1]) + f", or {advice[-1]}."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, the machine's or the GPU's, ran out; torch and the system say it in several ways."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(part in text for part in _OUT_OF_MEMORY_TEXTS)


def _known(error: BaseException, recipe: Recipe | None) -> QuantStudioError | None:
    if isinstance(error, QuantStudioError):
        return error
    if is_out_of_memory(error):
        where = "The GPU's memory" if "cuda" in str(error).lower() else "This machine's memory"
        return OutOfMemory(f"{where} is not enough for this.", hint=memory_advice(recipe))
    if isinstance(error, OSError):
        return disk_problem(error)
    if type(error).__name__ == "SafetensorError":
        return _safetensors_error(error)
    return None


def _safetensors_error(error: BaseException) -> QuantStudioError:
    # A full disk arrives from safetensors as a text: the library passes no error number on.
    text = str(error)
    if "No space left" in text or "os error 28" in text:
        return DiskProblem(
            "The disk is full.",
            why="There was no room left to write the model.",
            hint="Free some space, or choose an output folder on another disk.",
        )
    return ModelDamaged(
        "A weight file of the model is damaged.", why=f"{_short(text)}.", hint="Download or copy the model again."
    )


def _cuda_in_use() -> bool:
    torch = sys.modules.get("torch")
    return bool(torch is not None and torch.cuda.is_available())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return (line if len(line) <= 300 else line[:299] + "…").rstrip(".")
