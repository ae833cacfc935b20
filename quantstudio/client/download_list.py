"""The list of downloads, kept between two windows: what was asked for, how far it came, and why it stopped.

What is done is not kept: the library shows it. What was at work when the window went, in good order or not, comes back
as interrupted and waits for a word from the person; nothing here asks the network. How many bytes are here is read
from the cache, because a killed window had no time to write that down. Not flushed to the disk: a power cut may lose
the list, and costs no byte of what was fetched. Two windows at once share the file: each writes what it has changed
since it last saw the file, under a lock, and leaves the rest as the other wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
LOCK_PATIENCE_S = 2.0
"""Another window holds the lock for milliseconds; a window must not stand still for one that hangs."""

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


Kept = dict[str, KeptDownload]
"""Downloads by model, in their order."""


def read_list(path: Path) -> list[KeptDownload]:
    """The downloads of the window before. Never raises: a list that cannot be read is none."""
    return [_as_on_disk(each) for each in (_read(path) or {}).values()]


def write_list(path: Path, downloads: Iterable[KeptDownload], seen: Iterable[KeptDownload] = ()) -> bool:
    """Write this window's downloads into the list, and leave there what other windows have; whether that was done.

    `seen` is this window's part of the list as it last read or wrote it: by it, what this window has finished or given
    up is told from what another has added. An empty list is no file. Never raises: a disk that refuses, or a lock
    that another holds for too long, costs the list and nothing else.
    """
    import filelock  # a twentieth of a second that no window needs to start

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_PATIENCE_S):
            _replace(path, merge(_by_model(seen), _read(path), _by_model(downloads)))
    except (OSError, NotImplementedError):  # the second from a disk that knows no locks
        return False
    return True


def merge(seen: Mapping[str, KeptDownload], there: Mapping[str, KeptDownload] | None, mine: Kept) -> Kept:
    """The list after this window's changes: what was `seen`, what is `there` now (None: unreadable), what is `mine`.

    A download that this window has changed since is written as it stands here; any other is left as it is there, and
    gone if it is gone there, because another window has finished it or given it up.
    """
    if there is None:
        return mine
    changed = {model: each for model, each in mine.items() if seen.get(model) != each}
    left = {model: each for model, each in there.items() if model in mine or model not in seen}
    return left | changed


def _by_model(downloads: Iterable[KeptDownload]) -> Kept:
    return {each.job.model: each for each in downloads}


def _read(path: Path) -> Kept | None:
    """The list as it is written, empty where there is no file; None for one that cannot be used."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        return None if len(raw) > MAX_BYTES else _by_model(_KeptList.model_validate(json.loads(raw)).downloads)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, ValidationError, RecursionError):
        return None


def _replace(path: Path, downloads: Kept) -> None:
    if not downloads:
        path.unlink(missing_ok=True)
        return
    beside = beside_of(path)
    kept = _KeptList(downloads=tuple(downloads.values())[-MOST:])
    beside.write_text(kept.model_dump_json(indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _as_on_disk(kept: KeptDownload) -> KeptDownload:
    here = cached_repo(hub_cache(), kept.job.model)
    done = min(here.nbytes if here else 0, kept.total)
    return kept.model_copy(update={"done": done})
