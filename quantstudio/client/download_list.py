"""The list of downloads, kept between two windows: what was asked for, how far it came, and why it stopped.

What is done is not kept: the library shows it. What was at work when the window went, in good order or not, comes back
as interrupted and waits for a word from the person; nothing here asks the network. How many bytes are here is read
from the cache, because a killed window had no time to write that down. Not flushed to the disk: a power cut may lose
the list, and costs no byte of what was fetched. Two windows at once keep the list of the one that wrote last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from quantstudio.core.cache import cached_repo
from quantstudio.core.disk import beside_of
from quantstudio.core.jobs import DownloadJob
from quantstudio.core.paths import hub_cache
from quantstudio.core.protocol import Error
from quantstudio.core.section import Plain

MAX_BYTES = 4 << 20
MOST = 500


Ending = Literal["interrupted", "paused", "failed"]


class KeptDownload(Plain):
    """One download as it is kept. `done` and `total` in bytes; `total` is 0 for one that never began."""

    job: DownloadJob
    status: Ending = "interrupted"
    done: int = Field(default=0, ge=0)
    total: int = Field(default=0, ge=0)
    error: Error | None = None


class _KeptList(Plain):
    version: Literal[1] = 1
    downloads: tuple[KeptDownload, ...] = Field(default=(), max_length=MOST)


def read_list(path: Path) -> list[KeptDownload]:
    """The downloads of the window before. Never raises: a list that cannot be read is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            return []
        return [_as_on_disk(each) for each in _KeptList.model_validate(json.loads(raw)).downloads]
    except (OSError, ValueError, ValidationError, RecursionError):
        return []


def write_list(path: Path, downloads: Iterable[KeptDownload]) -> None:
    """Replace the list; an empty one is no file. A disk that refuses costs the list and nothing else: never raises."""
    kept = tuple(downloads)[-MOST:]
    beside = beside_of(path)
    try:
        if not kept:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(_KeptList(downloads=kept).model_dump_json(indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError:
        return


def _as_on_disk(kept: KeptDownload) -> KeptDownload:
    here = cached_repo(hub_cache(), kept.job.model)
    done = min(here.nbytes if here else 0, kept.total)
    return kept.model_copy(update={"done": done})
