"""The real engine in real worker processes: killed at any moment, it leaves no half model and no process."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from quantstudio.client.chat_client import ChatClient
from quantstudio.client.run_queue import RunQueue
from quantstudio.client.worker_process import WorkerProcess
from quantstudio.core import run_store
from quantstudio.core.jobs import ChatMessage, ChatRequest, RunJob, Sampling
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.run_state import Status, replay
from quantstudio.core.schemes import W8A16
from quantstudio.engine.conduct import conduct

ROOT = Path(__file__).parents[2]
LONG_MS = 120_000
CPU = MachineSection(device="cpu", threads=1)
OFF = MeasureSection(enabled=False)
LONG_MEASURE = MeasureSection(quality_tokens=4096, window=64, prompt_tokens=48, decode_tokens=64, trials=100)
"""Long enough that a test can act while it goes on."""


def recipe_for(folder, measure):
    return Recipe(model=ModelSection(id=str(folder)), scheme=W8A16(), measure=measure, machine=CPU)


@pytest.fixture
def queue(qtbot):
    """A queue with real workers."""
    runs = RunQueue()
    yield runs
    runs.shutdown()


def worker_pid(qtbot):
    return wait_for(qtbot, lambda: found_in(psutil.Process().children(), "quantstudio.worker")).pid


def wait_for(qtbot, look):
    """What is found at last. Looking through all processes takes long enough not to do it all the time.

    Looks are counted, so that the time in which all of us are stopped does not count.
    """
    for _ in range(LONG_MS // 50):
        if found := look():
            return found
        qtbot.wait(50)
    raise AssertionError("it did not happen")


def wait_for_end(qtbot, queue):
    qtbot.waitUntil(
        lambda: queue.active is None and all(state.status.final for _, state in queue.runs), timeout=LONG_MS
    )


def family_of(pid):
    """A process and all that it started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def found_in(processes, module):
    """The one that runs the module, or None."""
    for process in processes:
        with suppress(psutil.Error):  # one that has just ended
            if module in process.cmdline():
                return process
    return None


def measuring_family(qtbot, pid):
    """The family, once the measuring process is among it."""
    wait_for(qtbot, lambda: found_in(family_of(pid), "quantstudio.engine.measure"))
    return family_of(pid)


def all_gone(processes, timeout=30.0):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes if _there(each)):
            return True
        time.sleep(0.02)
    return False


def _there(process):
    try:
        process.status()
    except psutil.NoSuchProcess:
        return False
    return True


def fingerprints(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".json")
    }


def assert_nothing_half(folder):
    assert not (folder / "model").exists()
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_a_run_from_the_window_equals_one_from_the_command_line(queue, qtbot, tiny_folder, tmp_path):
    run_id = queue.add(recipe_for(tiny_folder, OFF), tmp_path / "window")
    wait_for_end(qtbot, queue)
    state = queue.state(run_id)
    assert state.status is Status.DONE, state.error
    folder = queue.folder(run_id)
    # Beside the window's run, the one that the command line makes: in this process, by the same function.
    other = run_store.create_run(tmp_path / "terminal", recipe_for(tiny_folder, OFF))
    conduct(RunJob(recipe=recipe_for(tiny_folder, OFF), run_folder=str(other)), lambda message: None, threading.Event())
    assert fingerprints(folder / "model") == fingerprints(other / "model")
    # And its history tells the same story as the live messages did.
    history = replay(run_store.read_messages(folder))
    assert history.status is Status.DONE
    assert history.result == state.result
    assert [phase.id for phase in history.phases] == [phase.id for phase in state.phases]
    assert history.artifacts == state.artifacts
    assert run_store.read_result(folder).run_id == run_id


