"""A whole model from the Hub, at one commit: planned, room checked, fetched, verified, and only then visible.

Files become a snapshot in one go at the end, config.json last, so no partial download looks like a model. Without a
network a model that is here and whole is simply found.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from quantstudio.core.cache import local_snapshot
from quantstudio.core.errors import DiskProblem, HubRefused, Offline
from quantstudio.core.hub import DownloadResult, HubFile, TransferStage
from quantstudio.core.humanize import human_bytes
from quantstudio.core.jobs import DownloadJob
from quantstudio.core.model_info import read_model_info
from quantstudio.engine.hub.answers import read_commit
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.cache import blob_path, partial_path, publish_snapshot
from quantstudio.engine.hub.connection import Connection
from quantstudio.engine.hub.fetch import fetch
from quantstudio.engine.hub.meter import Meter
from quantstudio.engine.hub.needed import choose, is_pickle_only, pickles_only
from quantstudio.engine.hub.skeleton import read_shards
from quantstudio.engine.reporter import Reporter

ROOM_TO_SPARE = 256 << 20


@dataclass(frozen=True, slots=True)
class Shopping:
    """What a download will fetch."""

    commit: str
    files: list[HubFile]
    pickles: bool


def download(job: DownloadJob, connection: Connection, reporter: Reporter) -> DownloadResult:
    """Bring a model into the cache. `converted` is True when its weights are pickles, still to be converted.

    Raises Offline, HubUnreachable, HubRefused, AccessNeeded, HubAnswerUnusable, PicklesOnly, ModelUnsupported,
    ModelUnsafe, DiskProblem, Cancelled, OSError.
    """
    if connection.offline:
        return _without_network(job, connection)
    reporter.phase("look", "Looking at the model", 0, 2)
    api = HubApi(connection, reporter)
    shopping = plan(job, api)
    try:
        return _fetch_all(job, shopping, api)
    except HubRefused:
        renewed = plan(job, api)
        if renewed.commit == shopping.commit:
            raise
        reporter.notice("The model was changed on the Hub during the download; its new version is fetched.", "warning")
        return _fetch_all(job, renewed, api)


def plan(job: DownloadJob, api: HubApi) -> Shopping:
    """Decide which files of which commit are fetched. Raises as `download`."""
    commit = read_commit(api.describe(job.model, job.revision))
    files = api.files(job.model, commit)
    pickles = is_pickle_only(files)
    if pickles and not job.allow_pickles:
        raise pickles_only(job.model)
    return Shopping(
        commit, choose(files, read_shards(api, job.model, commit, files, pickles=pickles), pickles=pickles), pickles
    )


def _fetch_all(job: DownloadJob, shopping: Shopping, api: HubApi) -> DownloadResult:
    cache, reporter = api.connection.cache, api.reporter
    _check_room(job, shopping, cache)
    reporter.phase("download", "Downloading", 1, 2)
    meter = Meter(reporter, shopping.files)
    meter.tell(TransferStage.LOOKING, force=True)
    for file in shopping.files:
        fetch(api, job.model, shopping.commit, file, meter)
    folder = publish_snapshot(cache, job.model, job.revision or "main", shopping.commit, shopping.files)
    if not shopping.pickles:
        read_model_info(folder)  # whole and harmless, or an error in words
    meter.tell(TransferStage.DONE, force=True)
    reporter.artifact("model", str(folder))
    total = sum(file.size for file in shopping.files)
    return DownloadResult(
        model=job.model,
        commit=shopping.commit,
        folder=str(folder.absolute()),
        nbytes=total,
        fetched_bytes=meter.fetched,
        reused_bytes=max(0, total - meter.fetched),
        converted=shopping.pickles,
    )


def missing_bytes(model: str, files: list[HubFile], cache: Path) -> int:
    """What is left to fetch of these files, partial ones counted."""
    return sum(max(0, file.size - _size_here(blob_path(cache, model, file))) for file in files)


def _size_here(blob: Path) -> int:
    for path in (blob, partial_path(blob)):
        if path.is_file():
            return path.stat().st_size
    return 0


def _check_room(job: DownloadJob, shopping: Shopping, cache: Path) -> None:
    """Refuse before the first byte what would fill the disk. Raises DiskProblem, OSError."""
    cache.mkdir(parents=True, exist_ok=True)
    missing = missing_bytes(job.model, shopping.files, cache)
    converted = sum(file.size for file in shopping.files) if shopping.pickles else 0
    wanted, free = missing + job.output_bytes + converted, shutil.disk_usage(cache).free
    if missing + converted and free < wanted + ROOM_TO_SPARE:
        output = f" and {human_bytes(job.output_bytes)} for the result" if job.output_bytes else ""
        raise DiskProblem(
            f"The disk has no room for {job.model}.",
            why=f"The download needs {human_bytes(missing + converted)}{output}; {human_bytes(free)} are free "
            f"in {cache}, of which {human_bytes(ROOM_TO_SPARE)} stay free.",
            hint="Free some space, remove a model (quantstudio library), or set HF_HOME to a folder on another disk.",
        )


def _without_network(job: DownloadJob, connection: Connection) -> DownloadResult:
    snapshot = local_snapshot(connection.cache, job.model, job.revision)
    if snapshot is None:
        raise Offline(
            f"{job.model} is not on this machine, and the Hub is switched off (HF_HUB_OFFLINE is set).",
            hint="Unset that variable to download it.",
            field="model.id",
        )
    info = read_model_info(snapshot)
    return DownloadResult(
        model=job.model, commit=snapshot.name, folder=str(snapshot), nbytes=info.nbytes, reused_bytes=info.nbytes
    )
