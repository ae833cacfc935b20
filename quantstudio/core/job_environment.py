"""The environment variables of every process that does a job, wherever it is started from."""

from __future__ import annotations

import os
from collections.abc import Mapping

OFFLINE = "QUANTSTUDIO_OFFLINE"
"""What the person wished with HF_HUB_OFFLINE, handed on to jobs, where that variable is always set."""
_YES = frozenset({"1", "on", "yes", "true"})

JOB_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
    # No library needs the network: models come to this machine by our own downloads or not at all.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # GNU OpenMP's threads wait for each other by spinning, 300,000 rounds unless told otherwise; when other programs
    # want the cores, they spin while the thread that they wait for cannot run. Starter model, 2 threads, tokens per
    # second, two trials each. Idle machine: 335-362 by default, 314-360 with 10,000. Two busy programs beside it: 46-74
    # by default, 33-118 with 10,000, 116-178 with 0. So 10,000 costs nothing that shows, and what it gains under load
    # is not proven; 0 would help there, but about halved the idle speed (143-151 against 251-295 in one run).
    "GOMP_SPINCOUNT": "10000",
}


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job started from a process with the environment `environ` gets."""
    return JOB_ENVIRONMENT | {OFFLINE: "1" if is_offline(environ) else "0"}


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the person has switched the Hub off (HF_HUB_OFFLINE, as the Hub's own client reads it)."""
    wish = environ.get(OFFLINE) or environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return wish.strip().lower() in _YES


def prepare_this_process() -> None:
    """Give this process a job's environment, before it loads torch. What the person has set stays."""
    for name, value in job_environment(os.environ).items():
        os.environ.setdefault(name, value)


def hub_endpoint() -> str:
    """The address of the Hub's pages, for a browser."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
