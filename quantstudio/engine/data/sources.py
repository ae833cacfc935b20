"""From the recipe's choice of a source to its documents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from quantstudio.core.recipe_data import BuiltinBooks, DataSection, FileData
from quantstudio.engine.data import builtin
from quantstudio.engine.data.document import Budget, Source, Warn, refuse
from quantstudio.engine.data.files import read_file
from quantstudio.engine.reporter import Reporter

MB = 1_000_000


def open_source(section: DataSection, reporter: Reporter, warn: Warn) -> Source:
    """The source's documents, at most `size_limit_mb` of text. Raises DataUnusable."""
    budget = Budget(section.size_limit_mb * MB)
    match section.source:
        case BuiltinBooks():
            return Source(builtin.NAME, builtin.read_books(budget, warn), builtin.NBYTES, builtin.LICENCE)
        case FileData(path=path, column=column):
            file = chosen_path(path, "file")
            return Source(file.name, read_file(file, column, budget, warn), min(budget.limit, file.stat().st_size))
    raise refuse("This kind of source cannot be read yet.", hint="Choose the built-in books or a file.")


def identity(section: DataSection) -> str:
    """A fingerprint of the source's bytes, as far as they are read."""
    digest = hashlib.sha256(section.source.model_dump_json().encode())
    limit = section.size_limit_mb * MB
    match section.source:
        case BuiltinBooks():
            _add_file(digest, builtin.PATH, limit)
        case FileData(path=path):
            _add_file(digest, Path(path).expanduser(), limit)
    return digest.hexdigest()


def chosen_path(text: str, kind: str) -> Path:
    """The path that a person chose. Raises DataUnusable when none is."""
    if not text.strip():
        field = "data.source.path" if kind == "file" else "data.source.folder"
        raise refuse(f"No {kind} is chosen.", hint=f"Choose a {kind} with text, or the built-in books.", field=field)
    return Path(text).expanduser().absolute()


def _add_file(digest: hashlib._Hash, path: Path, limit: int) -> None:
    with path.open("rb") as file:
        left = limit
        while left > 0 and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
