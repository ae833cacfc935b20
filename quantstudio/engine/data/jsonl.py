"""JSON lines: one object a line. Lines are hostile input: of any length, nested to any depth, broken anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantstudio.core.errors import DataUnusable
from quantstudio.engine.data.columns import Rows, choose_column, is_textual
from quantstudio.engine.data.document import Budget, Document, Warn, refuse
from quantstudio.engine.data.textfile import FIELD, not_utf8, open_text

MAX_LINE = 32 << 20
"""Bytes; a long book in a line fits."""
_ONE_A_LINE = (
    "Write one JSON object in each line; if the file is one JSON list, convert it: jq -c '.[]' OLD.json > NEW.jsonl"
)


def read_jsonl(path: Path, column: str, budget: Budget, warn: Warn) -> Iterator[Document]:
    """A document for each line that holds one; blank lines are passed over. Raises DataUnusable."""
    rows: Rows | None = None
    with open_text(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise _too_long(path, number)
            if len(line) > budget.left and rows is not None:
                warn(f"Only the first {budget.words()} of {path.name} are read.")
                break
            budget.spend(len(line))
            if not line.strip() or (number == 1 and line.strip() == b"\xef\xbb\xbf"):
                continue
            row = _parse(line, path, number)
            if rows is None:
                textual = [name for name, value in row.items() if is_textual(value)]
                rows = Rows(choose_column(column, row, textual, path.name), path.name)
            document = rows.document(row.get(rows.column))
            if document is not None:
                yield document
    if rows is None:
        raise refuse(f"{path.name} is empty.", hint="Choose a file with a JSON object in each line.", field=FIELD)
    rows.finish(warn)


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.start, f" of line {number:,}") from error
    except json.JSONDecodeError as error:
        raise _broken(path, number, f"{error.msg} at character {error.pos + 1:,}") from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, number, "it is nested too deeply or holds an absurdly large number") from error
    if not isinstance(row, dict):
        raise _broken(path, number, 'it is no JSON object, such as {"text": "…"}')
    return row


def _broken(path: Path, number: int, why: str) -> DataUnusable:
    hint = "Mend or remove that line"
    if number == 1:
        hint = (
            "Write one JSON object in each line; if this is one JSON list, convert it: jq -c '.[]' OLD.json > NEW.jsonl"
        )
    return refuse(f"Line {number:,} of {path.name} cannot be read: {why}.", hint=f"{hint}.", field=FIELD)


def _too_long(path: Path, number: int) -> DataUnusable:
    return refuse(
        f"Line {number:,} of {path.name} is longer than {MAX_LINE >> 20} MB.",
        why="In JSON lines, each line is a document of its own.",
        hint=_ONE_A_LINE,
        field=FIELD,
    )
