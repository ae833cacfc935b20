"""Models that are here: verified, repaired, removed, listed; and the token that must be seen nowhere."""

import errno
import io
import logging
import os
import subprocess
import sys
import threading
import time
from io import FileIO
from pathlib import Path

import pytest

from quantstudio.cli.main import run_command
from quantstudio.core import protocol
from quantstudio.core.cache import cached_repos, local_snapshot
from quantstudio.core.errors import AccessNeeded, ModelDamaged, ModelNotFound, ModelUnsafe, RecipeError
from quantstudio.core.jobs import AccountJob, DownloadJob, RemoveJob, VerifyJob, parse_job
from quantstudio.core.library import list_cache, list_models
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import MeasureSection, ModelSection, Recipe
from quantstudio.core.settings import Settings
from quantstudio.core.usage import mark_used
from quantstudio.engine.acquire import acquire, carry_out, must_download
from quantstudio.engine.conduct import conduct
from quantstudio.engine.hub.account import manage
from quantstudio.engine.hub.connection import token_file
from quantstudio.engine.hub.download import download
from quantstudio.engine.hub.remove import remove
from quantstudio.engine.hub.verify import require_verified, verify

JOB = DownloadJob(model="ada/small")
WEIGHTS = "model.safetensors"
CHILD = [sys.executable, "-P", "-m", "quantstudio"]


def damage(path: Path):
    """Flip one byte; size and name stay."""
    blob = path.resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    time.sleep(0.01)
    blob.write_bytes(data)


def test_a_damaged_model_is_found_refused_and_repaired(hub, make_llama, connect, listener):
    make_llama()
    folder = Path(download(JOB, connect(), listener).folder)
    assert verify(VerifyJob(model="ada/small"), connect(), listener).whole
    damage(folder / WEIGHTS)
    found = verify(VerifyJob(model="ada/small"), connect(), listener)
    assert [problem.file for problem in found.problems] == [WEIGHTS]
    with pytest.raises(ModelDamaged, match="quantstudio download ada/small"):
        require_verified(folder, listener)
    again = download(JOB, connect(), listener)
    assert again.fetched_bytes == (folder / WEIGHTS).stat().st_size
    assert verify(VerifyJob(model="ada/small"), connect(), listener).whole


def test_the_model_in_the_box_is_verified_by_the_name_that_every_command_knows(hub, connect, listener):
    found = verify(VerifyJob(model="starter"), connect(), listener)
    assert found.whole
    assert found.folder == str(starter_model())


def test_a_folder_is_verified_as_far_as_it_can_be(hub, make_llama, connect, listener):
    folder = make_llama()
    found = verify(VerifyJob(model=str(folder)), connect(), listener)
    assert found.whole
    assert WEIGHTS in found.unchecked
    with pytest.raises(ModelNotFound):
        verify(VerifyJob(model="nobody/nothing"), connect(), listener)


def test_removing_a_revision_keeps_what_another_shares(hub, make_llama, connect, listener):
    folder = make_llama()
    first = download(JOB, connect(), listener)
    (folder / "README.md").write_text("Another card.\n")
    second = download(JOB, connect(), listener)
    assert first.commit != second.commit
    gone = remove(RemoveJob(model="ada/small", revision=first.commit), connect(), listener)
    assert gone.revisions == (first.commit,)
    assert 0 < gone.freed_bytes < 200, "only the old card belongs to it alone (and a ref)"
    assert verify(VerifyJob(model="ada/small"), connect(), listener).whole
    gone = remove(RemoveJob(model="ada/small"), connect(), listener)
    assert gone.freed_bytes > second.nbytes
    assert not cached_repos(connect().cache)
    with pytest.raises(ModelNotFound):
        remove(RemoveJob(model="ada/small"), connect(), listener)


def test_the_library_says_what_is_whole_partial_and_made(hub, make_llama, connect, listener, make_run, tmp_path):
    make_llama(hidden=256)
    hub.fault(WEIGHTS, "close", at=100_000)
    hub.fault(WEIGHTS, "status", status=404)
    with pytest.raises(Exception, match="no model"):
        download(JOB, connect(), listener)
    (partial,) = list_cache()
    assert partial.partial_bytes == 100_000
    assert partial.repairable
    assert "not finished" in partial.error
    result = download(JOB, connect(), listener)
    assert 100_000 <= result.reused_bytes < 101_000, "what the first try fetched was fetched again"
    mark_used(Path(result.folder))
    made = make_run(tmp_path / "runs", model_name="ada/small")
    found = {model.id: model for model in list_models(Settings(), tmp_path / "runs")}
    model = found["ada/small"]
    assert model.verified
    assert model.made == (made,)
    assert model.origin == f"ada/small at {result.commit[:12]}"
    assert model.nbytes >= result.nbytes
    assert model.last_used > time.time() - 3600
    assert not model.error
    assert not model.repairable


