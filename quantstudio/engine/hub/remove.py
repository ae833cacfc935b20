"""A model, or one revision of it, leaves the Hugging Face cache. What other revisions share stays."""

from __future__ import annotations

from pathlib import Path

from quantstudio.core.cache import local_snapshot, repo_path, snapshot_blobs
from quantstudio.core.disk import remove_tree
from quantstudio.core.errors import ModelNotFound
from quantstudio.core.hub import RemoveResult
from quantstudio.core.jobs import RemoveJob
from quantstudio.core.paths import converted_cache
from quantstudio.core.verified import forget
from quantstudio.engine.hub.connection import Connection
from quantstudio.engine.reporter import Reporter


def remove(job: RemoveJob, connection: Connection, reporter: Reporter) -> RemoveResult:
    """Delete one revision, or the whole model when none is named. Raises ModelNotFound, OSError."""
    reporter.phase("remove", "Removing", 0, 1)
    repo = repo_path(connection.cache, job.model)
    if not repo.is_dir():
        raise ModelNotFound(f"{job.model} is not in the Hugging Face cache.", hint="See: quantstudio library")
    before = _occupied(repo)
    snapshots = [entry for entry in (repo / "snapshots").glob("*") if entry.is_dir()]
    gone = snapshots if not job.revision else [_named(job, connection)]
    if len(gone) == len(snapshots):
        # Links first: a folder without contents must not look like a model if we are interrupted.
        remove_tree(repo / "snapshots")
        _forget_all(repo)
        remove_tree(repo)
        remove_tree(connection.cache / ".locks" / repo.name)
        # What was converted from it goes with it: it is listed as one model.
        converted = repo_path(converted_cache(), job.model)
        before += _occupied(converted)
        remove_tree(converted)
    else:
        _remove_revision(repo, gone[0])
    return RemoveResult(
        model=job.model, revisions=tuple(entry.name for entry in gone), freed_bytes=before - _occupied(repo)
    )


def _named(job: RemoveJob, connection: Connection) -> Path:
    found = local_snapshot(connection.cache, job.model, job.revision)
    if found is None:
        raise ModelNotFound(f"{job.model} is here, but not at revision {job.revision!r}.")
    return found


def _remove_revision(repo: Path, snapshot: Path) -> None:
    mine = {blob for _, blob in snapshot_blobs(snapshot)}
    for other in (repo / "snapshots").iterdir():
        if other.name != snapshot.name:
            mine -= {blob for _, blob in snapshot_blobs(other)}
    for ref in (repo / "refs").rglob("*"):
        if ref.is_file() and ref.read_text(encoding="utf-8", errors="replace").strip() == snapshot.name:
            ref.unlink()
    remove_tree(snapshot)
    for blob in mine:
        if blob.parent.name == "blobs":
            forget(blob)
            blob.unlink(missing_ok=True)


def _forget_all(repo: Path) -> None:
    for blob in (repo / "blobs").glob("*"):
        forget(blob)


def _occupied(repo: Path) -> int:
    files = (entry for entry in repo.rglob("*") if entry.is_file() and not entry.is_symlink()) if repo.is_dir() else ()
    return sum(entry.stat().st_size for entry in files)