def test_a_worker_killed_while_it_measures(queue, qtbot, tiny_folder, tmp_path):
    run_id = queue.add(recipe_for(tiny_folder, LONG_MEASURE), tmp_path)
    family = measuring_family(qtbot, worker_pid(qtbot))
    family[0].kill()
    wait_for_end(qtbot, queue)
    error = queue.state(run_id).error
    assert error.kind == "worker_lost"
    if sys.platform == "linux":
        assert "memory ran out" in error.why
        assert "It last used" in error.why
    assert all_gone(family)
    assert_nothing_half(queue.folder(run_id))
    header = run_store.read_header(queue.folder(run_id))
    assert (header.status, header.error_kind) == (Status.FAILED, "worker_lost")


def test_two_windows_on_one_run_and_cancel(queue, qtbot, tiny_folder, tmp_path):
    recipe = recipe_for(tiny_folder, LONG_MEASURE)
    run_id = queue.add(recipe, tmp_path)
    family = measuring_family(qtbot, worker_pid(qtbot))
    second = WorkerProcess()
    with qtbot.waitSignal(second.finished, timeout=LONG_MS):
        second.start(RunJob(recipe=recipe, run_folder=str(queue.folder(run_id))))
    assert second.state.error.kind == "run_busy"
    assert second.state.error.hint
    assert queue.state(run_id).status is Status.RUNNING
    assert run_store.read_header(queue.folder(run_id)).status is Status.RUNNING
    queue.cancel(run_id)
    wait_for_end(qtbot, queue)
    assert queue.state(run_id).status is Status.CANCELLED
    assert not any("force" in notice.text for notice in queue.state(run_id).notices)
    assert all_gone(family)
    assert_nothing_half(queue.folder(run_id))
    assert run_store.read_header(queue.folder(run_id)).status is Status.CANCELLED


WINDOW = textwrap.dedent("""
    import sys
    from pathlib import Path
    from PySide6.QtCore import QCoreApplication
    from quantstudio.client.run_queue import RunQueue
    from quantstudio.core.recipe import Recipe

    application = QCoreApplication([])
    queue = RunQueue()
    print(queue.add(Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2])), flush=True)
    application.exec()
""")


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_a_window_killed_while_it_measures(qtbot, tiny_folder, tmp_path):
    recipe = recipe_for(tiny_folder, LONG_MEASURE).model_dump_json()
    window = subprocess.Popen(
        [sys.executable, "-c", WINDOW, recipe, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])},
    )
    try:
        folder = tmp_path / window.stdout.readline().decode().strip()
        family = measuring_family(qtbot, window.pid)
        assert run_store.read_header(folder).status is Status.RUNNING
        window.kill()
        window.wait()
        assert all_gone(family)
    finally:
        window.kill()
        window.wait()
        window.stdout.close()
    # A process counts as dead when its first thread is; the system closes its files, the lock's too, after its last.
    qtbot.waitUntil(lambda: run_store.read_header(folder).error_kind == "worker_lost", timeout=LONG_MS)
    run_store.clean_up(tmp_path)
    assert_nothing_half(folder)
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_a_conversation_with_a_real_model(qtbot, tiny_folder):
    before = set(psutil.Process().children())
    chat = ChatClient()
    answers, pieces = [], []
    chat.answered.connect(answers.append)
    chat.piece.connect(pieces.append)
    with qtbot.waitSignal(chat.ready, timeout=LONG_MS):
        chat.open(str(tiny_folder), CPU)
    messages = (ChatMessage(role="user", content="Call me Ishmael."),)
    for tokens in (8, 200):
        request = ChatRequest(messages=messages, template=False, sampling=Sampling(temperature=0, max_tokens=tokens))
        with qtbot.waitSignal(chat.answered, timeout=LONG_MS):
            chat.generate(request)
            if tokens == 200:
                chat.stop()
    assert answers[0].reason in ("end", "length")
    assert 0 < answers[0].tokens <= 8
    assert "".join(pieces)
    assert answers[1].reason in ("stopped", "end")
    chat.close()
    qtbot.waitUntil(lambda: set(psutil.Process().children()) <= before, timeout=LONG_MS)