def quick(**fields):
    return Recipe(model=ModelSection(id="ada/small", **fields), measure=MeasureSection(enabled=False))


def test_a_recipe_fetches_what_is_missing_and_repairs_what_is_damaged(hub, make_llama, connect, listener, tmp_path):
    make_llama(hidden=128)
    assert must_download(quick().model)
    folder = acquire(quick(), tmp_path, listener)
    assert folder.name == hub.commit("ada/small")
    assert listener.of(protocol.Transfer)
    assert not listener.of(protocol.Phase), "phases are the run's"
    hub.seen.clear()
    assert acquire(quick(), tmp_path, listener) == folder
    assert not hub.seen, "a verified whole model needs no network"
    damage(folder / WEIGHTS)
    assert acquire(quick(), tmp_path, listener) == folder
    require_verified(folder, listener)
    (folder / "config.json").unlink()
    assert acquire(quick(), tmp_path, listener) == folder


def test_what_cannot_fit_is_said_before_the_weights_come(hub, make_llama, connect, listener, tmp_path, monkeypatch):
    make_llama(hidden=256)
    monkeypatch.setattr("quantstudio.core.estimate.COMPANION_BYTES", 1 << 60)
    with pytest.raises(Exception, match=r"disk|room"):
        acquire(quick(), tmp_path, listener)
    assert hub.sent < 200_000
    assert local_snapshot(connect().cache, "ada/small", "") is None


