"""Carries out the jobs on the Hub and its cache. Imports neither torch nor transformers: a search answers at once."""

from __future__ import annotations

from quantstudio.core.hub import DownloadResult, ModelDetails, RemoveResult, SearchPage, VerifyResult
from quantstudio.core.jobs import DetailsJob, DownloadJob, HubJob, RemoveJob, SearchJob, VerifyJob
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.connection import read_connection
from quantstudio.engine.hub.details import look_at
from quantstudio.engine.hub.download import download
from quantstudio.engine.hub.remove import remove
from quantstudio.engine.hub.verify import verify
from quantstudio.engine.reporter import Reporter

HubResult = SearchPage | ModelDetails | DownloadResult | VerifyResult | RemoveResult


def perform(job: HubJob, reporter: Reporter) -> HubResult:
    """The job's result. Raises the named errors of `core.errors`, Cancelled, and OSError when the disk fails."""
    connection = read_connection()
    match job:
        case SearchJob():
            reporter.phase("search", "Searching the Hub", 0, 1)
            return HubApi(connection, reporter).search(job.query)
        case DetailsJob():
            return look_at(job, HubApi(connection, reporter))
        case DownloadJob():
            return download(job, connection, reporter)
        case VerifyJob():
            return verify(job, connection, reporter)
        case RemoveJob():
            return remove(job, connection, reporter)
