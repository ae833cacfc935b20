"""What calibrated and trained methods cost beside writing the result: memory, disk and time. Estimates.

Memory is derived in `working_memory`. Rates are those of one 2-core machine without a GPU; a GPU is taken to be fifty
times as fast as a core, which is coarse, and the range around the middle is wide for that reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantstudio.core.first_layers import kept_part
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_data import FileData, FolderData, HubData, OwnPrompts
from quantstudio.core.recipe_method import NEEDS_DATA, STEP_TOKENS, Awq, FineTune, Gptq, Qat
from quantstudio.core.recipe_precision import TARGETS
from quantstudio.core.working_memory import (
    CALIBRATING_LIBRARIES,
    TEXT_LIBRARIES,
    TRAINING_LIBRARIES,
    calibration_memory,
    kept_text,
    reading_memory,
    training_memory,
)

TRAIN_FLOPS_PER_CORE = 5e10
"""fp32 with fake quantization on a core with AVX-512."""
GPU_IN_CORES = 50
COMPILED_SHARE = 0.45
"""Of the time of a step that a compiled one needs on a GPU: QAT of a 0.5B shape, 0.40 on an H200, 0.44 to 0.54 on an
H100."""
TRAIN_FLOPS, LORA_FLOPS, TEACHER_FLOPS = 6, 4, 2
"""Per weight and token: forward and backward; without gradients of frozen weights; the original's forward."""
CALIBRATE_FLOPS = 6
"""Per weight and token: twice through each block, and the sums of products of its inputs."""
SENSITIVITY_RUNS = 3
"""Measuring sensitivity runs the model about so many times for each layer, on an eighth of the text."""


def method_memory(info: ModelInfo, plan: QuantizationPlan, recipe: Recipe, free: float) -> int:
    """Peak bytes that the method needs beside the libraries, with `free` bytes there; 0 for methods without data."""
    if not reads_data(recipe):
        return 0
    method, kept = recipe.method, kept_text(recipe)
    needs = [reading_memory(recipe)]
    if isinstance(method, Qat | FineTune):
        needs.append(kept + training_memory(info, plan, recipe, free - kept))
    if not isinstance(method, Qat) or recipe.begins_calibrated:
        needs.append(kept + calibration_memory(info, plan, recipe))
    return max(needs)


def method_libraries(recipe: Recipe) -> int:
    """Bytes of libraries that the method leaves loaded while its result is measured."""
    if not reads_data(recipe):
        return 0
    return TEXT_LIBRARIES + (TRAINING_LIBRARIES if isinstance(recipe.method, Qat | FineTune) else CALIBRATING_LIBRARIES)


def method_disk(info: ModelInfo, recipe: Recipe) -> int:
    """Bytes of what is kept while the method works, so that it can go on after a kill."""
    method = recipe.method
    if isinstance(method, Qat | FineTune):
        return kept_part(info, recipe).parameters * (1 if method.train == "lora" else 3 * 4)
    return info.parameters if method.kind in NEEDS_DATA else 0


def method_seconds(info: ModelInfo, recipe: Recipe, machine: Machine) -> float:
    """Seconds that the method takes beside reading, rounding and writing."""
    method, weights = recipe.method, info.parameters
    rate = TRAIN_FLOPS_PER_CORE * _cores(recipe, machine)
    calibration = CALIBRATE_FLOPS * weights * _calibration_tokens(recipe) / rate
    alone = isinstance(method, Qat) and not recipe.begins_calibrated
    seconds = calibration if method.kind in NEEDS_DATA and not alone else 0.0
    if isinstance(method, Qat | FineTune):
        student = kept_part(info, recipe).parameters
        step: float = student * (LORA_FLOPS if method.train == "lora" else TRAIN_FLOPS)
        step += 0 if method.loss == "cross_entropy" else TEACHER_FLOPS * weights
        held_out = recipe.data.held_out_sequences * recipe.data.sequence_length
        step *= COMPILED_SHARE if recipe.machine.compile and _on_gpu(recipe, machine) else 1.0
        judged = TEACHER_FLOPS * (student + weights) * held_out * method.evaluations
        seconds += (step * _trained_tokens(recipe, method) + judged) / rate
    if recipe.precision.kind in TARGETS:
        seconds += SENSITIVITY_RUNS * len(info.slots) * 2 * weights * _calibration_tokens(recipe) / 8 / rate
    return seconds


def contest_seconds(info: ModelInfo, recipe: Recipe, machine: Machine) -> float:
    """Seconds that all methods of a contest take, one after the other, with the training of the recipe."""
    trained = recipe.method if isinstance(recipe.method, Qat | FineTune) else Qat()
    training = trained.model_dump(exclude={"kind", "keep_layers"})
    methods = (Gptq(), Awq(), FineTune(**training), Qat(**training))
    each = (recipe.model_copy(update={"method": method}) for method in methods)
    return sum(method_seconds(info, other, machine) for other in each)


def reads_data(recipe: Recipe) -> bool:
    """Whether anything in the recipe reads its data section."""
    return recipe.method.kind in NEEDS_DATA or recipe.precision.kind in TARGETS


def data_faults(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """What can be seen to be wrong with the data before it is read: (field, what, hint)."""
    if not reads_data(recipe):
        return
    source = recipe.data.source
    if isinstance(source, FileData):
        yield from _path_faults("data.source.path", source.path, kind="file")
    elif isinstance(source, FolderData):
        yield from _path_faults("data.source.folder", source.folder, kind="folder")
    elif isinstance(source, OwnPrompts) and not source.prompts and not source.saved_chats:
        yield "data.source.prompts", "There are no prompts.", "Write some, or turn on 'Saved chats'."
    elif isinstance(source, HubData) and not source.dataset:
        yield "data.source.dataset", "No dataset is named.", "Write its name on the Hub, such as owner/name."


def _path_faults(field: str, text: str, *, kind: str) -> Iterator[tuple[str, str, str]]:
    path, hint = Path(text).expanduser(), f"Choose a {kind}, or the built-in books."
    if not text:
        yield field, f"No {kind} is chosen.", hint
    elif not (path.is_file() if kind == "file" else path.is_dir()):
        yield field, f"There is no {kind} {path}.", hint


def _trained_tokens(recipe: Recipe, method: Qat | FineTune) -> int:
    length = recipe.data.sequence_length
    return method.all_steps * length * (method.batch_sequences or max(1, STEP_TOKENS // length))


def _calibration_tokens(recipe: Recipe) -> int:
    return recipe.data.calibration_sequences * recipe.data.sequence_length


def _cores(recipe: Recipe, machine: Machine) -> int:
    if _on_gpu(recipe, machine):
        return GPU_IN_CORES
    return max(1, min(recipe.machine.threads or machine.cores, machine.cores))


def _on_gpu(recipe: Recipe, machine: Machine) -> bool:
    return bool(machine.gpu) and recipe.machine.device != "cpu"
