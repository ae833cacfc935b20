"""One file from the Hub to the disk: continued where it broke off, compared with its checksum before it has a name.

The contents grow in a partial file beside their place; every piece is handed to the system as it comes, so a killed
process loses what was in flight and nothing else. What was fetched before is read again for the checksum.
"""

from __future__ import annotations

import http.client
import os
import re
from io import FileIO

from quantstudio.core.errors import HubAnswerUnusable
from quantstudio.core.hub import HubFile, TransferStage
from quantstudio.core.verified import is_verified, mark_verified, matches, start_hash
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.cache import blob_lock, blob_path, partial_path
from quantstudio.engine.hub.http import Answer, Status, TransportError, request
from quantstudio.engine.hub.meter import Meter
from quantstudio.engine.hub.retry import Persistence, refusal

CHUNK = 256 << 10
MAX_WRONG = 2
"""How often a file may come with wrong contents."""
_RANGE = re.compile(r"bytes (\d{1,16})-\d{1,16}/(\d{1,16}|\*)")


def fetch(api: HubApi, model: str, commit: str, file: HubFile, meter: Meter) -> None:
    """Bring one file into the cache's blobs, whole and verified; nothing to do when it is there.

    Raises HubUnreachable, HubRefused, HubAnswerUnusable, Cancelled, OSError.
    """
    blob = blob_path(api.connection.cache, model, file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with blob_lock(api.connection.cache, model, file, api.reporter):
        meter.begin(file, 0)
        if not _is_whole(api, model, file, meter):
            _Transfer(api, model, commit, file, meter).run()
        meter.finished()


def _is_whole(api: HubApi, model: str, file: HubFile, meter: Meter) -> bool:
    """Whether the blob is there and right; a wrong one is deleted."""
    blob = blob_path(api.connection.cache, model, file)
    if not blob.is_file():
        return False
    if blob.stat().st_size == file.size:
        if is_verified(blob):
            return True
        meter.tell(TransferStage.VERIFYING, force=True)
        if matches(blob, file.blob, lambda _read: api.reporter.check_cancel()):
            mark_verified(blob)
            return True
    api.reporter.notice(f"{file.path} was here, but its contents are not what they should be; it is fetched again.")
    blob.unlink()
    return False


class _Transfer:
    """The way of one file: requests until all of it is here."""

    def __init__(self, api: HubApi, model: str, commit: str, file: HubFile, meter: Meter) -> None:
        self._api, self._model, self._file, self._meter = api, model, file, meter
        self._url = api.address(model, commit, file.path)
        self._blob = blob_path(api.connection.cache, model, file)
        self._tries = Persistence(
            api.connection, api.reporter, lambda text: meter.tell(TransferStage.WAITING, text, force=True)
        )
        self._have = 0
        self._wrong = 0
        self._digest = start_hash(file.blob, file.size)

    def run(self) -> None:
        partial = partial_path(self._blob)
        # Unbuffered, and never truncated on opening: what an earlier try has fetched is what we continue.
        with FileIO(os.open(partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644), "r+b") as target:
            self._take_up(target)
            while not self._complete(target):
                try:
                    self._request(target)
                except Status as status:
                    self._after_status(status, target)
                except TransportError as error:
                    if isinstance(error, OSError) and error.filename is not None:
                        raise  # the disk, not the network
                    self._tries.failed(error)
            self._meter.tell(TransferStage.VERIFYING, force=True)
            os.fsync(target.fileno())
        partial.replace(self._blob)
        mark_verified(self._blob)

    def _take_up(self, target: FileIO) -> None:
        """Read what an earlier try has left."""
        if os.fstat(target.fileno()).st_size > self._file.size:
            target.truncate(0)
        while piece := target.read(1 << 20):
            self._api.reporter.check_cancel()
            self._digest.update(piece)
            self._have += len(piece)
        self._meter.set_position(self._have)

    def _complete(self, target: FileIO) -> bool:
        if self._have < self._file.size:
            return False
        if self._digest.hexdigest() == self._file.blob:
            return True
        self._count_wrong("The contents differ from their checksum.")
        self._start_anew(target)
        return False

    def _request(self, target: FileIO) -> None:
        headers = {"Range": f"bytes={self._have}-"} if self._have else {}
        with request(self._api.connection, self._url, self._api.reporter.cancel, headers) as answer:
            self._check_range(answer, target)
            while self._have < self._file.size:
                piece = answer.read(min(CHUNK, self._file.size - self._have))
                if not piece:
                    raise http.client.IncompleteRead(b"", self._file.size - self._have)
                self._write(target, piece)
                self._tries.progressed()

    def _write(self, target: FileIO, piece: bytes) -> None:
        view = memoryview(piece)
        try:
            while view:
                view = view[target.write(view) :]
        except OSError as error:
            error.filename = str(self._blob.parent)  # marks it as the disk's, and says which
            raise
        self._digest.update(piece)
        self._have += len(piece)
        self._meter.arrived(len(piece))

    def _check_range(self, answer: Answer, target: FileIO) -> None:
        if answer.status == 200:
            if self._have:  # the server knows no ranges
                self._start_anew(target)
            return
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if not found or int(found[1]) != self._have or found[2] not in ("*", str(self._file.size)):
            self._count_wrong("The Hub sends another part of the file than the one that was asked for.")
            self._start_anew(target)
            raise http.client.IncompleteRead(b"")

    def _after_status(self, status: Status, target: FileIO) -> None:
        if status.status == 416:
            self._count_wrong("The file on the Hub is shorter than the Hub says.")
            self._start_anew(target)
            return
        if not status.passing:
            raise refusal(status, self._model, self._api.connection) from status
        self._tries.failed(status)

    def _start_anew(self, target: FileIO) -> None:
        target.seek(0)
        target.truncate(0)
        self._have = 0
        self._digest = start_hash(self._file.blob, self._file.size)
        self._meter.set_position(0)

    def _count_wrong(self, why: str) -> None:
        self._wrong += 1
        if self._wrong > MAX_WRONG:
            partial_path(self._blob).unlink(missing_ok=True)
            raise HubAnswerUnusable(
                f"The Hub keeps sending wrong contents for {self._file.path}.",
                why=why,
                hint="Something between here and the Hub may change what is sent. Try again later or elsewhere.",
            )
        self._api.reporter.notice(f"{self._file.path}: {why} It is fetched again.", "warning")
