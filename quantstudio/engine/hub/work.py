"""Carries out the quick jobs on the Hub and its cache; downloads belong to `engine.acquire`.

Imports neither torch nor transformers: a search answers at once.
"""

from __future__ import annotations

from quantstudio.core.hub import Account, ModelDetails, RemoveResult, SearchPage, VerifyResult
from quantstudio.core.jobs import AccountJob, DetailsJob, RemoveJob, SearchJob, VerifyJob
from quantstudio.engine.hub.account import manage
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.connection import IN_A_HURRY, read_connection
from quantstudio.engine.hub.details import look_at
from quantstudio.engine.hub.remove import remove
from quantstudio.engine.hub.verify import verify
from quantstudio.engine.reporter import Reporter

HubResult = SearchPage | ModelDetails | VerifyResult | RemoveResult | Account


def perform(job: SearchJob | DetailsJob | VerifyJob | RemoveJob | AccountJob, reporter: Reporter) -> HubResult:
    """The job's result. Raises the named errors of `core.errors`, Cancelled, and OSError when the disk fails."""
    connection = read_connection(IN_A_HURRY)
    match job:
        case SearchJob():
            reporter.phase("search", "Searching the Hub", 0, 1)
            return HubApi(connection, reporter).search(job.query)
        case DetailsJob():
            return look_at(job, HubApi(connection, reporter))
        case VerifyJob():
            return verify(job, connection, reporter)
        case RemoveJob():
            return remove(job, connection, reporter)
        case AccountJob():
            return manage(job, connection, reporter)
