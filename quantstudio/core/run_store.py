"""Run folders: the only record of what was done. No database; reading a thousand headers takes well under 0.1 s.

    run.json               the header: status, times, sizes, one line of summary; replaced atomically
    recipe.toml            as written            recipe.resolved.json   every default, model, text, versions
    environment.json       machine and libraries
    events.jsonl           the very messages of the wire, to be replayed through `run_state`
    metrics.jsonl          the metrics alone     worker.log             log lines, tracebacks
    result.json            `RunResult`, which counts once the model is there
    model/                 the saved model, whole or absent (see `disk`)
    work/                  what a calibrated or trained method has finished so far; gone when the model is there
    run.lock               held by the process that works here (see `run_lock`)

A run whose process is gone without having said how it ended is shown as failed, from the lock, before anyone has
rewritten its header. The result is written before the model gets its name, so where both are there the run is done,
and is shown so, whatever its header still says.
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantstudio.core import protocol
from quantstudio.core.disk import PARTIAL_SUFFIX, disk_problem, partial_of, remove_tree, write_atomically
from quantstudio.core.errors import DiskProblem, RunBusy, RunNotFound, WorkerLost
from quantstudio.core.recipe import STARTER, Recipe
from quantstudio.core.recipe_io import recipe_to_toml
from quantstudio.core.result import RunResult
from quantstudio.core.run_lock import LOCK_FILE, RunLock, is_locked
from quantstudio.core.run_state import Status
from quantstudio.core.verdict import summary

HEADER, EVENTS, METRICS, LOG = "run.json", "events.jsonl", "metrics.jsonl", "worker.log"
RECIPE, RESOLVED, ENVIRONMENT, RESULT, MODEL = (
    "recipe.toml",
    "recipe.resolved.json",
    "environment.json",
    "result.json",
    "model",
)
WORK = "work"
HEADER_VERSION = 1
_TRASH = ".deleting-"
LOST = "The process that did the work ended without saying how."
NEVER_BEGAN = "The window was closed before this run could begin."
STARTING_S = 60.0
"""A run that has just been made, or is about to begin, is held by nobody for a moment."""
LOST_HINT = "Run it again; nothing half-written is kept. A run that was calibrating or training can be resumed."


class RunHeader(BaseModel):
    """What the list of runs shows: the contents of `run.json`. Times are seconds since the epoch (UTC); 0: unknown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = HEADER_VERSION
    name: str
    status: Status = Status.WAITING
    created: float
    started: float = 0.0
    finished: float = 0.0
    model: str = ""
    label: str = ""
    """The scheme, such as `W4A16 g128`."""
    original_bytes: int = 0
    quantized_bytes: int = 0
    """Bytes of the weight files before and after; 0 until known."""
    summary: str = ""
    """One line: what came out, or what went wrong."""
    error_kind: str = ""
    """Id of the error class when it failed."""

    id: str = Field(default="", exclude=True)
    """Name of the folder."""
    path: Path = Field(default=Path(), exclude=True)
    damaged: str = Field(default="", exclude=True)
    """Why the folder cannot be read as a run; empty for a sound one."""

    @property
    def seconds(self) -> float:
        """How long the job took; 0 when it has not both started and finished."""
        return max(0.0, self.finished - self.started) if self.started and self.finished else 0.0


def run_title(recipe: Recipe) -> str:
    """The name a person sees: the recipe's own, or made from the model and the scheme."""
    return recipe.output.name or f"{model_title(recipe)} {recipe.label}"


def model_title(recipe: Recipe) -> str:
    """Last part of the model's id or folder."""
    return STARTER if recipe.model.id == STARTER else Path(recipe.model.id).name or recipe.model.id


def new_run_folder(home: Path, name: str) -> Path:
    """Make a new, empty folder, named after `name` and the time; never an existing one. Raises DiskProblem."""
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:60] or "run"
    stem = f"{slug}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = home / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise disk_problem(error) or _no_folder(home, error) from error
    raise DiskProblem(f"The folder {home} holds too many runs of one name.", hint="Delete some of them.")


def create_run(home: Path, recipe: Recipe) -> Path:
    """A new run folder that holds the recipe and waits to be carried out. Raises DiskProblem."""
    folder = new_run_folder(home, run_title(recipe))
    try:
        prepare_run(folder, recipe)
    except DiskProblem:
        remove_tree(folder)
        raise
    return folder


def prepare_run(folder: Path, recipe: Recipe) -> RunHeader:
    """Write recipe and header into a run folder unless it has a header already; the header. Raises DiskProblem."""
    header = RunHeader(
        name=run_title(recipe),
        created=time.time(),
        model=model_title(recipe),
        label=recipe.label,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / HEADER).exists():
            return read_header(folder)
        write_atomically(folder / RECIPE, recipe_to_toml(recipe))
        write_header(folder, header)
    except OSError as error:
        raise disk_problem(error) or _no_folder(folder, error) from error
    return header


