"""The Hugging Face cache as other tools know it: blobs under their checksums, snapshots of links, refs, locks.

models--owner--name/blobs/<checksum>            contents, once each
models--owner--name/snapshots/<commit>/<file>   links into blobs
models--owner--name/refs/<branch>               which commit a branch was at
.locks/models--owner--name/<checksum>.lock      held while a blob is written
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from quantstudio.core.disk import beside_of, write_atomically
from quantstudio.core.hub import HubFile
from quantstudio.engine.reporter import Reporter

PARTIAL = ".quantstudio-partial"
"""Our own ending: other tools neither continue our partial files nor delete them."""


def repo_folder(cache: Path, model: str) -> Path:
    """The folder of a model in the cache."""
    return cache / f"models--{model.replace('/', '--')}"


def blob_path(cache: Path, model: str, file: HubFile) -> Path:
    """Where the contents of a file belong. Checksums were checked to be hexadecimal when they came in."""
    return repo_folder(cache, model) / "blobs" / file.blob


def partial_path(blob: Path) -> Path:
    """Where the contents grow until they are verified."""
    return blob.with_name(blob.name + PARTIAL)


@contextlib.contextmanager
def blob_lock(cache: Path, model: str, file: HubFile, reporter: Reporter) -> Iterator[None]:
    """The lock that the Hub's own client takes for this blob; waits for others, and gives up when cancelled."""
    import filelock

    path = cache / ".locks" / repo_folder(cache, model).name / f"{file.blob}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    said = False
    while True:
        reporter.check_cancel()
        try:
            lock.acquire(timeout=0.5)
            break
        except filelock.Timeout:
            if not said:
                reporter.notice(f"Another program is downloading {file.path}; waiting for it.")
            said = True
    try:
        yield
    finally:
        lock.release()


def publish_snapshot(cache: Path, model: str, revision: str, commit: str, files: list[HubFile]) -> Path:
    """Make the verified blobs a snapshot, in the order of `files`, and let `revision` point to it.

    Links of an earlier snapshot of this commit that lead elsewhere are replaced. Raises OSError.
    """
    repo = repo_folder(cache, model)
    snapshot = repo / "snapshots" / commit
    for file in files:
        target = snapshot / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(repo / "blobs" / file.blob, target)
    if revision and revision != commit:
        ref = repo / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ref, commit)
    return snapshot


def _link(blob: Path, target: Path) -> None:
    """Put a relative link to `blob` at `target`; where links are not allowed (Windows), a second name or a copy."""
    beside = beside_of(target)
    beside.unlink(missing_ok=True)
    try:
        beside.symlink_to(os.path.relpath(blob, target.parent))
    except OSError:
        try:
            os.link(blob, beside)
        except OSError:
            shutil.copyfile(blob, beside)
    beside.replace(target)
