"""Every way in which a download can go wrong ends in a verified whole model or a clear error."""

import hashlib
import threading
import time

import pytest

from quantstudio.core import protocol
from quantstudio.core.cache import local_snapshot
from quantstudio.core.errors import (
    AccessNeeded,
    Cancelled,
    DiskProblem,
    HubAnswerUnusable,
    HubRefused,
    HubUnreachable,
    ModelUnsafe,
    ModelUnsupported,
    Offline,
    PicklesOnly,
)
from quantstudio.core.hub import HubFile
from quantstudio.core.jobs import DownloadJob
from quantstudio.core.model_info import read_model_info
from quantstudio.engine.hub import download as download_module
from quantstudio.engine.hub.answers import is_safe_path
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.cache import blob_path, partial_path
from quantstudio.engine.hub.connection import save_token
from quantstudio.engine.hub.download import download

WEIGHTS = "model.safetensors"
JOB = DownloadJob(model="ada/small")


def require_whole(hub, result):
    """The snapshot holds what the Hub has, byte for byte, in the layout of the Hub's own client."""
    from pathlib import Path

    folder = Path(result.folder)
    source = hub.root / result.model
    assert folder.parts[-4:] == ("hub", f"models--{result.model.replace('/', '--')}", "snapshots", result.commit)
    for path in folder.rglob("*"):
        if path.is_file():
            original = source / path.relative_to(folder)
            assert path.read_bytes() == original.read_bytes()
            assert path.is_symlink()
            assert path.resolve().parent == folder.parent.parent / "blobs"
    assert (folder.parent.parent / "refs" / "main").read_text() == result.commit
    assert read_model_info(folder).parameters > 0
    assert not list((folder.parent.parent / "blobs").glob("*partial"))


def no_model_visible(connection):
    return local_snapshot(connection.cache, "ada/small", "") is None


def test_only_needed_files_come_and_the_hubs_own_client_finds_them(hub, make_llama, connect, listener, monkeypatch):
    make_llama(shards=3)
    (hub.root / "ada/small/onnx").mkdir()
    (hub.root / "ada/small/onnx/model.onnx").write_bytes(b"x")
    (hub.root / "ada/small/pytorch_model.bin").write_bytes(b"x")
    result = download(JOB, connect(), listener)
    require_whole(hub, result)
    asked = {request.path.rpartition("/")[2] for request in hub.seen}
    assert not asked & {"modeling_evil.py", "model.onnx", "pytorch_model.bin"}
    from huggingface_hub import snapshot_download

    found = snapshot_download("ada/small", cache_dir=connect().cache, local_files_only=True)
    assert found == result.folder
    transfers = listener.of(protocol.Transfer)
    assert transfers[-1].stage == "done"
    assert transfers[-1].done == transfers[-1].total == result.nbytes == result.fetched_bytes


def test_a_second_download_fetches_nothing(hub, make_llama, connect, listener):
    make_llama()
    download(JOB, connect(), listener)
    sent = hub.sent
    again = download(JOB, connect(), listener)
    assert hub.sent == sent
    assert (again.fetched_bytes, again.reused_bytes) == (0, again.nbytes)


