"""From the recipe's choice of a source to its documents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from quantstudio.core.recipe_data import BuiltinBooks, DataSection, FileData, FolderData, HubData, OwnPrompts
from quantstudio.engine.data import builtin
from quantstudio.engine.data.chats import chat_files, read_own
from quantstudio.engine.data.document import Budget, Source, Warn, refuse
from quantstudio.engine.data.files import files_in, read_file, read_folder
from quantstudio.engine.data.hub import open_hub
from quantstudio.engine.reporter import Reporter

MB = 1_000_000


def open_source(section: DataSection, reporter: Reporter, warn: Warn) -> Source:
    """The source's documents, at most `size_limit_mb` of text.

    Raises DataUnusable, PackageMissing; for a dataset on the Hub also HubUnreachable, HubRefused, Offline, Cancelled.
    """
    budget = Budget(section.size_limit_mb * MB)
    match section.source:
        case BuiltinBooks():
            return Source(builtin.NAME, builtin.read_books(budget, warn), builtin.NBYTES, builtin.LICENCE)
        case FileData(path=path, column=column):
            file = chosen_path(path, "file")
            documents = read_file(file, column, budget, warn)
            return Source(file.name, documents, min(budget.limit, file.stat().st_size))
        case FolderData(folder=folder, column=column):
            chosen = chosen_path(folder, "folder")
            size = sum(path.stat().st_size for path in files_in(chosen))
            return Source(chosen.name, read_folder(chosen, column, budget, warn), min(budget.limit, size))
        case OwnPrompts() as own:
            return Source("your prompts and chats", read_own(own, budget, warn), budget.limit)
        case HubData() as hub:
            return open_hub(hub, budget, reporter, warn)


def identity(section: DataSection) -> str:
    """A fingerprint of the source's bytes, as far as they are read. Raises OSError, DataUnusable.

    A dataset on the Hub is known by its name and revision alone, so that a run that goes on needs no network and keeps
    the commit that it began with.
    """
    source = section.source
    digest = hashlib.sha256(source.model_dump_json().encode())
    paths: list[Path] = []
    match source:
        case BuiltinBooks():
            paths = [builtin.PATH]
        case FileData(path=path):
            paths = [chosen_path(path, "file")]
        case FolderData(folder=folder):
            paths = files_in(chosen_path(folder, "folder"))
        case OwnPrompts():
            paths = chat_files(source)
    left = section.size_limit_mb * MB
    for file in paths:
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode("utf-8", "replace"))
        left -= _add_file(digest, file, left)
    return digest.hexdigest()


def chosen_path(text: str, kind: str) -> Path:
    """The path that a person chose. Raises DataUnusable when none is."""
    if not text.strip():
        field = "data.source.path" if kind == "file" else "data.source.folder"
        raise refuse(f"No {kind} is chosen.", hint=f"Choose a {kind} with text, or the built-in books.", field=field)
    return Path(text).expanduser().absolute()


def _add_file(digest: hashlib._Hash, path: Path, limit: int) -> int:
    """Add at most `limit` bytes; how many there were."""
    added = 0
    with path.open("rb") as file:
        while added < limit and (piece := file.read(min(limit - added, 1 << 20))):
            digest.update(piece)
            added += len(piece)
    return added
