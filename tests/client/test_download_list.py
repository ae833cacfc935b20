"""The list of downloads outlives the window: in good order, after a kill, and whatever became of its file."""

import sys
import threading
from pathlib import Path

import filelock
import pytest

from quantstudio.client import download_list
from quantstudio.client.download_list import KeptDownload, read_list, write_list
from quantstudio.client.download_queue import Download, DownloadQueue, DownloadStatus
from quantstudio.core import protocol
from quantstudio.core.cache import repo_path
from quantstudio.core.hub import DownloadState
from quantstudio.core.jobs import DownloadJob
from quantstudio.core.paths import hub_cache

FAKE_WORKER = Path(__file__).parents[1] / "fakeworker.py"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "home" / "downloads.json"


@pytest.fixture
def open_queue(qapp, kept):
    """A queue like that of a new window; the worker is the fake's `way`."""
    made = []

    def make(way="slow", argument="60"):
        made.append(DownloadQueue(command=[sys.executable, "-I", str(FAKE_WORKER), way, argument], kept=kept))
        return made[-1]

    yield make
    for queue in made:
        queue.shutdown()


def stand(queue):
    return {download.model: download.status.value for download in queue.downloads}


def test_a_new_window_finds_them_as_they_stood_and_starts_nothing(open_queue, qtbot):
    before = open_queue()
    for model in ("ada/runs", "ada/waits", "ada/paused"):
        before.add(DownloadJob(model=model, allow_pickles=True, output_bytes=7))
    before.pause("ada/paused")
    before.shutdown()
    after = open_queue()
    assert stand(after) == {"ada/runs": "interrupted", "ada/waits": "interrupted", "ada/paused": "paused"}
    assert after.download("ada/runs").job == DownloadJob(model="ada/runs", allow_pickles=True, output_bytes=7)
    assert after._worker is None
    after.resume_interrupted()
    assert stand(after) == {"ada/runs": "running", "ada/waits": "waiting", "ada/paused": "paused"}


def test_a_window_that_was_killed_leaves_its_list_and_the_disk_says_how_far_it_was(open_queue, kept, qtbot):
    queue = open_queue()
    queue.add(DownloadJob(model="ada/one"))
    queue.download("ada/one").take(DownloadState(done=10, total=5000))
    queue._keep()  # as when the size becomes known; then the window is killed
    blobs = repo_path(hub_cache(), "ada/one") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "x.quantstudio-partial").write_bytes(bytes(3000))
    (left,) = open_queue().downloads
    assert (left.status, left.state.done, left.state.total) == (DownloadStatus.INTERRUPTED, 3000, 5000)


def test_one_that_failed_comes_back_with_its_reason_and_what_is_done_or_given_up_does_not(open_queue, kept, qtbot):
    queue = open_queue("fail")
    queue.add(DownloadJob(model="ada/fails"))
    qtbot.waitUntil(lambda: queue.download("ada/fails").status is DownloadStatus.FAILED, timeout=8000)
    (left,) = open_queue().downloads
    assert (left.status, left.error.what) == (DownloadStatus.FAILED, "The disk is full.")
    queue.give_up("ada/fails")
    assert open_queue().downloads == []
    assert not kept.exists(), "an empty list is no file"
    assert Download(DownloadJob(model="ada/done"), DownloadStatus.DONE).kept() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "downloads": []}',
        b'{"version": 1, "downloads": [{"job": {"model": "../../etc"}}]}',
        b'{"version": 1, "downloads": [{"job": {"model": "a/b"}, "done": -1}]}',
        b'{"a":' * 20_000,
        bytes(5 << 20),
    ],
    ids=["empty", "cut", "list", "newer", "path", "negative", "deep", "huge"],
)
def test_a_list_that_cannot_be_used_is_none(kept, content):
    kept.parent.mkdir()
    kept.write_bytes(content)
    assert read_list(kept) == []


def test_a_disk_that_refuses_costs_the_list_alone(kept):
    kept.parent.write_text("a file where the folder should be")
    write_list(kept, [KeptDownload(job=DownloadJob(model="ada/one"))])
    assert read_list(kept) == []


def test_an_error_survives_as_it_was(kept):
    error = protocol.Error(t=1.0, kind="access_needed", what="No.", why="Because.", hint="Ask.")
    one = KeptDownload(job=DownloadJob(model="ada/one"), status="failed", error=error)
    write_list(kept, [one])
    assert read_list(kept) == [one]


def models(path):
    return [each.job.model for each in read_list(path)]


def test_two_windows_at_once_keep_each_others_downloads(open_queue, kept):
    open_queue().add(DownloadJob(model="ada/before"))
    first, second = open_queue(), open_queue()
    first.add(DownloadJob(model="ada/first"))
    second.add(DownloadJob(model="ada/second"))
    first.pause("ada/first")
    assert models(kept) == ["ada/before", "ada/first", "ada/second"]
    first.give_up("ada/before")
    second.pause("ada/second")
    assert models(kept) == ["ada/first", "ada/second"], "what one has given up, the other does not bring back"
    second.shutdown()
    first.shutdown()
    assert stand(open_queue()) == {"ada/first": "paused", "ada/second": "paused"}


def test_a_change_here_outlives_what_another_window_has_forgotten(open_queue, kept):
    open_queue().add(DownloadJob(model="ada/one"))
    first, second = open_queue(), open_queue()
    second.resume("ada/one")
    second.download("ada/one").take(DownloadState(done=10, total=5000))
    first.give_up("ada/one")
    assert models(kept) == []
    second.pause("ada/one")
    assert models(kept) == ["ada/one"]


def test_windows_that_write_at_the_same_moment_lose_nothing(kept):
    def fill(window):
        mine = []
        for number in range(25):
            seen, mine = mine, [*mine, KeptDownload(job=DownloadJob(model=f"{window}/model-{number}"))]
            write_list(kept, mine, seen)

    windows = [threading.Thread(target=fill, args=(name,)) for name in ("ada", "bob")]
    for window in windows:
        window.start()
    for window in windows:
        window.join()
    assert sorted(models(kept)) == sorted(f"{name}/model-{number}" for name in ("ada", "bob") for number in range(25))


def test_a_list_that_another_window_holds_for_too_long_is_written_the_next_time(open_queue, kept, monkeypatch):
    monkeypatch.setattr(download_list, "LOCK_PATIENCE_S", 0.01)
    queue = open_queue()
    queue.add(DownloadJob(model="ada/one"))
    with filelock.FileLock(kept.with_name(f".{kept.name}.lock")):
        queue.add(DownloadJob(model="ada/two"))
    assert models(kept) == ["ada/one"]
    queue.add(DownloadJob(model="ada/three"))
    assert models(kept) == ["ada/one", "ada/two", "ada/three"]
