"""A recipe carried out: check, quantize, measure, publish.

Everything that can be refused is refused before a byte of the model is written. The model grows in `model.partial`
and becomes `model` in one step at the end, with its measurements on its card, so no reader ever meets half of one.
When measuring fails, the quantized model is still whole: it is published, and the error says where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantstudio import __version__
from quantstudio.core import run_store
from quantstudio.core.disk import partial_of, publish_folder, remove_tree, write_atomically
from quantstudio.core.engines import FAST_ENOUGH, ONNX_RUNTIME, onnx_runtime_is_installed
from quantstudio.core.errors import Cancelled, QuantStudioError
from quantstudio.core.estimate import check_machine
from quantstudio.core.estimate_learning import learn
from quantstudio.core.first_layers import kept_part
from quantstudio.core.jobs import MeasureJob
from quantstudio.core.library import resolve_model
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.plan import QuantizationPlan, make_plan
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.recipe_method import NEEDS_DATA
from quantstudio.core.result import (
    DataSummary,
    EngineTrial,
    Environment,
    Measurement,
    Performance,
    Quantization,
    RunResult,
)
from quantstudio.core.sensitivity import SENSITIVITY_FILE, is_target, may_lie_below_knee
from quantstudio.core.usage import mark_used
from quantstudio.core.verdict import verdict
from quantstudio.engine import failures
from quantstudio.engine.acquire import acquire, must_download
from quantstudio.engine.cost_watch import CostWatch
from quantstudio.engine.measure.environment import read_environment
from quantstudio.engine.measure.isolated import measure_isolated
from quantstudio.engine.measure.spec import MeasureSpec
from quantstudio.engine.measure.text import read_text
from quantstudio.engine.memory import give_back_freed_memory, importing
from quantstudio.engine.methods.choose import DATA, choose_weights, phases_of, prepare_text
from quantstudio.engine.methods.choose import PHASES as METHOD_PHASES
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.resolved import resolved_recipe

ORIGINAL_LABEL = "Original"
_PHASES = {
    "download": "Downloading the model",
    "check": "Checking model and machine",
    "sensitivity": "Measuring how sensitive each layer is",
    "quantize": "Quantizing",
    "measure_original": "Measuring the original",
    "measure_quantized": "Measuring the result",
    "quality": "Comparing quality",
    "measure_original_again": "Measuring the original again",
    "save": "Saving",
}
_UNMEASURED = ("download", "check", "sensitivity", "quantize", "save")


def run_recipe(recipe: Recipe, run_folder: Path, reporter: Reporter) -> RunResult:
    """Carry out a recipe in an existing folder: writes `model/`, `result.json` and `environment.json`.

    On any error nothing of the model stays, unless only the measuring failed. The caller holds the folder's `RunLock`
    (`conduct` does). Raises the named errors of `core.errors`, `Cancelled`, and OSError when the disk fails.
    """
    from quantstudio.engine.model_card import write_model_card

    downloading = must_download(recipe.model)
    enter = _Phases(reporter, _planned(recipe, downloading=downloading))
    enter("download" if downloading else "check")
    source = acquire(recipe, run_folder, reporter)
    if downloading:
        enter("check")
    info, plan = _check(recipe, source, run_folder, reporter)
    if may_lie_below_knee(info, recipe):
        _warn_below_knee(info, recipe, reporter)
    watch = CostWatch(info, recipe, run_folder)
    if is_target(recipe.precision):
        enter("sensitivity")
        recipe, plan = _allotted(info, recipe, run_folder, reporter)
    environment = _record_setting(recipe, info, run_folder)
    model = run_folder / run_store.MODEL
    with _partial(model) as partial:
        quantization, data = _quantize(info, plan, recipe, partial, enter, reporter)
        result = RunResult(
            run_id=run_folder.name,
            name=run_store.run_title(recipe),
            model_name=info.name,
            recipe=recipe,
            quantization=quantization,
            environment=environment,
            data=data,
        )
        if recipe.measure.enabled:
            with _kept_when_measuring_fails(result, model, reporter):
                result = _measured(result, info.path, partial, enter, reporter)
        result = result.model_copy(update={"verdict": verdict(result), "costs": watch.costs(quantization, reporter)})
        enter("save")
        write_model_card(partial, recipe, quantization, result)
        # Before the model has its name: a run killed between the two goes on, one killed after both is done.
        write_atomically(run_folder / run_store.RESULT, result.model_dump_json(indent=1) + "\n")
        _publish(result, model)
    remove_tree(run_folder / run_store.WORK)
    reporter.artifact("model", str(model))
    return result


def _planned(recipe: Recipe, *, downloading: bool) -> tuple[str, ...]:
    """Ids of the run's phases in order."""
    needless = {"download": not downloading, "sensitivity": not is_target(recipe.precision)}
    ids = [id for id in _PHASES if (recipe.measure.enabled or id in _UNMEASURED) and not needless.get(id)]
    before = ids.index("quantize")
    return (*ids[:before], *phases_of(recipe), *ids[before:])


