"""Every byte of a model compared with its checksums. Needs no network: the cache's names are the checksums."""

from __future__ import annotations

from pathlib import Path

from quantstudio.core.cache import is_snapshot, local_snapshot, snapshot_blobs
from quantstudio.core.disk import MANIFEST, check_model
from quantstudio.core.errors import ModelDamaged, ModelNotFound, QuantStudioError
from quantstudio.core.hub import FileProblem, VerifyResult
from quantstudio.core.jobs import VerifyJob
from quantstudio.core.model_info import model_name, read_model_info
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import STARTER
from quantstudio.core.verified import forget, is_checksum, is_verified, mark_verified, matches
from quantstudio.engine.hub.answers import is_model_id
from quantstudio.engine.hub.connection import Connection
from quantstudio.engine.reporter import Reporter


def verify(job: VerifyJob, connection: Connection, reporter: Reporter) -> VerifyResult:
    """What is wrong with a model here, file by file. Raises ModelNotFound, Cancelled, OSError."""
    folder = _folder(job, connection)
    reporter.phase("verify", "Comparing every byte", 0, 1)
    if is_snapshot(folder) and any(path != blob for path, blob in snapshot_blobs(folder)):
        return verify_snapshot(folder, reporter)
    problems, files = [], [path for path in sorted(folder.rglob("*")) if path.is_file()]
    unchecked = tuple(path.relative_to(folder).as_posix() for path in files)
    try:
        if (folder / MANIFEST).is_file():
            check_model(folder)
            unchecked = ()
        read_model_info(folder)
    except QuantStudioError as error:
        problems.append(FileProblem(file=folder.name, problem=str(error)))
    nbytes = sum(path.stat().st_size for path in files)
    return _result(folder, len(files), nbytes, problems, unchecked)


def verify_snapshot(folder: Path, reporter: Reporter) -> VerifyResult:
    """The same for a revision in the Hugging Face cache; what is right is marked, so that it need not be read again."""
    entries = list(snapshot_blobs(folder))
    total = sum(blob.stat().st_size for _, blob in entries if blob.is_file())
    problems, unchecked, read = [], [], 0

    def tell(count: int) -> None:
        nonlocal read
        read += count
        reporter.progress(read, total, "bytes")

    for path, blob in entries:
        name = path.relative_to(folder).as_posix()
        if not blob.is_file():
            problems.append(FileProblem(file=name, problem="Its contents are missing."))
        elif not is_checksum(blob.name):
            unchecked.append(name)
        elif matches(blob, blob.name, tell):
            mark_verified(blob)
        else:
            forget(blob)
            problems.append(FileProblem(file=name, problem="Its contents are not what they should be."))
    if not problems:
        try:
            read_model_info(folder)
        except QuantStudioError as error:
            problems.append(FileProblem(file=folder.name, problem=str(error)))
    return _result(folder, len(entries), total, problems, tuple(unchecked))


def require_verified(folder: Path, reporter: Reporter) -> None:
    """Compare what was never compared of a revision in the cache. Raises ModelDamaged, Cancelled, OSError."""
    entries = [(path, blob) for path, blob in snapshot_blobs(folder) if is_checksum(blob.name) and blob.is_file()]
    waiting = [(path, blob) for path, blob in entries if not is_verified(blob)]
    for number, (path, blob) in enumerate(waiting):
        reporter.progress(number, len(waiting), "files", path.name)
        if not matches(blob, blob.name, lambda _count: reporter.check_cancel()):
            raise ModelDamaged(
                f"{path.name} of {model_name(folder)} is damaged.",
                why="Its contents differ from their checksum.",
                hint=f"Repair it by downloading it again: quantstudio download {model_name(folder)}",
                field="model.id",
            )
        mark_verified(blob)


def _folder(job: VerifyJob, connection: Connection) -> Path:
    if job.model == STARTER:
        return starter_model()
    if is_model_id(job.model) and (found := local_snapshot(connection.cache, job.model, job.revision)):
        return found
    folder = Path(job.model).expanduser().absolute()
    if not folder.is_dir():
        raise ModelNotFound(f"There is no model {job.model} on this machine.", hint="See: quantstudio library")
    return folder


def _result(
    folder: Path, files: int, nbytes: int, problems: list[FileProblem], unchecked: tuple[str, ...]
) -> VerifyResult:
    return VerifyResult(
        model=model_name(folder),
        folder=str(folder),
        files=files,
        nbytes=nbytes,
        problems=tuple(problems),
        unchecked=unchecked,
    )