def write_header(folder: Path, header: RunHeader) -> None:
    """Replace `run.json`. Raises OSError."""
    write_atomically(folder / HEADER, header.model_dump_json(indent=1) + "\n")


def read_header(folder: Path) -> RunHeader:
    """The header as it holds now: a run whose process is gone reads as failed, an unreadable one says why.

    One that was finished but for its header reads as done.
    Whoever lets a run wait holds its lock meanwhile, so a waiting run that nobody holds reads as cancelled.
    """
    header = _parse_header(folder)
    if header.status is Status.WAITING and _age(folder) > STARTING_S and not is_locked(folder):
        return header.model_copy(update={"status": Status.CANCELLED, "summary": NEVER_BEGAN})
    if header.status in (Status.STARTING, Status.RUNNING, Status.CANCELLING) and not is_locked(folder):
        again = _parse_header(folder)  # it may have finished between the two looks
        return again if again.status.final else _as_lost(again)
    return header


def list_runs(home: Path) -> list[RunHeader]:
    """Every run folder, newest first. Damaged ones are listed as such; folders that hold no file of ours are not."""
    try:
        with os.scandir(home) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    headers = [read_header(folder) for folder in folders]
    runs = [header for header in headers if not header.damaged or _is_ours(header.path)]
    return sorted(runs, key=lambda header: -header.created)


def read_result(folder: Path) -> RunResult:
    """What a finished run found out. Raises RunNotFound when there is none or it cannot be read."""
    try:
        return RunResult.model_validate_json((folder / RESULT).read_bytes())
    except (OSError, ValidationError) as error:
        raise RunNotFound(
            f"The run {folder.name} has no result that can be read.",
            why="It did not finish." if isinstance(error, OSError) else "Its result file is damaged.",
            hint="Run it again.",
        ) from error


def result_of_model(model: Path) -> RunResult | None:
    """What the run found out that made the model in this folder; None when it was no run's, or is not known."""
    try:
        return read_result(model.parent) if model.name == MODEL else None
    except RunNotFound:
        return None


def read_messages(folder: Path) -> list[protocol.Message]:
    """The run's messages in order, for replay. Broken lines (a killed process leaves half a line) are passed over.

    A run that was resumed has ended before; only its last ending counts.
    When the process is gone and no terminal message was written, one is added, so that history never shows a dead run
    as running.
    """
    messages: list[protocol.Message] = []
    try:
        with (folder / EVENTS).open("rb") as lines:
            for line in lines:
                try:
                    message = protocol.decode(line)
                except (ValueError, RecursionError):
                    continue
                if message is not None:
                    messages.append(message)
    except OSError:
        messages = []
    ended = bool(messages) and isinstance(messages[-1], protocol.TERMINAL)
    messages = [message for message in messages[:-1] if not isinstance(message, protocol.TERMINAL)] + messages[-1:]
    header = read_header(folder)
    if not ended and header.status is Status.DONE and (result := _finished(folder)):
        messages.append(_last_words(result, header.finished))
    elif not ended and header.error_kind == WorkerLost.kind:
        last = messages[-1].t if messages else header.started
        messages.append(protocol.Error(t=last, kind=WorkerLost.kind, what=header.summary, hint=LOST_HINT))
    return messages


def delete_run(folder: Path) -> None:
    """Delete a run and its model. Raises RunBusy when a process works there, DiskProblem when it cannot be deleted."""
    if not folder.is_dir() or not _is_ours(folder):
        raise RunNotFound(f"There is no run {folder.name}.", why=f"{folder} is not a run's folder.")
    trash = folder.with_name(_TRASH + folder.name)
    try:
        with RunLock(folder):
            pass
        # Renamed first: a folder half deleted must not be taken for a run.
        folder.rename(trash)
        remove_tree(trash)
    except OSError as error:
        raise disk_problem(error) or _no_folder(folder, error) from error


def settle(folder: Path, ending: protocol.Error | protocol.CancelledMessage | None = None) -> None:
    """Close a run whose process is gone: record its end, remove half-written files. Nothing if it ended by itself.

    A run that had finished but for its header becomes done. `ending` is what the parent of the process knows (a signal,
    the last memory figure, that the person cancelled it); without it a run that waits is left waiting.
    Raises RunBusy, OSError.
    """
    with RunLock(folder):
        header = _parse_header(folder)
        remove_tree(partial_of(folder / MODEL))
        for leftover in _leftovers(folder):
            leftover.unlink(missing_ok=True)
        if not header.damaged and not header.status.final and (result := _finished(folder)):
            _close_finished(folder, header, result)
            return
        if header.damaged or header.status.final or (header.status is Status.WAITING and ending is None):
            return
        ending = ending or protocol.Error(t=time.time(), kind=WorkerLost.kind, what=LOST, hint=LOST_HINT)
        append_line(folder / EVENTS, protocol.encode(ending))
        update: dict[str, object] = {"status": Status.CANCELLED, "finished": ending.t or time.time()}
        if isinstance(ending, protocol.Error):
            update |= {"status": Status.FAILED, "summary": ending.what, "error_kind": ending.kind}
        write_header(folder, header.model_copy(update=update))


