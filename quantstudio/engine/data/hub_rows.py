"""Streams a dataset of the Hub as JSON lines on stdout: `python -m quantstudio.engine.data.hub_rows < HubData.json`.

First a line about the dataset (id, commit, licence), then one for each document, then `end`, or `error` with its texts.
Nothing of the repository is ever run: the library refuses datasets that need their own code, only plain table formats
are read, and files must lie in the repository itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from quantstudio.core.errors import AccessNeeded, HubRefused, HubUnreachable, QuantStudioError
from quantstudio.core.recipe_data import HubData
from quantstudio.engine.data.columns import Rows, choose_column, is_textual, nbytes
from quantstudio.engine.data.document import refuse
from quantstudio.engine.data.parquet import missing_package
from quantstudio.engine.failures import without_secrets
from quantstudio.engine.hub.connection import read_connection
from quantstudio.engine.memory import importing

FORMATS = ("parquet", "json", "text", "csv", "arrow")
"""The library's builders that read text and nothing else."""
MAX_DOCUMENT = 32 << 20
FIELD = "data.source.dataset"
OUTSIDE = "Its description names files outside the dataset, or archives."
ANOTHER = "Choose another dataset, or download its text and choose it as a file."


def main(source: HubData, out: TextIO) -> None:
    """Write everything there is to say about `source` to `out`."""
    try:
        for line in _lines(source):
            _say(out, line)
        _say(out, {"end": True})
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more
    except QuantStudioError as error:
        _say_error(out, error)
    except Exception as error:  # whatever the libraries raise, in a person's words
        _say_error(out, _translated(error, source))


def _lines(source: HubData) -> Iterator[dict[str, Any]]:
    try:
        with importing():
            import datasets
            from huggingface_hub import HfApi
    except ImportError:
        raise missing_package("datasets", "Reading a dataset from the Hub") from None
    connection = read_connection()
    token = connection.token or False
    info = HfApi(endpoint=connection.endpoint, token=token).dataset_info(
        source.dataset, revision=source.revision or None, timeout=20
    )
    # From version 4 on the library has no trust_remote_code any more: it never runs a dataset's program.
    builder = datasets.load_dataset_builder(info.id, name=source.config or None, revision=info.sha, token=token)
    _check_builder(builder, info.id, info.sha)
    licence = (info.card_data or {}).get("license") or ""
    licence = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
    stream = builder.as_streaming_dataset(split=source.split)
    column = source.column
    if stream.features:
        textual = [name for name, feature in stream.features.items() if _is_textual(feature, datasets)]
        column = choose_column(source.column, stream.features, textual, info.id)
        stream = stream.select_columns([column])
    yield {"id": info.id, "commit": info.sha, "licence": licence[:100]}
    yield from _documents(stream, column, info.id, known=bool(stream.features))


def _documents(stream: Any, column: str, name: str, *, known: bool) -> Iterator[dict[str, Any]]:
    rows = Rows(column, name) if known else None
    warnings: list[str] = []
    for row in stream:
        if rows is None:  # the format does not say what columns there are
            textual = [key for key, value in row.items() if is_textual(value)]
            rows = Rows(choose_column(column, row, textual, name), name)
        document = rows.document(row.get(rows.column))
        if document is None:
            continue
        if nbytes(document) > MAX_DOCUMENT:
            raise refuse(f"A document of {name} is longer than {MAX_DOCUMENT >> 20} MB.", hint=ANOTHER, field=FIELD)
        yield {"text": document.text, "messages": [message.model_dump() for message in document.messages]}
    (rows or Rows(column, name)).finish(warnings.append)
    yield from ({"warning": warning} for warning in warnings)


def _check_builder(builder: Any, name: str, commit: str) -> None:
    """Refuse formats that are no tables of text, and files outside the repository (a card may name any address)."""
    modules = {cls.__module__.split(".")[-1] for cls in type(builder).__mro__}
    if not modules & set(FORMATS):
        raise refuse(
            f"{name} is not a dataset of text.",
            why=f"Datasets in the formats {', '.join(FORMATS)} are read.",
            hint=ANOTHER,
            field=FIELD,
        )
    inside = f"hf://datasets/{name}@{commit}/"
    files = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    if not files or not all(file.startswith(inside) and ".." not in file and "::" not in file for file in files):
        raise refuse(f"The dataset {name} is not read.", why=OUTSIDE, hint=ANOTHER, field=FIELD)


def _is_textual(feature: Any, datasets: Any) -> bool:
    """A column of texts, or of lists of messages with role and content."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string")
    inner = getattr(feature, "feature", None) or (feature[0] if isinstance(feature, list) and feature else None)
    return isinstance(inner, dict) and {"role", "content"} <= set(inner)


def _translated(error: Exception, source: HubData) -> QuantStudioError:
    """A library's error in a person's words. The libraries chain their errors, so the whole chain is looked at."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 20:
        chain.append(link)
        link = link.__cause__ or link.__context__
    names = {cls.__name__ for one in chain for cls in type(one).__mro__}
    text = " ".join(without_secrets(str(error)).split())
    name = source.dataset
    if "GatedRepoError" in names or "gated dataset" in text:
        return AccessNeeded(
            f"The dataset {name} must be asked for.",
            why="Its owner wants to know who uses it.",
            hint="Accept its terms on its page on the Hub, and sign in: quantstudio login.",
            field=FIELD,
        )
    if "RevisionNotFoundError" in names:
        return HubRefused(
            f"The dataset {name} has no revision {source.revision!r}.",
            hint="Use a branch, tag or commit that it has, or leave it empty.",
            field="data.source.revision",
        )
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return HubRefused(
            f"There is no dataset {name} on the Hub, or it is private.",
            hint="Check its name (owner/name); for a private one, sign in: quantstudio login.",
            field=FIELD,
        )
    if names & {"ConnectError", "ConnectTimeout", "ReadTimeout", "TimeoutException", "ConnectionError", "NetworkError"}:
        return HubUnreachable(
            f"The dataset {name} could not be read to the end of what is needed.",
            why="The Hub cannot be reached or keeps breaking off.",
            hint="Check the network and try again, or use a file or the built-in books.",
            field=FIELD,
        )
    return _unusable(name, text, source)


def _unusable(name: str, text: str, source: HubData) -> QuantStudioError:
    if "config" in text.lower() and ("available" in text.lower() or "not found" in text.lower()):
        what = f"The dataset {name} has several configurations, or not the one that was asked for."
        return refuse(what, why=text[:400], hint="Name one of them.", field="data.source.config")
    if "split" in text.lower() and source.split in text:
        what = f"The dataset {name} has no split {source.split!r}."
        return refuse(what, why=text[:300], hint="Name a split that it has.", field="data.source.split")
    if "data_files" in text:
        return refuse(f"The dataset {name} is not read.", why=OUTSIDE, hint=ANOTHER, field=FIELD)
    if "scripts are no longer supported" in text:
        why = "It consists of a program that makes it, and programs of strangers are never run."
        return refuse(f"The dataset {name} cannot be read.", why=why, hint=ANOTHER, field=FIELD)
    return refuse(f"The dataset {name} cannot be read.", why=text[:300], hint=ANOTHER, field=FIELD)


def _say(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _say_error(out: TextIO, error: QuantStudioError) -> None:
    texts = {"what": error.what, "why": error.why, "hint": error.hint, "field": error.field}
    _say(out, {"error": error.kind, **texts})


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print does not get among the lines
    main(HubData.model_validate_json(sys.stdin.buffer.read()), channel)
