"""Which contents of the Hugging Face cache were compared with their checksums on this machine, and not touched since.

One small file for each blob, named by its checksum, with its size and time of change: writers never meet, and a lost
mark only means that a file is read once more. Other programs fill the cache without comparing anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from quantstudio.core.disk import write_atomically
from quantstudio.core.paths import data_home

CHUNK = 1 << 20
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def is_checksum(name: str) -> bool:
    """Whether a blob's name is the checksum of its contents (sha256, or git's sha1)."""
    return _CHECKSUM.fullmatch(name) is not None


def start_hash(checksum: str, size: int) -> hashlib._Hash:
    """The running checksum of the kind of `checksum`, for contents of `size` bytes.

    Git's sha1 covers a header "blob <size>\\0" before the contents; https://git-scm.com/book/en/v2/Git-Internals.
    """
    if len(checksum) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def matches(path: Path, checksum: str, tell: Callable[[int], None] = lambda _read: None) -> bool:
    """Whether a file has this checksum; reads all of it, telling `tell` the bytes of each piece. Raises OSError."""
    digest = start_hash(checksum, path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            tell(len(piece))
    return digest.hexdigest() == checksum


def mark_verified(blob: Path) -> None:
    """Remember that a blob was compared and found right. Raises OSError."""
    mark = _mark(blob)
    mark.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, _state(blob))


def is_verified(blob: Path) -> bool:
    """Whether a blob was found right and has the same size and time of change still."""
    try:
        return _mark(blob).read_text(encoding="ascii") == _state(blob)
    except (OSError, ValueError):
        return False


def forget(blob: Path) -> None:
    """Take a mark back."""
    _mark(blob).unlink(missing_ok=True)


def _mark(blob: Path) -> Path:
    return data_home() / "verified" / blob.name


def _state(blob: Path) -> str:
    found = blob.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}\n"
