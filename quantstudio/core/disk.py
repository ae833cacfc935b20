"""Files and folders that are whole or absent, whatever is killed in between.

A file is written beside its place, flushed to the disk and moved over the old one. A folder is written as
`<name>.partial`, gets a manifest of checksums, is flushed file by file, and is renamed last; it never replaces
another. Rename without flushing survives a killed process but not a power cut, which leaves empty files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path, PurePosixPath
from typing import Any

from quantstudio.core.errors import DiskProblem, ModelDamaged

MANIFEST = "quantstudio.json"
MANIFEST_VERSION = 1
PARTIAL_SUFFIX = ".partial"
_MAX_MANIFEST_BYTES = 16 << 20


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` (text is UTF-8) in one step: a reader sees the old or the new file. Raises OSError."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    beside = beside_of(path)
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def beside_of(path: Path) -> Path:
    """Where a file is written before it takes its place: a name of this thread of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL_SUFFIX}")


def partial_of(folder: Path) -> Path:
    """Where a folder is written before it is published."""
    return folder.with_name(folder.name + PARTIAL_SUFFIX)


def publish_folder(partial: Path, folder: Path, about: dict[str, Any] | None = None) -> None:
    """Give `partial` a manifest, flush it to the disk and rename it to `folder`.

    `about` is stored in the manifest beside the checksums. Raises DiskProblem when `folder` exists, OSError when the
    disk fails.
    """
    files = [path for path in sorted(partial.rglob("*")) if path.is_file() and path.name != MANIFEST]
    manifest = {"version": MANIFEST_VERSION, "about": about or {}, "files": _fingerprints(partial, files)}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in [*files, partial / MANIFEST]:
        flush_file(path)
    for path in [*(path for path in partial.rglob("*") if path.is_dir()), partial]:
        flush_folder(path)
    if folder.exists():
        raise DiskProblem(
            f"The folder {folder} already exists.",
            why="A finished model is never overwritten.",
            hint="Start a new run, or delete the old folder first.",
        )
    partial.rename(folder)
    flush_folder(folder.parent)


def check_model(folder: Path) -> None:
    """Compare every file of a published folder with its manifest. Raises ModelDamaged, naming what differs."""
    for name, expected in _read_manifest(folder).items():
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, f"The file {name} is missing.")
        if path.stat().st_size != expected.get("size"):
            raise _damaged(
                folder, f"The file {name} has {path.stat().st_size} bytes instead of {expected.get('size')}."
            )
        if _sha256(path) != expected.get("sha256"):
            raise _damaged(folder, f"The contents of {name} have changed since the model was saved.")


def disk_problem(error: OSError) -> DiskProblem | None:
    """The error of the operating system in a person's words; None when it is not about the disk."""
    where = f" {error.filename}" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return DiskProblem(
                "The disk is full.",
                why=f"There was no room left to write{where or ' the result'}.",
                hint="Free some space, or choose an output folder on another disk.",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return DiskProblem(
                f"The folder or file{where} cannot be written.",
                why="The disk is read-only." if error.errno == errno.EROFS else "Permission was denied.",
                hint="Choose an output folder that you may write to.",
            )
        case errno.EIO:
            return DiskProblem(
                f"The disk failed while reading or writing{where}.", hint="Check the disk, or choose another one."
            )
    return None


def remove_tree(folder: Path) -> None:
    """Delete a folder and all it holds; a folder that is not there is fine. Raises OSError."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _fingerprints(root: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    return {path.relative_to(root).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files}


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise _damaged(folder, "Its list of checksums is absurdly large.")
        files = json.loads(path.read_bytes())["files"]
        safe = {str(name): dict(entry) for name, entry in files.items() if _stays_inside(str(name))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, "Its list of checksums (quantstudio.json) is missing or cannot be read.") from error
    if len(safe) != len(files):
        raise _damaged(folder, "Its list of checksums names files outside the folder.")
    return safe


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _damaged(folder: Path, why: str) -> ModelDamaged:
    return ModelDamaged(f"The model in {folder} is damaged.", why=why, hint="Run the recipe again.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_file(path: Path) -> None:
    # Opened for writing because Windows refuses to flush what was opened for reading.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle to flush a folder by.
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