def test_pickles_are_converted_without_running_them(hub, make_llama, connect, listener, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    folder = make_llama(hidden=128)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    job = DownloadJob(model="ada/small", allow_pickles=True)
    result = carry_out(job, connect(), listener)
    assert result.converted
    converted = load_file(Path(result.folder) / WEIGHTS)
    assert all(
        torch.equal(converted[name].view(torch.int16), tensor.view(torch.int16)) for name, tensor in tensors.items()
    )
    assert acquire(quick(), tmp_path, listener) == Path(result.folder)
    (model,) = list_cache()
    assert model.path == Path(result.folder)
    assert remove(RemoveJob(model="ada/small"), connect(), listener).freed_bytes > 2 * result.nbytes * 0.9
    assert not list_cache()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_is_a_program_is_refused_and_not_run(hub, make_llama, connect, listener, tmp_path):
    torch = pytest.importorskip("torch")
    folder = make_llama()
    (folder / WEIGHTS).unlink()
    torch.save({"weight": Evil(tmp_path / "executed")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelUnsafe, match="more than weights"):
        carry_out(DownloadJob(model="ada/small", allow_pickles=True), connect(), listener)
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_killed_downloads_keep_what_they_fetched(hub, make_llama, connect, listener):
    """SIGKILL at five moments of a 12 MB download; the benchmark does ten of 300 MB."""
    make_llama(hidden=512, blocks=4)
    size = (hub.root / "ada/small" / WEIGHTS).stat().st_size
    hub.rate = 30e6
    killed = 0
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        child = subprocess.Popen(
            [*CHILD, "download", "ada/small"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while hub.sent < share * size and child.poll() is None:
            time.sleep(0.005)
        killed += child.poll() is None
        child.kill()
        child.wait()
        if killed:
            assert local_snapshot(connect().cache, "ada/small", "") is None
    hub.rate = 0
    result = download(JOB, connect(), listener)
    assert killed == 5
    assert hub.sent - result.nbytes < 0.1 * size
    assert verify(VerifyJob(model="ada/small"), connect(), listener).whole


def test_the_token_is_seen_nowhere(hub, make_llama, connect, listener, tmp_path, monkeypatch, capfd, caplog):
    """Signed in by a pipe; then everything that a failing and a working download leave behind is searched."""
    caplog.set_level(logging.DEBUG)
    secret = "hf_goodgoodgoodgood"
    make_llama()
    hub.gated.add("ada/small")
    monkeypatch.setattr(sys, "stdin", io.StringIO(secret + "\n"))
    assert run_command(["login"]) == 0
    assert token_file().read_text() == secret
    assert token_file().stat().st_mode & 0o077 == 0
    hub.fault(WEIGHTS, "status", status=403)
    child = subprocess.run([*CHILD, "download", "ada/small"], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    working = subprocess.Popen([*CHILD, "download", "ada/small"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    commands = Path(f"/proc/{working.pid}/cmdline").read_bytes() if Path("/proc").is_dir() else b""
    out, err = working.communicate()
    assert working.returncode == 0
    shown = capfd.readouterr()
    texts = [child.stdout, child.stderr, out.decode(), err.decode(), shown.out, shown.err, caplog.text]
    texts += [commands.decode(), repr(connect()), str(listener.messages)]
    # A run whose model may not be had: recipe, events, log and error of its folder.
    run = [*CHILD, "quantize", "ada/small", "--model.revision", "v9"]
    failed = subprocess.run(run, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert list((tmp_path / "home" / "runs").glob("*/events.jsonl"))
    texts += [failed.stdout, failed.stderr]
    assert not [text for text in texts if secret in text]
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != token_file():
            assert secret.encode() not in path.read_bytes(), path


def test_a_token_that_the_hub_does_not_know_is_not_kept(hub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hf_nonsense\n"))
    assert run_command(["login"]) == 1
    assert not token_file().exists()
    error = capsys.readouterr().err
    assert "does not accept this token" in error
    assert "hf_nonsense" not in error


def test_signing_in_looking_and_out(hub, connect, listener, monkeypatch):
    def ask(**fields):
        return manage(AccountJob(**fields), connect(), listener)

    assert ask().name == ""
    assert ask(action="sign_in", token="hf_goodgoodgoodgood\n").name == "ada"
    assert ask().name == "ada"
    with pytest.raises(AccessNeeded):
        ask(action="sign_in", token="hf_bad")
    assert token_file().read_text() == "hf_goodgoodgoodgood"
    assert ask(action="sign_out").name == ""
    assert not token_file().exists()
    monkeypatch.setenv("HF_TOKEN", "hf_goodgoodgoodgood")
    assert ask().from_environment


def test_a_token_in_a_job_is_not_repeated_by_errors_or_repr():
    assert "secret" not in repr(AccountJob(action="sign_in", token="secret"))
    with pytest.raises(RecipeError) as caught:
        parse_job({"kind": "account", "action": "sing_in", "token": ["secret"]})
    assert "secret" not in str(caught.value)


def test_a_disk_that_fills_up_is_said_at_once_and_keeps_what_came(hub, make_llama, connect, listener, monkeypatch):
    class Full(FileIO):
        def write(self, data):
            if self.tell() >= 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:50_000])

    make_llama(hidden=128)
    monkeypatch.setattr("quantstudio.engine.hub.fetch.FileIO", Full)
    message = conduct(JOB, lambda message: None, threading.Event())
    assert (message.kind, message.what) == ("disk", "The disk is full.")
    assert "blobs" in message.why
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(hub.root.parent / "hf"))
    assert download(JOB, connect(), listener).reused_bytes >= 100_000


def test_the_commands_from_search_to_remove(hub, make_llama, capsys):
    make_llama()
    for arguments, expected in (
        (["search", "small"], "ada/small"),
        (["search", "--max-parameters", "1K"], "Nothing on the Hub"),
        (["info", "ada/small"], "W4A16 g"),
        (["download", "ada/small"], "every file verified"),
        (["library"], "ada/small at"),
        (["verify", "ada/small"], "is whole"),
        (["remove", "ada/small", "--yes"], "freed"),
    ):
        assert run_command(arguments) == 0, arguments
        assert expected in capsys.readouterr().out
    assert run_command(["verify", "ada/small"]) == 1
    assert run_command(["info", "nonsense"]) == 1
    assert "owner/name" in capsys.readouterr().err


def test_a_proxy_carries_every_request(hub, make_llama, connect, listener, monkeypatch):
    """The fake Hub is its own proxy: requests with whole addresses are what a proxy gets."""
    make_llama()
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("http_proxy", hub.url)
    from quantstudio.core.hub import SearchQuery
    from quantstudio.engine.hub.api import HubApi

    page = HubApi(connect(), listener).search(SearchQuery())
    assert [model.id for model in page.models] == ["ada/small"]
    assert hub.seen[0].path.startswith("http://hub.example/api/models?")
    assert hub.seen[0].host == "hub.example"


def test_two_programs_do_not_write_one_file(hub, make_llama, connect, listener):
    """Two downloads at once: the second waits, and then finds what it wanted."""
    make_llama(hidden=256)
    hub.rate = 3e6
    results = []
    threads = [threading.Thread(target=lambda: results.append(download(JOB, connect(), listener))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert sum(result.fetched_bytes for result in results) == results[0].nbytes
