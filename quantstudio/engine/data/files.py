"""A file of a person's own: text, JSON lines or Parquet, told apart by its ending."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantstudio.engine.data.document import Budget, Document, Warn, refuse
from quantstudio.engine.data.textfile import FIELD, read_text, unreadable

TEXT = (".txt", ".text", ".md", ".markdown")


def read_file(path: Path, column: str, budget: Budget, warn: Warn) -> Iterator[Document]:
    """The file's documents. Raises DataUnusable."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise unreadable(path, FileNotFoundError())
    if path.is_dir():
        raise unreadable(path, IsADirectoryError())
    if suffix in TEXT:
        return read_text(path, budget, warn)
    raise refuse(
        f"{path.name} is not of a kind that can be read.",
        why=f"Its name ends in {suffix}." if suffix else "Its name has no ending that says what it is.",
        hint="Choose a text file (.txt, .md), JSON lines (.jsonl) or Parquet (.parquet).",
        field=FIELD,
    )
