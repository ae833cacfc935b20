"""Questions and downloads by processes that misbehave on request."""

import sys
from pathlib import Path

import pytest

from quantstudio.client.download_queue import Download, DownloadQueue, DownloadStatus
from quantstudio.client.hub_call import ask_hub
from quantstudio.client.job_call import JobCall
from quantstudio.core.hub import DownloadState
from quantstudio.core.jobs import DownloadJob, SearchJob

FAKE_WORKER = Path(__file__).parents[1] / "fakeworker.py"


def command(way, argument=""):
    return [sys.executable, "-I", str(FAKE_WORKER), way, str(argument)]


@pytest.fixture
def make_call(qapp):
    made = []

    def make(way, argument=""):
        call = JobCall(command=command(way, argument))
        made.append(call)
        return call

    yield make
    for call in made:
        call.shutdown()


@pytest.fixture
def make_queue(qapp, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    made = []

    def make(way, argument=""):
        queue = DownloadQueue(command=command(way, argument))
        made.append(queue)
        return queue

    yield make
    for queue in made:
        queue.shutdown()


def test_a_failed_question_says_why(make_call, qtbot):
    call = make_call("fail")
    with qtbot.waitSignal(call.failed, timeout=5000) as failed:
        ask_hub(call, SearchJob())
    assert failed.args[0].what == "The disk is full."
    assert not call.busy


def test_a_cancelled_question_says_so(make_call, qtbot):
    call = make_call("slow", 60)
    ask_hub(call, SearchJob())
    with qtbot.waitSignal(call.stopped, timeout=5000):
        call.cancel()
    assert not call.busy


def test_a_new_question_silences_the_one_before(make_call, qtbot):
    call, said = make_call("slow", 0.3), []
    for signal in (call.answered, call.failed, call.stopped):
        signal.connect(lambda *args: said.append(args))
    ask_hub(call, SearchJob())
    call._command = command("fail")
    with qtbot.waitSignal(call.failed, timeout=5000):
        ask_hub(call, SearchJob())
    qtbot.wait(500)
    assert len(said) == 1


def test_downloads_take_turns_and_a_failed_one_does_not_hold_up_the_next(make_queue, qtbot):
    queue = make_queue("fail")
    for model in ("ada/one", "ada/two"):
        queue.add(DownloadJob(model=model))
    assert [each.status for each in queue.downloads] == [DownloadStatus.RUNNING, DownloadStatus.WAITING]
    qtbot.waitUntil(lambda: all(each.status is DownloadStatus.FAILED for each in queue.downloads), timeout=8000)
    assert queue.download("ada/one").error.what == "The disk is full."


def test_pausing_one_starts_the_next_and_resuming_lines_it_up_again(make_queue, qtbot):
    queue = make_queue("slow", 60)
    for model in ("ada/one", "ada/two"):
        queue.add(DownloadJob(model=model))
    queue.pause("ada/one")
    assert queue.download("ada/one").status is DownloadStatus.PAUSING
    qtbot.waitUntil(lambda: queue.download("ada/two").status is DownloadStatus.RUNNING, timeout=5000)
    assert queue.download("ada/one").status is DownloadStatus.PAUSED
    queue.resume("ada/one")
    assert queue.download("ada/one").status is DownloadStatus.WAITING
    queue.pause("ada/one")
    assert queue.download("ada/one").status is DownloadStatus.PAUSED, "one that waits is taken out at once"


def test_a_given_up_download_is_gone(make_queue, qtbot):
    queue = make_queue("slow", 60)
    queue.add(DownloadJob(model="ada/one"))
    with qtbot.waitSignal(queue.removed, timeout=5000):
        queue.give_up("ada/one")
    assert queue.downloads == []


def test_the_same_model_is_not_lined_up_twice(make_queue):
    queue = make_queue("slow", 60)
    for _ in range(2):
        queue.add(DownloadJob(model="ada/one"))
    assert len(queue.downloads) == 1


def test_files_come_one_after_the_other_and_those_before_are_whole():
    download = Download(DownloadJob(model="ada/one"))
    for file, done, total in (("config.json", 0, 90), ("a.safetensors", 10, 100), ("a.safetensors", 70, 100)):
        download.take(DownloadState(file=file, file_done=done, file_total=total))
    assert download.files == {"config.json": (90, 90), "a.safetensors": (70, 100)}
