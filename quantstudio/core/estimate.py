"""What a run will cost on this machine, and what is wrong with it, before it starts. An estimate, not a measurement.

Sizes come from the plan and are exact but for file headers. Memory is what the jobs were measured to need. Times are
coarse: rates of one 2-core machine, scaled by cores, given as a range. Nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from quantstudio.core.engines import FAST_ENOUGH, ONNX_FAMILIES, ONNX_RUNTIME, OTHER_ENGINE_TOKENS, TORCH
from quantstudio.core.errors import DiskProblem, ModelUnsupported, OutOfMemory, QuantStudioError, RecipeError
from quantstudio.core.estimate_learning import NO_CORRECTION, Correction
from quantstudio.core.estimate_method import (
    data_faults,
    method_disk,
    method_libraries,
    method_memory,
    method_seconds,
)
from quantstudio.core.estimate_precision import target_faults, with_target
from quantstudio.core.first_layers import first_layers_faults, kept_part
from quantstudio.core.humanize import human_bytes
from quantstudio.core.machine import Machine, read_machine
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import QuantizationPlan, make_plan, misfit_sentences, unmatched_patterns
from quantstudio.core.recipe import FileText, OnMisfit, Recipe
from quantstudio.core.recipe_method import FineTune, Qat, undivided
from quantstudio.core.sensitivity import may_lie_below_knee
from quantstudio.core.working_memory import asking_memory, other_scoring_memory, scoring_memory

__all__ = ["Estimate", "Level", "Machine", "Problem", "check_machine", "estimate", "read_machine"]

BASE_MEMORY = 450_000_000
"""Python with torch and transformers loaded: 342–394 MB right after import (torch 2.13, CPU)."""
BLOCK_MEMORY = 150_000_000
"""Blocks of rows in flight while quantizing. Measured peak with the libraries: 505–535 MB at 494M parameters."""
LIBRARY_MEMORY = 395_000_000
"""The libraries in a process that only quantizes: it peaked at 399–403 MB with models of 5–10M parameters."""
BLOCK_COPIES = 4
"""Of a matrix that is smaller than a block: as read, in fp32, its codes, and as packed."""
COMPANION_BYTES = 64_000_000
"""Room for tokenizer, card, log and messages beside the weights; the largest tokenizers have 35 MB."""
HEADROOM = 0.05
"""Share of the machine's memory that the system itself needs."""

START_SECONDS = 5.0
"""Import of torch and transformers in a fresh process, 3–6 s on the 2-core machine."""
QUANTIZE_PER_WEIGHT = 40e-9
"""Seconds: reading, rounding, packing, writing and checksums; 43–64 ns measured on 2 busy cores."""
DECODE_BYTES_PER_S = 10e9
"""Per core, up to `MEMORY_CORES`; bf16 weights read once per token (49 GB/s peak on two threads, less in a loop)."""
MEMORY_CORES = 8
ONNX_PREPARE_PER_WEIGHT = 4e-9
"""Seconds: a result's weights in the other engine's order; two seconds for 494M weights on 2 cores."""
ONNX_MEMORY = 40_000_000
"""ONNX Runtime's libraries: a process that wrote with it peaked 38 MB above torch's (513 against 475 MB at 51M)."""
FLOPS_PER_CORE = 2e11
"""bf16 matrix products on a core with AVX-512; without bf16 instructions several times less, hence the wide range."""
SPREAD = (0.4, 4.0)
"""The range around the middle estimate."""


class Level(StrEnum):
    """Whether a problem stops the run."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a recipe for this model on this machine, to be shown beside the field that causes it."""

    field: str
    text: str
    level: Level
    error: QuantStudioError | None = None
    """What `Estimate.require` raises; None for a warning."""


