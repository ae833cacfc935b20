"""The Hugging Face cache, read by its layout: which models and revisions it holds, whole or not, and what they weigh.

Importing the Hub's own client for this takes 0.3 s, which a window does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantstudio.core.verified import is_checksum, is_verified

PARTIAL_ENDINGS = (".quantstudio-partial", ".incomplete")
_COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_SNAPSHOT_FILES = 20_000


@dataclass(frozen=True, slots=True)
class CachedRepo:
    """One model's folder in the cache."""

    id: str
    path: Path
    snapshots: tuple[Path, ...]
    """Newest first."""
    nbytes: int
    """Everything it occupies, contents that several revisions share counted once."""
    partial_bytes: int
    """Of that, what broken or running downloads have left."""


def repo_path(cache: Path, model: str) -> Path:
    """The folder of a model in the cache."""
    return cache / f"models--{model.replace('/', '--')}"


def cached_repos(cache: Path) -> list[CachedRepo]:
    """Every model that the cache has something of."""
    if not cache.is_dir():
        return []
    return [_repo(path) for path in sorted(cache.glob("models--*--*")) if path.is_dir()]


def cached_repo(cache: Path, model: str) -> CachedRepo | None:
    """What the cache has of one model; None when it has nothing."""
    path = repo_path(cache, model)
    return _repo(path) if path.is_dir() else None


def local_snapshot(cache: Path, model: str, revision: str) -> Path | None:
    """The snapshot that a branch, tag or commit points to here; for no revision `main`, else the newest."""
    repo = repo_path(cache, model)
    if not repo.is_dir():
        return None
    folder = snapshot_of(repo, revision or "main")
    return folder or (None if revision else next(iter(_snapshots(repo)), None))


def snapshot_of(repo: Path, revision: str) -> Path | None:
    """The snapshot of a branch, tag or commit, or None."""
    if not re.fullmatch(r"[\w./-]{1,200}", revision) or ".." in revision or revision.startswith("/"):
        return None
    commit = revision
    ref = repo / "refs" / revision
    if ref.is_file() and ref.stat().st_size < 200:
        commit = ref.read_text(encoding="utf-8", errors="replace").strip()
    folder = repo / "snapshots" / commit
    return folder.absolute() if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def snapshot_blobs(snapshot: Path) -> Iterator[tuple[Path, Path]]:
    """Each file of a snapshot with the place of its contents; broken links included."""
    repo = snapshot.parent.parent
    for number, path in enumerate(sorted(snapshot.rglob("*"))):
        if number > MAX_SNAPSHOT_FILES:
            return
        if path.is_symlink() or path.is_file():
            blob = path.resolve()
            yield path, blob if blob.parent == (repo / "blobs").resolve() else path


def unverified(snapshot: Path) -> list[tuple[Path, Path]]:
    """Files of a snapshot whose contents were never compared with their checksum here, with their contents' place."""
    return [(path, blob) for path, blob in snapshot_blobs(snapshot) if is_checksum(blob.name) and not is_verified(blob)]


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of a model in the cache. `freed` is what its removal alone would give back, in bytes."""

    commit: str
    nbytes: int
    freed: int


def revisions(cache: Path, model: str) -> list[Revision]:
    """The revisions of a model that are here, newest first."""
    blobs = {
        snapshot.name: {blob: blob.stat().st_size for _, blob in snapshot_blobs(snapshot) if blob.is_file()}
        for snapshot in _snapshots(repo_path(cache, model))
    }
    found = []
    for commit, mine in blobs.items():
        others = {blob for other, theirs in blobs.items() if other != commit for blob in theirs}
        freed = sum(size for blob, size in mine.items() if blob not in others)
        found.append(Revision(commit, sum(mine.values()), freed))
    return found


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a revision of a model in a Hugging Face cache."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def _repo(path: Path) -> CachedRepo:
    blobs = path / "blobs"
    sizes = {entry: entry.stat().st_size for entry in blobs.iterdir() if entry.is_file()} if blobs.is_dir() else {}
    partial = sum(size for entry, size in sizes.items() if entry.name.endswith(PARTIAL_ENDINGS))
    name = path.name.removeprefix("models--").replace("--", "/", 1)
    return CachedRepo(name, path.absolute(), tuple(_snapshots(path)), sum(sizes.values()), partial)


def _snapshots(repo: Path) -> list[Path]:
    folder = repo / "snapshots"
    found = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return [entry.absolute() for entry in sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)]