def test_offline_a_whole_model_is_found_and_a_missing_one_said(hub, make_llama, connect, listener, monkeypatch):
    make_llama()
    result = download(JOB, connect(), listener)
    hub.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(JOB, connect(), listener).folder == result.folder
    with pytest.raises(Offline):
        download(DownloadJob(model="ada/other"), connect(), listener)
    assert not hub.seen


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("close", {"at": 50_000}),
        ("close", {"at": 0, "times": 3}),
        ("reset", {"at": 50_000, "times": 2}),
        ("stall", {"at": 50_000}),
        ("silent", {}),
        ("status", {"status": 503, "times": 2}),
        ("status", {"status": 500}),
        ("status", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("wrong", {"at": 60_000}),
        ("short", {"at": 60_000}),
        ("norange", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_faults_that_pass_end_in_a_whole_model(hub, make_llama, connect, listener, kind, settings):
    make_llama(hidden=128)
    hub.fault(WEIGHTS, kind, **settings)
    started = time.monotonic()
    result = download(JOB, connect(), listener)
    require_whole(hub, result)
    if settings.get("status") == 429:
        assert time.monotonic() - started >= 1
        waiting = [message.detail for message in listener.of(protocol.Transfer) if message.stage == "waiting"]
        assert any("slow down" in text for text in waiting)
    if kind in ("close", "reset", "stall") and settings["at"]:
        assert result.fetched_bytes == result.nbytes, "what came before the fault was fetched again"


def test_a_server_that_forgets_ranges_or_sends_the_wrong_part_after_a_break(hub, make_llama, connect, listener):
    make_llama(hidden=128)
    hub.fault(WEIGHTS, "close", at=50_000)
    hub.fault(WEIGHTS, "norange")
    require_whole(hub, download(JOB, connect(), listener))


def test_a_range_that_is_not_the_one_asked_for_is_not_used(hub, make_llama, connect, listener):
    make_llama(hidden=128)
    hub.fault(WEIGHTS, "close", at=50_000)
    hub.fault(WEIGHTS, "badrange")
    require_whole(hub, download(JOB, connect(), listener))


@pytest.mark.parametrize(
    ("kind", "settings", "error"),
    [
        ("wrong", {"at": 60_000, "times": 99}, HubAnswerUnusable),
        ("short", {"at": 60_000, "times": 99}, HubAnswerUnusable),
        ("status", {"status": 503, "times": 99}, HubUnreachable),
        ("status", {"status": 429, "times": 9, "headers": {"Retry-After": "999"}}, HubUnreachable),
        ("status", {"status": 404, "times": 99}, HubRefused),
        ("silent", {"times": 99}, HubUnreachable),
        ("close", {"at": 0, "times": 99}, HubUnreachable),
    ],
    ids=["wrong", "short", "503", "429-for-long", "404", "silent", "close"],
)
def test_faults_that_stay_end_in_a_clear_error_and_no_model(hub, make_llama, connect, listener, kind, settings, error):
    make_llama(hidden=128)
    hub.fault(WEIGHTS, kind, **settings)
    connection = connect(give_up=0.8)
    with pytest.raises(error) as caught:
        download(JOB, connection, listener)
    assert caught.value.what
    assert caught.value.hint
    assert no_model_visible(connection)


@pytest.mark.parametrize("kind", ["silent", "close", "status"])
def test_an_api_that_fails_for_a_while(hub, make_llama, connect, listener, kind):
    make_llama()
    hub.fault("api", kind, times=2)
    require_whole(hub, download(JOB, connect(), listener))


def test_a_server_that_is_gone_for_a_while(hub, make_llama, connect, listener, tmp_path):
    """Gone in mid-file and back after a second; patience is scaled down from two minutes to five seconds."""
    make_llama(hidden=256)
    hub.rate = 1e6
    hub.fault(WEIGHTS, "close", at=200_000)

    def vanish():
        while hub.sent < 150_000:
            time.sleep(0.01)
        hub.shutdown()
        hub.socket.close()
        time.sleep(1.0)
        reborn = type(hub)(hub.root, hub.port).start()
        reborn_hubs.append(reborn)

    reborn_hubs = []
    thread = threading.Thread(target=vanish)
    thread.start()
    result = download(JOB, connect(), listener)
    thread.join()
    require_whole(hub, result)
    reborn_hubs[0].stop()


def test_gated_models_need_a_token_that_stays_with_the_hub(hub, make_llama, connect, listener):
    make_llama()
    hub.gated.add("ada/small")
    with pytest.raises(AccessNeeded, match="accept the licence"):
        download(JOB, connect(), listener)
    save_token("hf_wrongwrongwrong")
    with pytest.raises(AccessNeeded):
        download(JOB, connect(), listener)
    save_token("hf_goodgoodgoodgood")
    hub.seen.clear()
    require_whole(hub, download(JOB, connect(), listener))
    elsewhere = [request for request in hub.seen if request.host.startswith("localhost")]
    assert elsewhere
    assert all(request.path.startswith("/cdn/") and not request.token for request in elsewhere)
    assert all(request.token for request in hub.seen if not request.host.startswith("localhost"))


def test_an_unknown_model_and_an_unknown_revision(hub, make_llama, connect, listener):
    make_llama()
    with pytest.raises(HubRefused, match="no model"):
        download(DownloadJob(model="ada/nothing"), connect(), listener)
    with pytest.raises(HubRefused, match="no such revision"):
        download(DownloadJob(model="ada/small", revision="v9"), connect(), listener)


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/evil",
        "a/../../evil",
        "a\\evil",
        "nul\0",
        "CON",
        "a" * 300,
        "CONFIG.json",
        "C:evil",
        "a//b",
        "x.",
    ],
    ids=repr,
)
def test_hostile_file_names_are_refused_and_write_nothing(hub, make_llama, connect, listener, path, tmp_path):
    make_llama()
    hub.extra_entries = [{"type": "file", "path": path, "size": 3, "oid": "0" * 40}]
    connection = connect()
    with pytest.raises(HubAnswerUnusable):
        download(JOB, connection, listener)
    assert not connection.cache.exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "README2.md", "size": 3, "oid": "../../evil"},
        {"path": "README2.md", "size": -3, "oid": "0" * 40},
        {"path": "README2.md", "size": 3, "oid": "0" * 40, "lfs": {"oid": "../evil", "size": 3}},
        {"path": "README2.md", "size": 1e400, "oid": "0" * 40},
        {"path": "config.json/x", "size": 3, "oid": "0" * 40},
        {"path": 7, "size": 3, "oid": "0" * 40},
        "nonsense",
    ],
    ids=repr,
)
def test_hostile_entries_are_refused(hub, make_llama, connect, listener, entry):
    make_llama()
    hub.extra_entries = [entry]
    with pytest.raises(HubAnswerUnusable):
        download(JOB, connect(), listener)