@dataclass(frozen=True)
class Estimate:
    """Costs of a run: bytes, and seconds as a middle value and a range."""

    output_bytes: int
    disk_bytes: int
    """What has to be free on the disk of the runs."""
    peak_memory_bytes: int
    """The larger of the two below."""
    quantize_memory_bytes: int
    measure_memory_bytes: int
    """0 when nothing is measured."""
    seconds: float
    seconds_range: tuple[float, float]
    problems: tuple[Problem, ...]
    plan: QuantizationPlan

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that stop the run."""
        return tuple(problem for problem in self.problems if problem.level is Level.ERROR)

    def require(self) -> None:
        """Raise the first problem that stops the run.

        LayerMisfit, ModelUnsupported, DiskProblem, OutOfMemory, or RecipeError.
        """
        for problem in self.errors:
            if problem.error:
                raise problem.error


def estimate(
    info: ModelInfo, recipe: Recipe, machine: Machine, runs_home: Path, correction: Correction = NO_CORRECTION
) -> Estimate:
    """Price a recipe for a model on a machine. Never raises; `problems` says what is wrong.

    `correction` is what earlier runs on this machine have taught (`estimate_learning`).

    Memory of writing the result does not grow with the model: the libraries and a few blocks of rows, and for
    mixture-of-experts models the experts of one layer, twice, which are fused as transformers wants them. Methods that
    learn from text need more (`working_memory`). Memory of measuring quality: original and result in one process, and
    the scores of some windows for both. A result that is slow enough is tried on ONNX Runtime as well, where that is
    installed: in one process with the same result on torch.
    """
    plan = with_target(info, recipe, make_plan(info, recipe))
    output = plan.sizes.total
    tried = _tries_other_engine(info, plan, recipe, machine)
    method = method_memory(info, plan, recipe, machine.available_memory - LIBRARY_MEMORY)
    asking = asking_memory(info, plan) if may_lie_below_knee(info, recipe) else 0
    quantize_memory = max(quantize_base(info) + 2 * _largest_experts(info), LIBRARY_MEMORY + max(method, asking))
    measure_memory = _measure_memory(info, recipe, output, tried=tried) if recipe.measure.enabled else 0
    disk = output + COMPANION_BYTES + method_disk(info, recipe)
    seconds = _seconds(info, recipe, machine, output, tried=tried) + method_seconds(info, recipe, machine)
    quantize_memory = round(quantize_memory * correction.memory)
    measure_memory, seconds = round(measure_memory * correction.memory), seconds * correction.seconds
    costs = Estimate(
        output_bytes=output,
        disk_bytes=disk,
        peak_memory_bytes=max(quantize_memory, measure_memory),
        quantize_memory_bytes=quantize_memory,
        measure_memory_bytes=measure_memory,
        seconds=seconds,
        seconds_range=(seconds * SPREAD[0], seconds * SPREAD[1]),
        problems=(),
        plan=plan,
    )
    problems = [
        *(_error(field, text, hint, RecipeError) for field, text, hint in first_layers_faults(info, recipe)),
        *_model_problems(kept_part(info, recipe), recipe, plan),
        *_memory_problems(costs, machine),
        *_disk_problems(costs, machine, runs_home),
        *(_error(field, text, hint, RecipeError) for field, text, hint in data_faults(recipe)),
        *_target_problems(info, recipe, plan),
        *_measure_problems(info, recipe),
        *_device_problems(recipe, machine),
        *_spread_problems(recipe, machine),
        *_compile_problems(recipe, machine),
    ]
    return replace(costs, problems=tuple(problems))


def check_machine(info: ModelInfo, recipe: Recipe, runs_home: Path, correction: Correction = NO_CORRECTION) -> Estimate:
    """Look at this machine and raise what stands in the way of the recipe; the estimate when nothing does.

    Raises LayerMisfit, ModelUnsupported, DiskProblem, OutOfMemory, RecipeError.
    """
    costs = estimate(info, recipe, read_machine(runs_home), runs_home, correction)
    costs.require()
    return costs


def quantize_base(info: ModelInfo) -> int:
    """Bytes that reading, rounding and writing hold at once: libraries, and blocks of rows of the largest matrix."""
    largest = max((tensor.nbytes for tensor in info.tensors), default=0)
    return LIBRARY_MEMORY + min(BLOCK_MEMORY, BLOCK_COPIES * largest)


def _largest_experts(info: ModelInfo) -> int:
    """Bytes of the experts of the layer that has most of them; 0 without experts."""
    by_layer: dict[str, int] = {}
    for tensor in info.tensors:
        layer, found, _ = tensor.name.partition(".experts.")
        if found:
            by_layer[layer] = by_layer.get(layer, 0) + tensor.nbytes
    return max(by_layer.values(), default=0)


def _measure_memory(info: ModelInfo, recipe: Recipe, output: int, *, tried: bool) -> int:
    # Two processes with the libraries: the one that measures, and the one that quantized and waits for it.
    libraries = 2 * BASE_MEMORY + method_libraries(recipe)
    quality = _bf16_bytes(info) + output + scoring_memory(info, recipe)
    other = ONNX_MEMORY + 2 * output + other_scoring_memory(info, recipe) if tried else 0
    return libraries + max(quality, other)


def _tries_other_engine(info: ModelInfo, plan: QuantizationPlan, recipe: Recipe, machine: Machine) -> bool:
    """Whether the result will be measured on ONNX Runtime too, as far as that can be known before: see the pipeline."""
    asked = recipe.machine.engine
    on_gpu = bool(machine.gpu) and recipe.machine.device != "cpu"
    if on_gpu or asked == TORCH or not machine.onnx_runtime or info.model_type not in ONNX_FAMILIES:
        return False
    if any(kept.slot.part is not Part.EMBEDDING or plan.tied_output for kept in plan.kept):
        return False  # it runs no layer and no head in bf16
    return asked == ONNX_RUNTIME or _bandwidth(recipe, machine) / plan.sizes.total < FAST_ENOUGH


def _bandwidth(recipe: Recipe, machine: Machine) -> float:
    return DECODE_BYTES_PER_S * min(_cores(recipe, machine), MEMORY_CORES)


def _cores(recipe: Recipe, machine: Machine) -> int:
    return min(recipe.machine.threads or machine.cores, machine.cores)


def _bf16_bytes(info: ModelInfo) -> int:
    return 2 * info.parameters


def _seconds(info: ModelInfo, recipe: Recipe, machine: Machine, output: int, *, tried: bool) -> float:
    """Quantizing; then speed (original, result, result on the other engine where it is tried, original) and quality."""
    total = START_SECONDS + info.parameters * QUANTIZE_PER_WEIGHT
    measure = recipe.measure
    if not measure.enabled:
        return total
    bandwidth, flops = _bandwidth(recipe, machine), FLOPS_PER_CORE * _cores(recipe, machine)
    prompt = 2 * info.parameters * measure.prompt_tokens / flops
    repeats = measure.trials + 1  # one to warm up
    judged = measure.quality_tokens
    if tried:
        total += info.parameters * ONNX_PREPARE_PER_WEIGHT
        judged += min(OTHER_ENGINE_TOKENS, measure.quality_tokens)
    for nbytes in (_bf16_bytes(info), output, *([output] if tried else []), _bf16_bytes(info)):
        decode = measure.decode_tokens * nbytes / bandwidth
        total += START_SECONDS + repeats * (prompt + decode)
    return total + START_SECONDS + 2 * judged * 2 * info.parameters / flops


def _model_problems(info: ModelInfo, recipe: Recipe, plan: QuantizationPlan) -> Iterator[Problem]:
    try:
        plan.require()
    except QuantStudioError as error:
        text = f"{error.what} {error.why}".strip() if isinstance(error, ModelUnsupported) else str(error)
        yield Problem(error.field, text, Level.ERROR, error)
    if plan.misfits and recipe.layers.on_misfit is not OnMisfit.REFUSE:
        sentences = " ".join(misfit_sentences(plan.misfits))
        done = {OnMisfit.KEEP: "They stay in bf16.", OnMisfit.SMALLER: "They get smaller groups."}
        text = f"The group size does not divide some layers. {sentences} {done[recipe.layers.on_misfit]}"
        yield Problem("scheme.group_size", text, Level.WARNING)
    for pattern in unmatched_patterns(info, recipe):
        yield Problem("layers.keep", f"No layer of this model is called {pattern}.", Level.WARNING)


def _memory_problems(costs: Estimate, machine: Machine) -> Iterator[Problem]:
    usable = int(machine.memory * (1 - HEADROOM))
    quantize, measure = costs.quantize_memory_bytes, costs.measure_memory_bytes
    if quantize > usable:
        text = f"Quantizing this model needs about {human_bytes(quantize)} of memory; this machine has "
        hint = "Pick a smaller model, fewer bits, or a machine with more memory."
        yield _error("model.id", f"{text}{human_bytes(machine.memory)}.", hint, OutOfMemory)
    elif measure > usable:
        text = f"Measuring this model needs about {human_bytes(measure)} of memory; this machine has "
        hint = "Turn off 'Measure afterwards', or use a machine with more memory."
        yield _error("model.id", f"{text}{human_bytes(machine.memory)}.", hint, OutOfMemory)
    elif costs.peak_memory_bytes > machine.available_memory:
        text = (
            f"This run needs about {human_bytes(costs.peak_memory_bytes)} of memory; "
            f"{human_bytes(machine.available_memory)} are free just now. Close other programs first."
        )
        yield Problem("model.id", text, Level.WARNING)


def _disk_problems(costs: Estimate, machine: Machine, runs_home: Path) -> Iterator[Problem]:
    if costs.disk_bytes > machine.free_disk:
        text = (
            f"The result needs {human_bytes(costs.disk_bytes)} on the disk of {runs_home}; "
            f"{human_bytes(machine.free_disk)} are free."
        )
        yield _error("output.name", text, "Free some space, or choose a folder for runs on another disk.", DiskProblem)


def _target_problems(info: ModelInfo, recipe: Recipe, plan: QuantizationPlan) -> Iterator[Problem]:
    for field, text, out_of_reach in target_faults(info, recipe, plan):
        if out_of_reach:
            yield _error(field, text, "Or let head and embedding become int8.", RecipeError)
        else:
            yield Problem(field, text, Level.WARNING)


def _measure_problems(info: ModelInfo, recipe: Recipe) -> Iterator[Problem]:
    measure = recipe.measure
    if not measure.enabled:
        return
    if isinstance(measure.text, FileText):
        yield from _text_problems(measure.text.path)
    context = info.context_length
    if not context:
        return
    lengths = {
        "measure.prompt_tokens": ("Prompt and answer", measure.prompt_tokens + measure.decode_tokens),
        "measure.window": ("The window", measure.window),
    }
    for field, (what, tokens) in lengths.items():
        if tokens > context:
            text = f"{what} of {tokens:,} tokens are longer than the {context:,} that the model was made for."
            if info.has_position_table:
                yield _error(field, text, f"Use at most {context:,} tokens together.", RecipeError)
            else:
                yield Problem(field, f"{text} What is measured there says little.", Level.WARNING)


def _text_problems(text_file: str) -> Iterator[Problem]:
    path = Path(text_file).expanduser()
    hint = "Choose a text file, or the built-in text."
    if not text_file:
        yield _error("measure.text.path", "No text file is chosen.", hint, RecipeError)
    elif not path.is_file():
        yield _error("measure.text.path", f"There is no file {path}.", hint, RecipeError)
    elif path.stat().st_size == 0:
        yield _error("measure.text.path", f"The file {path} is empty.", hint, RecipeError)


def _device_problems(recipe: Recipe, machine: Machine) -> Iterator[Problem]:
    if recipe.machine.device == "cuda" and not machine.gpu:
        hint = "Choose 'auto' or 'cpu'."
        yield _error("machine.device", "No NVIDIA GPU was found on this machine.", hint, RecipeError)
    if recipe.machine.threads > machine.cores:
        text = f"This machine has {machine.cores} physical cores; more threads than that make it slower."
        yield Problem("machine.threads", text, Level.WARNING)


def _spread_problems(recipe: Recipe, machine: Machine) -> Iterator[Problem]:
    """Of a training that is to be spread over several GPUs."""
    method, wanted = recipe.method, recipe.machine.gpus
    if wanted == 1 or not isinstance(method, Qat | FineTune):
        return
    if recipe.machine.device == "cpu" or not machine.gpus:
        text = f"A training on the CPU cannot be spread over {wanted} GPUs."
        yield _error("machine.gpus", text, "Set the number of GPUs to 1.", RecipeError)
    elif machine.gpus < wanted:
        text = f"The training is to be spread over {wanted} GPUs, and this machine has {machine.gpus}."
        yield _error("machine.gpus", text, f"Set the number of GPUs to {machine.gpus} or fewer.", RecipeError)
    elif method.batch_sequences % wanted:
        yield _error("method.batch_sequences", *undivided(method.batch_sequences, wanted), RecipeError)


def _compile_problems(recipe: Recipe, machine: Machine) -> Iterator[Problem]:
    if recipe.machine.compile and (recipe.machine.device == "cpu" or not machine.gpu):
        text = "Models are only compiled for NVIDIA GPUs. This run goes on without."
        yield Problem("machine.compile", text, Level.WARNING)


def _error(field: str, text: str, hint: str, kind: type[QuantStudioError]) -> Problem:
    return Problem(field, f"{text} {hint}", Level.ERROR, kind(text, hint=hint, field=field))
