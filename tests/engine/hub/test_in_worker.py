"""The Hub's jobs in real workers, over the wire, and what those workers must not load."""

import json
import subprocess
import sys
import time

import pytest

from quantstudio.core import protocol
from quantstudio.core.hub import DownloadResult, DownloadState, ModelDetails, SearchPage, TransferStage
from quantstudio.core.jobs import DetailsJob, DownloadJob, RemoveJob, SearchJob, VerifyJob

WORKER = [sys.executable, "-P", "-m", "quantstudio.worker"]


def work(job):
    """Every message of a worker that does this job. Its environment is the one that a window's worker gets."""
    command = protocol.Command(name="start", payload=job.model_dump(mode="json"))
    child = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child.stdin.write(command.encode())
    child.stdin.flush()
    messages = [protocol.decode(line) for line in child.stdout]
    child.stdin.close()
    child.stdout.close()
    assert child.wait() == 0
    return messages


@pytest.fixture
def _as_in_a_window(monkeypatch, hub):
    """The library's own switch is always off in jobs; ours says what the person wished."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("QUANTSTUDIO_OFFLINE", "0")


@pytest.mark.usefixtures("_as_in_a_window")
def test_each_job_ends_in_its_typed_result(make_llama):
    make_llama()
    page = SearchPage.model_validate(work(SearchJob())[-1].data)
    assert [model.id for model in page.models] == ["ada/small"]
    details = ModelDetails.model_validate(work(DetailsJob(model="ada/small"))[-1].data)
    assert details.model_info().parameters == page.models[0].parameters
    messages = work(DownloadJob(model="ada/small"))
    result = DownloadResult.model_validate(messages[-1].data)
    assert result.fetched_bytes == details.download_bytes
    states = [DownloadState.of(message) for message in messages if isinstance(message, protocol.Transfer)]
    assert states[-1].stage is TransferStage.DONE
    assert states[-1].done == states[-1].total == details.total_bytes
    assert work(VerifyJob(model="ada/small"))[-1].data["problems"] == []
    assert work(RemoveJob(model="ada/small"))[-1].data["freed_bytes"] > result.nbytes


def test_errors_arrive_in_words(make_llama):
    error = work(DownloadJob(model="ada/nothing"))[-1]
    assert (error.kind, error.field) == ("hub_refused", "model.id")
    assert "no model ada/nothing" in error.what


def test_neither_torch_nor_transformers_is_loaded():
    """A search answers in a fraction of the time that importing torch takes."""
    code = (
        "import sys, json\n"
        "import quantstudio.worker.work, quantstudio.engine.conduct, quantstudio.engine.hub.work\n"
        "import quantstudio.engine.acquire\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'huggingface_hub', 'safetensors'} & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_download_dies_with_its_window_and_keeps_what_it_has(hub, make_llama):
    make_llama(hidden=512)
    hub.rate = 3e6
    command = protocol.Command(name="start", payload=DownloadJob(model="ada/small").model_dump(mode="json"))
    child = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child.stdin.write(command.encode())
    child.stdin.flush()
    while hub.sent < 500_000:
        time.sleep(0.01)
    child.stdin.close()
    child.wait(timeout=5)
    kept = hub.sent
    hub.rate = 0
    work(DownloadJob(model="ada/small"))
    size = (hub.root / "ada/small/model.safetensors").stat().st_size
    assert hub.sent < size + 0.5 * kept
