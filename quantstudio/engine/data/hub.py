"""A dataset on the Hub, streamed by a process of its own (`hub_rows`), so that only what is used is downloaded.

In its own process because the libraries read their switches when they are imported, and in jobs the Hub is switched off
for all libraries; because a connection that hangs must not keep a job from being cancelled; and because it parses a
stranger's files.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from quantstudio.core import errors
from quantstudio.core.errors import HubUnreachable, Offline, QuantStudioError
from quantstudio.core.job_environment import JOB_ENVIRONMENT, is_offline
from quantstudio.core.jobs import ChatMessage
from quantstudio.core.paths import PACKAGE
from quantstudio.core.recipe_data import HubData
from quantstudio.engine.data.columns import nbytes
from quantstudio.engine.data.document import Budget, Document, Source, Warn, refuse
from quantstudio.engine.reporter import Reporter

COMMAND = (sys.executable, "-P", "-m", "quantstudio.engine.data.hub_rows")
_AHEAD = 64
"""Rows that are fetched before they are asked for."""
_POLL_S = 0.1
_KINDS = {cls.kind: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, QuantStudioError)}


def open_hub(source: HubData, budget: Budget, reporter: Reporter, warn: Warn) -> Source:
    """The dataset's documents at the commit that its revision points to now.

    Raises DataUnusable, PackageMissing, Offline, HubUnreachable, HubRefused, AccessNeeded, Cancelled; the documents do
    so as well.
    """
    if not source.dataset:
        raise refuse(
            "No dataset is chosen.", hint="Write the name of a dataset on the Hub.", field="data.source.dataset"
        )
    if is_offline(os.environ):
        raise Offline(
            f"The dataset {source.dataset} cannot be read.",
            why="The network is switched off (HF_HUB_OFFLINE).",
            hint="Switch it on, or use a file or the built-in books.",
            field="data.source.dataset",
        )
    answers = _answers(source, reporter)
    about = next(answers)
    name = f"{about['id']} at commit {about['commit'][:12]}"
    return Source(name, _documents(answers, name, budget, warn), budget.limit, about["licence"])


def _documents(answers: Iterator[dict[str, Any]], name: str, budget: Budget, warn: Warn) -> Iterator[Document]:
    for answer in answers:
        if "warning" in answer:
            warn(str(answer["warning"]))
            continue
        document = Document(answer["text"], tuple(map(ChatMessage.model_validate, answer["messages"])))
        size = nbytes(document)
        if size > budget.left:
            warn(f"Only the first {budget.words()} of {name} are read.")
            return
        budget.spend(size)
        yield document


def _answers(source: HubData, reporter: Reporter) -> Iterator[dict[str, Any]]:
    """What the process says, line by line; it is killed when nobody asks any more. Raises what it reports."""
    # In an empty folder: one that is called like the dataset would be taken for it.
    with tempfile.TemporaryDirectory(prefix="quantstudio-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
        )
        lines = _Lines(process)
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:  # type: ignore[union-attr]
                pipe.write(source.model_dump_json().encode())
            while (line := lines.next(reporter)) is not None:
                answer = json.loads(line)
                if "end" in answer:
                    return
                if "error" in answer:
                    raise _KINDS[answer.pop("error")](**answer)
                yield answer
            raise HubUnreachable(
                f"The process that reads {source.dataset} ended without a word.",
                why=f"Its exit status is {process.wait()}.",
                hint="Try again; if it happens again, download the data and choose it as a file.",
            )
        finally:
            lines.close()


class _Lines:
    """Reads a process's lines in a thread, so that waiting for one can be cancelled."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._queue: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def next(self, reporter: Reporter) -> bytes | None:
        """The next whole line; None at the end. Raises Cancelled."""
        while True:
            reporter.check_cancel()
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue

    def close(self) -> None:
        self._closed.set()
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if line.endswith(b"\n") and not self._put(line):  # it may be killed within a line
                return
        self._put(None)

    def _put(self, line: bytes | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(line, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


def _environment(folder: str) -> dict[str, str]:
    """A job's environment with the Hub switched on; caches go to `folder`, which is deleted afterwards."""
    environment = dict(os.environ) | JOB_ENVIRONMENT
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        environment[name] = "0"
    environment |= {"HF_DATASETS_CACHE": folder, "HF_MODULES_CACHE": folder, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "10", "HF_HUB_DOWNLOAD_TIMEOUT": "20", "USE_TORCH": "0", "USE_TF": "0"}
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}
