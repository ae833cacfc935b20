"""Parquet files, read batch by batch. Needs pyarrow, which comes with `pip install 'quantstudio[data]'`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantstudio.core.errors import DataUnusable, PackageMissing
from quantstudio.core.humanize import human_bytes
from quantstudio.engine.data.columns import Rows, choose_column, nbytes
from quantstudio.engine.data.document import Budget, Document, Warn, refuse
from quantstudio.engine.data.textfile import FIELD

ROWS = 256
MAX_CHUNK = 2 << 30
"""Bytes of one column in one row group, which the library holds in memory at once."""


def read_parquet(path: Path, column: str, budget: Budget, warn: Warn) -> Iterator[Document]:
    """A document for each row that holds one. Raises DataUnusable, PackageMissing."""
    arrow, parquet = _libraries()
    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            schema = file.schema_arrow
            textual = [field.name for field in schema if _is_textual(field.type, arrow)]
            chosen = choose_column(column, schema.names, textual, path.name)
            _check_sizes(file.metadata, chosen, path)
            rows = Rows(chosen, path.name)
            yield from _documents(file, rows, budget, warn, path)
    except (arrow.ArrowException, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise refuse(
            f"{path.name} cannot be read as Parquet.",
            why=f"{why.rstrip('.')}.",
            hint="Write or download it again; text and JSON lines need the endings .txt and .jsonl.",
            field=FIELD,
        ) from error


def missing_package(package: str, what: str) -> PackageMissing:
    """Said where an optional package is needed for `what`."""
    return PackageMissing(
        f"{what} needs the Python package {package!r}, which is not installed.",
        hint="Install it with: pip install 'quantstudio[data]'",
        field="data.source.kind",
    )


def _documents(file: Any, rows: Rows, budget: Budget, warn: Warn, path: Path) -> Iterator[Document]:
    for batch in file.iter_batches(batch_size=ROWS, columns=[rows.column]):
        for value in batch.column(0):
            document = rows.document(value.as_py())
            if document is None:
                continue
            size = nbytes(document)
            if size > budget.left:
                warn(f"Only the first {budget.words()} of {path.name} are read.")
                return
            budget.spend(size)
            yield document
    rows.finish(warn)


def _libraries() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_package("pyarrow", "Reading Parquet") from None
    return pyarrow, pyarrow.parquet


def _is_textual(kind: Any, arrow: Any) -> bool:
    """A column of texts, or of lists of messages with role and content."""
    types = arrow.types
    if types.is_string(kind) or types.is_large_string(kind):
        return True
    if not (types.is_list(kind) or types.is_large_list(kind)) or not types.is_struct(kind.value_type):
        return False
    inner = kind.value_type
    return {"role", "content"} <= {inner.field(place).name for place in range(inner.num_fields)}


def _check_sizes(metadata: Any, column: str, path: Path) -> None:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = (row_group.column(place) for place in range(row_group.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
        if size > MAX_CHUNK:
            raise _too_large(path, column, size)


def _too_large(path: Path, column: str, size: int) -> DataUnusable:
    return refuse(
        f"{path.name} cannot be read in pieces.",
        why=f"One of its row groups has {human_bytes(size)} in column {column!r}, and it would have to be in memory.",
        hint="Write it again with smaller row groups (pyarrow: row_group_size=1000).",
        field=FIELD,
    )
