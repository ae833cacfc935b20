"""`run`, `quantize`, `validate` and `measure`: jobs carried out in this process, shown in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path

from quantstudio.cli.flags import given_values, with_flags
from quantstudio.cli.terminal import Terminal, interrupt_cancels, print_error, quiet_libraries
from quantstudio.core import protocol
from quantstudio.core.errors import RunNotFound
from quantstudio.core.fieldspec import field_specs
from quantstudio.core.humanize import human_bytes, human_rate, human_seconds
from quantstudio.core.job_environment import prepare_this_process
from quantstudio.core.jobs import ContestJob, MeasureJob, PreviewDataJob, RunJob, SensitivityJob
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.recipe_io import load_recipe, recipe_to_toml
from quantstudio.core.result import Interval, Measurement, RunResult
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import RECIPE, can_resume, read_header, read_result, settle
from quantstudio.core.speed_words import kernels_words
from quantstudio.core.verdict import kv_cache_cost

OK, FAILED, INTERRUPTED = 0, 1, 130


def quantize(options: argparse.Namespace) -> int:
    """Make a recipe from preset and flags, then carry it out (or save it)."""
    model = ModelSection(id=options.model) if options.model else ModelSection()
    recipe = with_flags(preset_recipe(Preset(options.preset), model), given_values(options))
    if options.save_recipe:
        options.save_recipe.write_text(recipe_to_toml(recipe), encoding="utf-8")
        print(f"Recipe written to {options.save_recipe}")
        return OK
    home = runs_folder(options)
    return _report(conduct_recipe(recipe, home), home)


def run(options: argparse.Namespace) -> int:
    """Carry out a recipe file."""
    recipe = with_flags(load_recipe(options.recipe), given_values(options))
    home = runs_folder(options)
    return _report(conduct_recipe(recipe, home), home)


def resume(options: argparse.Namespace) -> int:
    """Go on with a run that was cancelled, failed or killed while it calibrated or trained."""
    home = runs_folder(options)
    folder = home / options.run
    header = read_header(folder)
    if header.status is Status.DONE:  # killed when only its last words were missing, perhaps
        settle(folder)
        print("This run has finished; nothing was left to do.", file=sys.stderr)
        return _report(protocol.Result(t=header.finished, data=read_result(folder).model_dump(mode="json")), home)
    if header.damaged or not can_resume(folder):
        raise RunNotFound(
            f"The run {options.run} cannot be resumed.",
            why=header.damaged or "It is going on now, or kept nothing to go on from.",
            hint="Start it again from its recipe.",
        )
    return _report(conduct_here(RunJob(recipe=load_recipe(folder / RECIPE), run_folder=str(folder))), home)


def validate(options: argparse.Namespace) -> int:
    """Check a recipe on all four levels and print what is wrong, or what it will cost."""
    from quantstudio.core.estimate import estimate, read_machine
    from quantstudio.core.library import resolve_model
    from quantstudio.core.model_info import read_model_info

    recipe = load_recipe(options.recipe)
    home = runs_folder(options)
    info = read_model_info(resolve_model(recipe.model))
    outlook = estimate(info, recipe, read_machine(home), home)
    for problem in outlook.problems:
        print(f"{problem.level}: {problem.field}: {problem.text}")
    if any(problem.level == "error" for problem in outlook.problems):
        return FAILED
    print(f"The recipe can be run: {info.name}, {recipe.label}.")
    print(f"  output       about {human_bytes(outlook.output_bytes)}")
    print(f"  memory       up to about {human_bytes(outlook.peak_memory_bytes)}")
    print(f"  free disk    {human_bytes(outlook.disk_bytes)} needed")
    return OK


def measure(options: argparse.Namespace) -> int:
    """Measure one model by itself."""
    from quantstudio.core.library import resolve_model

    base = with_flags(Recipe(), given_values(options))
    resolve_model(ModelSection(id=options.model))
    job = MeasureJob(model=options.model, measure=base.measure, machine=base.machine)
    message = conduct_here(job)
    if not isinstance(message, protocol.Result):
        return ending(message)
    if options.json:
        print(json.dumps(message.data, indent=2))
    else:
        _print_measurement(Measurement.model_validate(message.data))
    return OK


def runs_folder(options: argparse.Namespace) -> Path:
    """The folder given by flag, else the one of the settings."""
    if options.runs_folder:
        return Path(options.runs_folder).expanduser().absolute()
    from quantstudio.core.settings import load_settings

    return load_settings().runs_path


def conduct_recipe(recipe: Recipe, home: Path) -> protocol.Message:
    """Carry out a recipe in a new run folder, with progress in the terminal. The terminal message."""
    from quantstudio.core.library import resolve_model
    from quantstudio.core.run_store import create_run
    from quantstudio.engine.acquire import must_download

    if not must_download(recipe.model):
        resolve_model(recipe.model)  # a mistyped model leaves no failed run behind
    return conduct_here(RunJob(recipe=recipe, run_folder=str(create_run(home, recipe))))


def conduct_here(job: RunJob | MeasureJob | PreviewDataJob | SensitivityJob | ContestJob) -> protocol.Message:
    """Carry out a job in this process, with progress in the terminal. The terminal message."""
    prepare_this_process()
    quiet_libraries()
    cancel = threading.Event()
    print("Starting…", file=sys.stderr)
    with interrupt_cancels(cancel):
        from quantstudio.engine.conduct import conduct

        return conduct(job, Terminal(), cancel)


def _report(message: protocol.Message, home: Path) -> int:
    if not isinstance(message, protocol.Result):
        return ending(message)
    from quantstudio.core.report import terminal_table
    from quantstudio.core.run_store import MODEL

    result = RunResult.model_validate(message.data)
    print(f"\n{result.name}\n")
    print(terminal_table([result]))
    for sentence in result.verdict:
        print(f"• {sentence}")
    print(f"\nModel: {home / result.run_id / MODEL}")
    return OK


def ending(message: protocol.Message) -> int:
    """The exit status of a job that did not end in a result, which is said."""
    if isinstance(message, protocol.Error):
        print_error(message)
        return FAILED
    print("Cancelled; nothing half-written is kept.", file=sys.stderr)
    return INTERRUPTED


def _print_measurement(measured: Measurement) -> None:
    speed = measured.performance
    rows = [
        ("load", human_seconds(speed.load_s)),
        ("peak memory", human_bytes(speed.peak_rss)),
        ("first token", f"{human_seconds(speed.ttft_s.median)} after a prompt of {speed.prompt_tokens} tokens"),
        ("prompt", human_rate(speed.prompt_tps.median)),
        ("answer", human_rate(speed.decode_tps.median)),
        ("perplexity", _with_interval(measured.perplexity)),
        ("bits per byte", _with_interval(measured.bits_per_byte)),
        *((f"{count} layers on", _kernel(name)) for name, count in speed.kernels.items()),
    ]
    print(f"\n{measured.model_name} ({speed.label}) on {speed.device}, {speed.threads} threads")
    for name, text in rows:
        print(f"  {name:<16} {text}")
    if speed.kernel_uses:
        print(f"  low-bit weights: {kernels_words(speed.kernel_uses)}")
    if measured.kv_cache:
        print(f"  {kv_cache_cost(measured.kv_cache)}")


def _kernel(name: str) -> str:
    """`cpu_int4 (CPU, int4 and fewer bits)`: what --machine.kernel takes, and what it is."""
    field = next(spec for spec in field_specs() if spec.path == "machine.kernel")
    words = dict(zip(field.choices, field.labels, strict=True))
    return f"{name} ({words[name]})" if name in words else name


def _with_interval(interval: Interval) -> str:
    return f"{interval.value:.4g} (95 % interval {interval.low:.4g} to {interval.high:.4g})"
