"""The environment variables of every process that does a job, wherever it is started from."""

from __future__ import annotations

import os

JOB_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
    # No job needs the network: what is not on this machine is said to be missing at once.
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


def prepare_this_process() -> None:
    """Give this process a job's environment, before it loads torch. What the person has set stays."""
    for name, value in JOB_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