def measure_only(job: MeasureJob, reporter: Reporter) -> Measurement:
    """Measure one model by itself in a fresh process. Raises as `run_recipe`."""
    enter = _Phases(reporter, ("check", "measure", "quality"), {"measure": "Measuring", "quality": "Measuring quality"})
    enter("check")
    folder = resolve_model(ModelSection(id=job.model))
    mark_used(folder)
    info = read_model_info(folder)
    read_text(job.measure.text, job.measure.quality_tokens)
    label = info.quantized or ORIGINAL_LABEL
    spec = MeasureSpec(model=str(folder), label=label, alone=True, measure=job.measure, machine=job.machine)
    enter("measure")
    measured = measure_isolated(spec, reporter, lambda: enter("quality"))
    if measured.perplexity is None or measured.bits_per_byte is None:
        raise QuantStudioError("The measuring process left out the quality.", hint="Please report this.")
    return Measurement(
        model_name=info.name,
        performance=measured.performance,
        perplexity=measured.perplexity,
        bits_per_byte=measured.bits_per_byte,
        kv_cache=measured.kv_cache,
        environment=read_environment(folder),
    )


class _Phases:
    """Announces phases by id, with their place among those planned."""

    def __init__(self, reporter: Reporter, ids: tuple[str, ...], titles: dict[str, str] | None = None) -> None:
        self._reporter = reporter
        self._ids = ids
        self._titles = _PHASES | METHOD_PHASES | (titles or {})

    def __call__(self, id: str) -> None:
        self._reporter.phase(id, self._titles[id], self._ids.index(id), len(self._ids))


def _check(recipe: Recipe, source: Path, run_folder: Path, reporter: Reporter) -> tuple[ModelInfo, QuantizationPlan]:
    """Everything that can be known to fail, before anything is written."""
    info = read_model_info(source)
    estimate = check_machine(info, recipe, run_folder, learn(run_folder.parent, recipe))
    estimate.plan.require()
    if recipe.measure.enabled:
        read_text(recipe.measure.text, recipe.measure.quality_tokens)
    for notice in (*estimate.plan.notices, *(p.text for p in estimate.problems if p.level == "warning")):
        reporter.notice(notice)
    return info, estimate.plan


def _warn_below_knee(info: ModelInfo, recipe: Recipe, reporter: Reporter) -> None:
    with importing():
        from quantstudio.engine.sensitivity.knee import knee_warnings

    for sentence in knee_warnings(info, recipe, reporter):
        reporter.notice(sentence, "warning")
    give_back_freed_memory()


def _allotted(info: ModelInfo, recipe: Recipe, run_folder: Path, reporter: Reporter) -> tuple[Recipe, QuantizationPlan]:
    """Bits for every layer in place of a target, and the plan that follows from them."""
    from quantstudio.engine.sensitivity.work import with_bits_per_layer

    # Methods that learn from the text find it there; for others it would look like work to go on with.
    cache = run_folder / run_store.WORK / DATA if recipe.method.kind in NEEDS_DATA else None
    recipe = with_bits_per_layer(info, recipe, run_folder / SENSITIVITY_FILE, reporter, cache)
    return recipe, make_plan(info, recipe)


