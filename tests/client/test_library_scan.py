"""Looking for models happens beside the window, and only the last look counts."""

import threading

import pytest

from quantstudio.client import library_scan
from quantstudio.client.library_scan import LibraryScan
from quantstudio.core.settings import Settings

LONG_MS = 30_000


@pytest.fixture
def scan(qapp):
    library = LibraryScan()
    yield library
    library.shutdown()


def test_what_is_found_arrives_in_the_window_thread(scan, qtbot, monkeypatch):
    threads, go_on = [], threading.Event()

    def find(settings):
        threads.append(threading.current_thread())
        assert go_on.wait(20)
        return ["a model"]

    monkeypatch.setattr(library_scan, "list_models", find)
    arrived = []
    scan.found.connect(lambda models: arrived.append((models, threading.current_thread())))
    with qtbot.waitSignal(scan.found, timeout=LONG_MS):
        scan.refresh(Settings())
        assert scan.scanning
        go_on.set()
    assert arrived == [(["a model"], threading.main_thread())]
    assert threads[0] is not threading.main_thread()
    assert scan.models == ["a model"]


def test_of_several_looks_only_the_last_is_reported(scan, qtbot, monkeypatch):
    go_on = threading.Event()

    def find(settings):
        assert go_on.wait(20)
        return list(settings.model_folders)

    monkeypatch.setattr(library_scan, "list_models", find)
    arrived = []
    scan.found.connect(arrived.append)
    for name in ("/a", "/b", "/c"):
        scan.refresh(Settings(model_folders=(name,)))
    with qtbot.waitSignal(scan.found, timeout=LONG_MS):
        go_on.set()
    qtbot.wait(50)
    assert arrived == [["/c"]]


def test_a_look_that_fails_says_so_and_keeps_what_was_known(scan, qtbot, monkeypatch):
    def find(settings):
        raise OSError("the disk is gone")

    monkeypatch.setattr(library_scan, "list_models", find)
    scan.models = ["known"]
    with qtbot.waitSignal(scan.failed, timeout=LONG_MS) as failed:
        scan.refresh(Settings())
    assert "the disk is gone" in failed.args[0]
    assert scan.models == ["known"]


def test_a_look_that_fails_through_a_mistake_of_ours_ends_too(scan, qtbot, monkeypatch):
    monkeypatch.setattr(library_scan, "list_models", lambda settings: 1 / 0)
    with qtbot.capture_exceptions() as failures:
        with qtbot.waitSignal(scan.failed, timeout=LONG_MS):
            scan.refresh(Settings())
        scan.shutdown()
    assert [kind for kind, _, _ in failures] == [ZeroDivisionError]


def test_shutdown_waits_and_reports_nothing_more(scan, qtbot, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()

    def find(settings):
        entered.set()
        assert go_on.wait(20)
        return ["late"]

    monkeypatch.setattr(library_scan, "list_models", find)
    arrived = []
    scan.found.connect(arrived.append)
    scan.refresh(Settings())
    assert entered.wait(20)
    threading.Timer(0.1, go_on.set).start()
    scan.shutdown()
    qtbot.wait(50)
    assert not scan.scanning
    assert arrived == []


def test_the_real_look_finds_added_folders(scan, qtbot, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models" / "broken").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "config.json").write_text("{}")
    settings = Settings(runs_folder=str(tmp_path / "runs"), model_folders=(str(tmp_path / "models"),))
    with qtbot.waitSignal(scan.found, timeout=LONG_MS):
        scan.refresh(settings)
    assert any(model.path == tmp_path / "models" / "broken" and model.error for model in scan.models)
