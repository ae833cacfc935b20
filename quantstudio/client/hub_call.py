"""Questions to the Hub and jobs on its cache, each in a worker of its own: the window never waits for a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantstudio.client.job_call import JobCall
from quantstudio.core.hub import Account, DownloadResult, ModelDetails, RemoveResult, SearchPage, VerifyResult
from quantstudio.core.jobs import HubJob

_RESULTS: dict[str, Callable[[Any], object]] = {
    "search": SearchPage.model_validate,
    "details": ModelDetails.model_validate,
    "download": DownloadResult.model_validate,
    "verify": VerifyResult.model_validate,
    "remove": RemoveResult.model_validate,
    "account": Account.model_validate,
}


def ask_hub(call: JobCall, job: HubJob) -> None:
    """Ask a job of the Hub; `answered` brings its own typed result."""
    call.ask(job, _RESULTS[job.kind])