def _quantize(
    info: ModelInfo, plan: QuantizationPlan, recipe: Recipe, partial: Path, enter: _Phases, reporter: Reporter
) -> tuple[Quantization, DataSummary | None]:
    """Choose and write; what a method finishes on the way outlives the process beside `partial`."""
    with importing():
        import torch

        # Between libraries, each of which takes seconds to import on a busy machine.
        reporter.check_cancel()
        from quantstudio.engine.foresight import try_kernels, warn_if_slower
        from quantstudio.engine.kernels.trial import BEFORE_A_JOB_S
        from quantstudio.engine.measure.environment import thread_count
        from quantstudio.engine.quantize import quantize_model

    reporter.check_cancel()
    torch.set_num_threads(thread_count(recipe.machine))
    run_folder, data = partial.parent, None
    if recipe.method.kind in NEEDS_DATA:
        if recipe.measure.trial:
            warn_if_slower(plan, recipe.machine, reporter)
        enter(DATA)
        data = prepare_text(recipe, info.path, run_folder, reporter)
        give_back_freed_memory()
    chosen = choose_weights(info, plan, recipe, run_folder, data, enter, reporter)
    give_back_freed_memory()
    enter("quantize")
    quantization = quantize_model(kept_part(info, recipe), plan, recipe, partial, reporter, chosen)
    if recipe.measure.enabled:
        try_kernels(plan, recipe.machine, reporter, BEFORE_A_JOB_S)
    give_back_freed_memory()
    return quantization, data.summary if data else None


def _record_setting(recipe: Recipe, info: ModelInfo, run_folder: Path) -> Environment:
    """Write down what the run works with: the machine, and everything that the recipe leaves open."""
    mark_used(info.path)
    environment = read_environment(run_folder)
    write_atomically(run_folder / run_store.ENVIRONMENT, environment.model_dump_json(indent=1) + "\n")
    write_atomically(run_folder / run_store.RESOLVED, resolved_recipe(recipe, info, environment))
    return environment


def _measured(result: RunResult, original: Path, quantized: Path, enter: _Phases, reporter: Reporter) -> RunResult:
    """Original, quantized with the quality of both, and the original again, each in a fresh process."""
    recipe, label = result.recipe, result.quantization.label

    def spec(model: Path, label: str, against: str = "") -> MeasureSpec:
        return MeasureSpec(
            model=str(model), label=label, original=against, measure=recipe.measure, machine=recipe.machine
        )

    def no_quality() -> None:
        raise AssertionError("this process was not asked for quality")

    enter("measure_original")
    first = measure_isolated(spec(original, ORIGINAL_LABEL), reporter, no_quality)
    enter("measure_quantized")
    second = measure_isolated(spec(quantized, label, str(original)), reporter, lambda: enter("quality"))
    other = _other_engine(spec(quantized, label), second.performance, reporter, no_quality)
    enter("measure_original_again")
    last = measure_isolated(spec(original, ORIGINAL_LABEL), reporter, no_quality)
    return result.model_copy(
        update={
            "original_first": first.performance,
            "quantized": second.performance,
            "original_last": last.performance,
            "quality": second.quality,
            "kv_cache": second.kv_cache,
            "other_engine": other,
        }
    )


def _other_engine(
    spec: MeasureSpec, own: Performance, reporter: Reporter, no_quality: Callable[[], None]
) -> EngineTrial | None:
    """The same model on ONNX Runtime: when asked for, or when it is slow enough on torch for a person to notice."""
    from quantstudio.engine.onnx.support import why_not

    asked = spec.machine.engine == ONNX_RUNTIME
    worth = spec.machine.engine == "auto" and onnx_runtime_is_installed() and own.decode_tps.median < FAST_ENOUGH
    if own.device != "cpu" or not (asked or worth):
        return None
    if reason := why_not(Path(spec.model)):
        reporter.notice(f"Not tried on ONNX Runtime: {reason}.", level="warning" if asked else "info")
        return None
    return measure_isolated(spec.model_copy(update={"other_engine": True}), reporter, no_quality).other_engine


@contextmanager
def _partial(model: Path) -> Iterator[Path]:
    """An empty folder to write the model in; gone afterwards unless it has been published."""
    partial = partial_of(model)
    remove_tree(partial)
    partial.mkdir()
    try:
        yield partial
    finally:
        remove_tree(partial)


@contextmanager
def _kept_when_measuring_fails(result: RunResult, model: Path, reporter: Reporter) -> Iterator[None]:
    """Publish the model without numbers when they cannot be had; the error then says so. Not when cancelled."""
    try:
        yield
    except Cancelled:
        raise
    except Exception as error:
        _publish(result, model)
        reporter.artifact("model", str(model))
        saved = f"The quantized model is whole and saved in {model}; only its numbers are missing."
        if (known := failures.translate(error, result.recipe)) is None:
            reporter.notice(saved)
            raise
        known.hint = f"{known.hint} {saved}".strip()
        raise known from error


def _publish(result: RunResult, model: Path) -> None:
    about = {"source": result.model_name, "scheme": result.quantization.label, "quantstudio": __version__}
    publish_folder(partial_of(model), model, about)