@pytest.mark.parametrize("etag", ['"../../../evil"', '"/etc/passwd"', "", '"' + "a" * 5000 + '"', '"CON"'])
def test_hostile_etags_change_nothing(hub, make_llama, connect, listener, etag, tmp_path):
    make_llama()
    hub.etag = etag
    require_whole(hub, download(JOB, connect(), listener))
    assert not list(tmp_path.rglob("*evil*.*partial"))


def test_a_repository_that_changes_between_two_requests(hub, make_llama, connect, listener):
    """After the list of files was read, a file changes: its commit is gone, and the new one is fetched as a whole."""
    folder = make_llama()
    changed = []

    def change(path):
        if path.endswith(WEIGHTS) and not changed:
            changed.append(path)
            text = (folder / "README.md").read_text()
            (folder / "README.md").write_text(text + "Now changed.\n")

    hub.on_request = change
    result = download(JOB, connect(), listener)
    assert changed
    assert result.commit == hub.commit("ada/small")
    require_whole(hub, result)


def test_an_index_that_leaves_the_folder_is_refused_before_anything_is_written(hub, make_llama, connect, listener):
    folder = make_llama(shards=2)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../../.ssh/id.safetensors"}}')
    connection = connect()
    with pytest.raises(ModelUnsafe):
        download(JOB, connection, listener)
    assert not connection.cache.exists()


def test_pickles_are_fetched_only_when_allowed(hub, make_llama, connect, listener):
    folder = make_llama()
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(PicklesOnly):
        download(JOB, connect(), listener)
    assert not any(request.path.endswith(".bin") for request in hub.seen)


def test_a_repository_without_a_model(hub, connect, listener):
    (hub.root / "ada/small").mkdir(parents=True)
    (hub.root / "ada/small/model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelUnsupported, match="GGUF"):
        download(JOB, connect(), listener)


def test_a_full_disk_is_said_before_the_first_byte(hub, make_llama, connect, listener, monkeypatch):
    make_llama()
    huge = DownloadJob(model="ada/small", output_bytes=1 << 60)
    with pytest.raises(DiskProblem, match="no room"):
        download(huge, connect(), listener)
    assert not any(request.path.endswith(WEIGHTS) for request in hub.seen)


def test_cancelling_keeps_what_came_and_the_next_download_takes_it_up(hub, make_llama, connect, listener):
    make_llama(hidden=512)
    hub.rate = 4e6
    size = (hub.root / "ada/small" / WEIGHTS).stat().st_size

    def cancel():
        while hub.sent < size // 2:
            time.sleep(0.01)
        listener.cancel.set()

    threading.Thread(target=cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        download(JOB, connect(silence=30), listener)
    assert time.monotonic() - started < 5
    assert no_model_visible(connect())
    listener.cancel.clear()
    hub.rate = 0
    result = download(JOB, connect(), listener)
    require_whole(hub, result)
    assert result.reused_bytes > size // 3


def test_cancelling_does_not_wait_for_a_silent_server(hub, make_llama, connect, listener):
    make_llama()
    hub.fault(WEIGHTS, "silent", times=9)
    threading.Timer(0.3, listener.cancel.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        download(JOB, connect(silence=30), listener)
    assert time.monotonic() - started < 3


def test_blobs_of_other_programs_are_compared_before_they_are_used(hub, make_llama, connect, listener):
    """Right size, wrong bytes: the Hub's own client would take it."""
    folder = make_llama()
    data = (folder / WEIGHTS).read_bytes()
    file = HubFile(path=WEIGHTS, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    blob = blob_path(connect().cache, "ada/small", file)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(len(data)))
    partial_path(blob).write_bytes(b"nonsense that is no beginning of it")
    require_whole(hub, download(JOB, connect(), listener))


@pytest.mark.parametrize("path", ["config.json", "additional_chat_templates/tool.jinja", "LICENSE", "ü.json", "a-b"])
def test_ordinary_names_are_fine(path):
    assert is_safe_path(path)


def test_the_plan_asks_for_each_thing_once(hub, make_llama, connect, listener):
    make_llama()
    download_module.plan(JOB, HubApi(connect(), listener))
    assert len(hub.seen) == 2
