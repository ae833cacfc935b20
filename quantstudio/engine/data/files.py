"""Files of a person's own: text, JSON lines or Parquet, told apart by their endings; one, or a folder of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from quantstudio.core.errors import DataUnusable
from quantstudio.engine.data.document import Budget, Document, Warn, refuse
from quantstudio.engine.data.jsonl import read_jsonl
from quantstudio.engine.data.parquet import read_parquet
from quantstudio.engine.data.textfile import FIELD, read_text, unreadable

TEXT = (".txt", ".text", ".md", ".markdown")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
KINDS = (*TEXT, *LINES, *PARQUET)
MAX_FILES = 100_000
_CONVERT = {
    ".json": "Convert it to JSON lines: jq -c '.[]' OLD.json > NEW.jsonl",
    ".csv": "Convert it to JSON lines or Parquet, or save the text alone as a text file",
    ".tsv": "Convert it to JSON lines or Parquet, or save the text alone as a text file",
    ".gz": "Unpack it first: gunzip FILE",
    ".zip": "Unpack it first, and choose the folder",
    ".pdf": "Save its text as a plain text file (.txt)",
    ".docx": "Save its text as a plain text file (.txt)",
}


def read_file(path: Path, column: str, budget: Budget, warn: Warn) -> Iterator[Document]:
    """The file's documents. Raises DataUnusable, PackageMissing."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise unreadable(path, FileNotFoundError())
    if not path.is_file():
        raise unreadable(path, IsADirectoryError("It is no ordinary file"))
    if suffix in TEXT:
        return read_text(path, budget, warn)
    if suffix in LINES:
        return read_jsonl(path, column, budget, warn)
    if suffix in PARQUET:
        return read_parquet(path, column, budget, warn)
    raise refuse(
        f"{path.name} is not of a kind that can be read.",
        why=f"Its name ends in {suffix}." if suffix else "Its name has no ending that says what it is.",
        hint=_CONVERT.get(suffix, "Choose a text file (.txt, .md), JSON lines (.jsonl) or Parquet (.parquet)") + ".",
        field=FIELD,
    )


def read_folder(folder: Path, column: str, budget: Budget, warn: Warn) -> Iterator[Document]:
    """The documents of every file that can be read, by name. A file that cannot is left out with a warning.

    Raises DataUnusable when no file can be read; what the first one says, if there are any.
    """
    first: DataUnusable | None = None
    found = False
    for path in files_in(folder):
        if not budget.left:
            warn(f"Only the first {budget.words()} of {folder.name} are read.")
            return
        try:
            for document in read_file(path, column, budget, warn):
                found = True
                yield document
        except DataUnusable as error:
            first = first or error
            warn(f"From there on, {path.relative_to(folder)} was left out. {error.what} {error.why}".rstrip())
    if not found:
        raise first or no_files(folder)


def files_in(folder: Path) -> list[Path]:
    """Files that may be read, in a folder and the folders in it, sorted; hidden ones and links are left out.

    Raises DataUnusable when there are none or too many.
    """
    if not folder.is_dir():
        what = f"{folder} is not a folder." if folder.exists() else f"There is no folder {folder}."
        raise refuse(what, hint="Choose a folder that exists.", field="data.source.folder")
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(root) / name for name in names if name.lower().endswith(KINDS) and not name.startswith(".")]
        found += [path for path in sorted(paths) if path.is_file() and not path.is_symlink()]
        if len(found) > MAX_FILES:
            raise refuse(
                f"{folder} holds more than {MAX_FILES:,} files.",
                hint="Choose a folder in it, or join the files into one of JSON lines.",
                field="data.source.folder",
            )
    if not found:
        raise no_files(folder)
    return found


def no_files(folder: Path) -> DataUnusable:
    """There is nothing in the folder that can be read."""
    return refuse(
        f"There is no text in {folder}.",
        why=f"Files that end in {', '.join(KINDS)} are read.",
        hint="Choose another folder.",
        field="data.source.folder",
    )
