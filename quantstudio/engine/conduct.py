"""Carries out any job from start to its one terminal message. Worker and command line both call this.

It is the border: inside, functions return, raise, or raise `Cancelled`; outside, there are only messages. For a run
it holds the folder's lock, records every message and keeps `run.json` true. Imports nothing heavy until the job
needs it, so that a worker has said hello long before torch is loaded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quantstudio.core import protocol, run_store
from quantstudio.core.disk import partial_of, remove_tree
from quantstudio.core.errors import Cancelled, QuantStudioError, RunBusy, RunNotFound
from quantstudio.core.jobs import (
    AnyJob,
    ChatJob,
    ContestJob,
    DownloadJob,
    HubJob,
    MeasureJob,
    PreviewDataJob,
    RunJob,
    SensitivityJob,
    Turn,
)
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import load_recipe
from quantstudio.core.result import RunResult
from quantstudio.core.run_lock import RunLock
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import RunHeader
from quantstudio.engine import failures
from quantstudio.engine.measure.memory import MemorySampler
from quantstudio.engine.memory import importing
from quantstudio.engine.recorder import Recorder
from quantstudio.engine.reporter import Reporter, Sink

Requests = queue.Queue[Turn | None]


def conduct(job: AnyJob, sink: Sink, cancel: threading.Event, requests: Requests | None = None) -> protocol.Message:
    """Carry out `job`; everything that happens goes to `sink`, last of all the terminal message, which is returned.

    Setting `cancel` ends the job as `cancelled`. `requests` feeds a chat. Raises nothing but what `sink` raises.
    """
    match job:
        case RunJob():
            return _conduct_run(job, sink, cancel)
        case MeasureJob():
            recipe = Recipe(measure=job.measure, machine=job.machine)
            return _finish(sink, _attempt(lambda: _measure(job, sink, cancel), recipe, lambda _text: None))
        case ChatJob():
            log = _log_to(sink)
            return _finish(sink, _attempt(lambda: _chat(job, requests or queue.Queue(), sink, cancel), None, log))
        case PreviewDataJob():
            return _finish(sink, _attempt(lambda: _preview_data(job, sink, cancel), None, _log_to(sink)))
        case SensitivityJob():
            return _finish(sink, _attempt(lambda: _sensitivity(job, sink, cancel), job.recipe, _log_to(sink)))
        case ContestJob():
            return _finish(sink, _attempt(lambda: _contest(job, sink, cancel), job.recipe, _log_to(sink)))
        case _:
            return _finish(sink, _attempt(lambda: _hub(job, sink, cancel), None, _log_to(sink)))


def _conduct_run(job: RunJob, sink: Sink, cancel: threading.Event) -> protocol.Message:
    folder = Path(job.run_folder)
    with ExitStack() as stack:
        try:
            run_store.clean_up(folder.parent)
            run_store.prepare_run(folder, job.recipe)
            stack.enter_context(RunLock(folder))
            header = _open_run(folder, job.recipe)
            recorder = stack.enter_context(Recorder(folder, sink))
        except (QuantStudioError, OSError) as error:
            # The folder is not ours (busy, used before, not writable): the caller is told, the folder left alone.
            return _finish(sink, failures.as_message(error, _now(), job.recipe))
        ending = _attempt(lambda: _run(job, recorder, cancel), job.recipe, lambda text: recorder.log(_now(), text))
        return _close_run(folder, header, ending, recorder, sink)


def _open_run(folder: Path, recipe: Recipe) -> RunHeader:
    """Mark the run as running. One that has been carried out before is refused, unless it can go on with its work."""
    header = run_store.read_header(folder)
    if header.damaged:
        raise RunNotFound(f"The run {folder.name} cannot be used.", why=header.damaged, hint="Start a new run.")
    if header.status is not Status.WAITING:
        if not run_store.can_resume(folder):
            raise RunBusy(
                f"The run {folder.name} has been carried out already.",
                why="Each run has a folder of its own.",
                hint="Start a new run with the same recipe.",
            )
        if load_recipe(folder / run_store.RECIPE) != recipe:
            raise RunBusy(
                f"The run {folder.name} cannot go on with another recipe.",
                why="What it has finished so far was made by its own.",
                hint="Start a new run with the new recipe.",
            )
    update = {"status": Status.RUNNING, "started": header.started or _now(), "summary": "", "error_kind": ""}
    header = header.model_copy(update=update)
    run_store.write_header(folder, header)
    return header


def _close_run(
    folder: Path, header: RunHeader, ending: protocol.Message, recorder: Recorder, sink: Sink
) -> protocol.Message:
    """Bring the folder to its final state, then send the terminal message: who sees it finds the folder finished."""
    try:
        remove_tree(partial_of(folder / run_store.MODEL))
        run_store.write_header(folder, header.model_copy(update=_outcome(ending)))
    except OSError as error:
        ending = failures.as_message(error, _now())
    try:
        recorder(ending)
    except OSError:
        # The disk is so full that not even the last line fits; who listens must still be told.
        sink(ending)
    return ending


def _outcome(ending: protocol.Message) -> dict[str, Any]:
    """What the terminal message changes in the header."""
    match ending:
        case protocol.Result(t=t, data=data):
            result = RunResult.model_validate(data)
            return run_store.done(result, t)
        case protocol.Error(t=t, kind=kind, what=what):
            return {"status": Status.FAILED, "finished": t, "summary": what, "error_kind": kind}
        case _:
            return {"status": Status.CANCELLED, "finished": ending.t}


def _attempt(work: Callable[[], dict[str, Any]], recipe: Recipe | None, log: Callable[[str], None]) -> protocol.Message:
    """Do the work; however it ends becomes one terminal message."""
    try:
        return protocol.Result(data=work(), t=_now())
    except (Cancelled, KeyboardInterrupt):
        return protocol.CancelledMessage(t=_now())
    except BaseException as error:  # panics of Rust libraries are not Exceptions
        message = failures.as_message(error, _now(), recipe)
        try:
            log(failures.details(error))
        except OSError as trouble:
            return failures.as_message(trouble, _now(), recipe) if message.kind == failures.INTERNAL else message
        return message


def _run(job: RunJob, sink: Sink, cancel: threading.Event) -> dict[str, Any]:
    reporter = Reporter(sink, cancel)
    with MemorySampler(reporter.watch_memory):
        from quantstudio.engine.pipeline import run_recipe

        return run_recipe(job.recipe, Path(job.run_folder), reporter).model_dump(mode="json")


def _measure(job: MeasureJob, sink: Sink, cancel: threading.Event) -> dict[str, Any]:
    with MemorySampler(sink):
        from quantstudio.engine.pipeline import measure_only

        return measure_only(job, Reporter(sink, cancel)).model_dump(mode="json")


def _sensitivity(job: SensitivityJob, sink: Sink, cancel: threading.Event) -> dict[str, Any]:
    with MemorySampler(sink):
        with importing():
            from quantstudio.engine.sensitivity.work import perform_sensitivity

        return perform_sensitivity(job, Reporter(sink, cancel)).model_dump(mode="json")


def _contest(job: ContestJob, sink: Sink, cancel: threading.Event) -> dict[str, Any]:
    # No memory sampler: each contestant's run has its own, and passes on what it says.
    from quantstudio.engine.contest import run_contest

    return run_contest(job, Reporter(sink, cancel), conduct).model_dump(mode="json")


def _chat(job: ChatJob, requests: Requests, sink: Sink, cancel: threading.Event) -> dict[str, Any]:
    with MemorySampler(sink):
        with importing():
            from quantstudio.engine.chat import run_chat

        run_chat(job, requests, Reporter(sink, cancel))
        return {}


def _preview_data(job: PreviewDataJob, sink: Sink, cancel: threading.Event) -> dict[str, Any]:
    with importing():
        from quantstudio.engine.data.preview import preview_for

    return preview_for(job, Reporter(sink, cancel)).model_dump(mode="json")


def _hub(job: HubJob, sink: Sink, cancel: threading.Event) -> dict[str, Any]:
    # No memory sampler, and nothing that imports torch: a search must answer at once.
    from quantstudio.engine.hub.work import perform

    if isinstance(job, DownloadJob):
        from quantstudio.engine.acquire import carry_out
        from quantstudio.engine.hub.connection import read_connection

        return carry_out(job, read_connection(), Reporter(sink, cancel)).model_dump(mode="json")
    return perform(job, Reporter(sink, cancel)).model_dump(mode="json")


def _log_to(sink: Sink) -> Callable[[str], None]:
    return lambda text: sink(protocol.Log(t=_now(), level="debug", text=text))


def _finish(sink: Sink, message: protocol.Message) -> protocol.Message:
    sink(message)
    return message


def _now() -> float:
    return time.time()