def done(result: RunResult, finished: float) -> dict[str, object]:
    """What the header of a run says once it has this result."""
    return {
        "status": Status.DONE,
        "finished": finished,
        "model": result.model_name,
        "original_bytes": result.quantization.original_sizes.total,
        "quantized_bytes": result.quantization.sizes.total,
        "summary": summary(result),
        "error_kind": "",
    }


def clean_up(home: Path) -> None:
    """Settle every dead run and remove what killed processes left half-written. `conduct` does it before each run.

    What cannot be cleaned up (another person's, a disk that fails) is left for the next time.
    """
    if not home.is_dir():
        return
    for folder in list(home.iterdir()):
        try:
            if folder.name.startswith(_TRASH):
                remove_tree(folder)
            elif folder.is_dir() and _is_ours(folder) and _is_unsettled(folder):
                settle(folder)
        except (RunBusy, OSError):
            continue


def _is_unsettled(folder: Path) -> bool:
    """Whether a process that is gone left work behind."""
    kept = _parse_header(folder)
    half_written = partial_of(folder / MODEL).exists() or bool(_leftovers(folder))
    return half_written or (read_header(folder).status.final and not kept.status.final)


def _leftovers(folder: Path) -> list[Path]:
    """Files that were being written when their process was killed."""
    return list(folder.glob(f".*{PARTIAL_SUFFIX}"))


def can_resume(folder: Path) -> bool:
    """Whether the run ended before its time and has kept finished work to go on from.

    A run whose model is saved and only lacks its numbers cannot: a finished model is never overwritten.
    """
    header = read_header(folder)
    ended = header.status in (Status.FAILED, Status.CANCELLED) and not header.damaged
    return ended and not (folder / MODEL).exists() and (folder / WORK).is_dir() and any((folder / WORK).iterdir())


def append_line(path: Path, line: bytes) -> None:
    """Add a line, on a fresh line even when a killed process left half of one."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line)


def _parse_header(folder: Path) -> RunHeader:
    try:
        header = RunHeader.model_validate_json((folder / HEADER).read_bytes())
    except FileNotFoundError:
        return _damaged(folder, "It has no run.json.")
    except OSError as error:
        return _damaged(folder, f"Its run.json cannot be read ({error.strerror or error}).")
    except ValidationError:
        return _damaged(folder, "Its run.json is not what it should be.")
    if header.version > HEADER_VERSION:
        return _damaged(folder, "It was made by a newer version of QuantStudio.")
    return header.model_copy(update={"id": folder.name, "path": folder})


def _damaged(folder: Path, why: str) -> RunHeader:
    try:
        created = folder.stat().st_mtime
    except OSError:
        created = 0.0
    return RunHeader(
        name=folder.name, status=Status.FAILED, created=created, summary=why, damaged=why, id=folder.name, path=folder
    )


def _age(folder: Path) -> float:
    """Seconds since the header was last touched."""
    try:
        return time.time() - (folder / HEADER).stat().st_mtime
    except OSError:
        return 0.0


def _finished(folder: Path) -> RunResult | None:
    """The result of a run that published its model, too."""
    try:
        return read_result(folder) if (folder / MODEL).is_dir() else None
    except RunNotFound:
        return None


def _last_words(result: RunResult, finished: float) -> protocol.Result:
    return protocol.Result(t=finished, data=result.model_dump(mode="json"))


def _close_finished(folder: Path, header: RunHeader, result: RunResult) -> None:
    finished = (folder / RESULT).stat().st_mtime
    append_line(folder / EVENTS, protocol.encode(_last_words(result, finished)))
    write_header(folder, header.model_copy(update=done(result, finished)))
    remove_tree(folder / WORK)


def _as_lost(header: RunHeader) -> RunHeader:
    if result := _finished(header.path):
        return header.model_copy(update=done(result, (header.path / RESULT).stat().st_mtime))
    update = {"status": Status.FAILED, "summary": LOST, "error_kind": WorkerLost.kind}
    return header.model_copy(update=update)


def _is_ours(folder: Path) -> bool:
    return any((folder / name).exists() for name in (HEADER, LOCK_FILE, RECIPE, EVENTS))


def _no_folder(folder: Path, error: OSError) -> DiskProblem:
    return DiskProblem(
        f"The folder {folder} cannot be used.",
        why=f"{error.strerror or error}.",
        hint="Choose another output folder.",
    )
