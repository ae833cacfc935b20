"""Runs in a row: one at a time, whatever happens to each."""

import os
import time

import pytest

from quantstudio.client.run_queue import RunQueue
from quantstudio.client.worker_process import Patience
from quantstudio.core import protocol, run_store
from quantstudio.core.errors import DiskProblem, RunBusy
from quantstudio.core.recipe import OutputSection, Recipe
from quantstudio.core.run_lock import RunLock
from quantstudio.core.run_state import Status

LONG_MS = 30_000
FINAL = (Status.DONE, Status.FAILED, Status.CANCELLED)


@pytest.fixture
def queue(qtbot, fake):
    """A queue whose workers behave as told: `queue("good")`."""
    made = []

    def make(way, argument="", **patience):
        made.append(RunQueue(command=fake(way, argument), patience=Patience(**patience)))
        return made[-1]

    yield make
    for each in made:
        each.shutdown()


def named(name):
    return Recipe(output=OutputSection(name=name))


def statuses(queue):
    return [state.status for _, state in queue.runs]


def headers(home):
    return {header.name: header for header in run_store.list_runs(home)}


def wait_until_done(qtbot, queue):
    def done():
        return queue.active is None and all(status.final for status in statuses(queue))

    qtbot.waitUntil(done, timeout=LONG_MS)


def test_one_works_and_the_others_wait(queue, qtbot, tmp_path):
    runs = queue("slow", 0.3)
    order, most = [], []
    runs.finished.connect(order.append)
    runs.changed.connect(lambda _: most.append(sum(s not in (Status.WAITING, *FINAL) for s in statuses(runs))))
    ids = [runs.add(named(name), tmp_path) for name in ("one", "two", "three")]
    assert runs.active == ids[0]
    assert statuses(runs)[1:] == [Status.WAITING, Status.WAITING]
    wait_until_done(qtbot, runs)
    assert order == ids
    assert max(most) == 1
    assert runs.active is None
    assert statuses(runs) == [Status.DONE] * 3


@pytest.mark.parametrize(("way", "kind"), [("fail", "disk"), ("killed", "worker_lost"), ("other_version", "protocol")])
def test_a_failing_run_does_not_hold_up_the_next(queue, qtbot, tmp_path, way, kind):
    runs = queue(way)
    for name in ("one", "two"):
        runs.add(named(name), tmp_path)
    wait_until_done(qtbot, runs)
    assert statuses(runs) == [Status.FAILED] * 2
    for header in run_store.list_runs(tmp_path):
        assert (header.status, header.error_kind) == (Status.FAILED, kind)
        assert header.summary == runs.state(header.id).error.what
        assert run_store.read_messages(header.path)[-1] == runs.state(header.id).error


def test_cancel_a_waiting_run(queue, qtbot, tmp_path):
    runs = queue("slow", 0.2)
    first, second = (runs.add(named(name), tmp_path) for name in ("one", "two"))
    with qtbot.waitSignal(runs.finished, check_params_cb=lambda run_id: run_id == second):
        runs.cancel(second)
    wait_until_done(qtbot, runs)
    assert statuses(runs) == [Status.DONE, Status.CANCELLED]
    assert headers(tmp_path)["two"].status is Status.CANCELLED
    runs.cancel(first)
    assert statuses(runs)[0] is Status.DONE


def age(run_folder):
    long_ago = time.time() - 3600
    os.utime(run_folder / run_store.HEADER, (long_ago, long_ago))


def test_a_waiting_run_is_held_until_its_window_is_gone(queue, qtbot, tmp_path):
    runs = queue("slow", 60)
    first, second = (runs.add(named(name), tmp_path) for name in ("one", "two"))
    age(runs.folder(second))
    assert headers(tmp_path)["two"].status is Status.WAITING
    with pytest.raises(RunBusy):
        run_store.delete_run(runs.folder(second))
    runs.cancel(first)
    qtbot.waitUntil(lambda: runs.active == second, timeout=LONG_MS)
    assert headers(tmp_path)["two"].status is Status.WAITING  # let go of a moment ago, for the worker to take
    with RunLock(runs.folder(second)):
        pass


def test_a_run_whose_window_went_before_it_began_reads_as_cancelled(tmp_path):
    folder = run_store.create_run(tmp_path, named("one"))
    assert run_store.read_header(folder).status is Status.WAITING
    age(folder)
    header = run_store.read_header(folder)
    assert header.status is Status.CANCELLED
    assert "before this run could begin" in header.summary


def test_cancel_a_working_run_and_go_on(queue, qtbot, tmp_path):
    runs = queue("slow", 60)
    first, second = (runs.add(named(name), tmp_path) for name in ("one", "two"))
    qtbot.waitUntil(lambda: runs.state(first).status is Status.RUNNING, timeout=LONG_MS)
    runs.cancel(first)
    assert runs.state(first).status is Status.CANCELLING
    qtbot.waitUntil(lambda: runs.active == second, timeout=LONG_MS)
    runs.cancel(second)
    wait_until_done(qtbot, runs)
    assert headers(tmp_path)["one"].status is Status.CANCELLED


def test_a_run_ended_by_force_is_cancelled_in_its_folder_too(queue, qtbot, tmp_path):
    runs = queue("stubborn", cancel=0.1, terminate=0.1)
    run_id = runs.add(named("one"), tmp_path)
    qtbot.waitUntil(lambda: runs.state(run_id).status is Status.RUNNING, timeout=LONG_MS)
    (runs.folder(run_id) / "model.partial").mkdir()
    runs.cancel(run_id)
    wait_until_done(qtbot, runs)
    header = headers(tmp_path)["one"]
    assert header.status is Status.CANCELLED
    assert header.finished > 0
    assert not (runs.folder(run_id) / "model.partial").exists()


def test_shutdown_leaves_nothing_running_or_waiting(queue, qtbot, tmp_path):
    runs = queue("stubborn")
    ids = [runs.add(named(name), tmp_path) for name in ("one", "two")]
    qtbot.waitUntil(lambda: runs.state(ids[0]).status is Status.RUNNING, timeout=LONG_MS)
    runs.shutdown()
    assert runs.active is None
    assert statuses(runs) == [Status.CANCELLED] * 2
    assert {header.status for header in run_store.list_runs(tmp_path)} == {Status.CANCELLED}


def test_a_program_that_cannot_start_fails_the_run(qtbot, tmp_path):
    runs = RunQueue(command=["/no/such/python"])
    runs.add(named("one"), tmp_path)
    wait_until_done(qtbot, runs)
    assert headers(tmp_path)["one"].error_kind == "worker_lost"


def test_a_folder_held_by_another_process_is_left_alone(queue, qtbot, tmp_path):
    runs = queue("fail")
    other = runs.add(named("one"), tmp_path)
    with RunLock(runs.folder(other)):
        qtbot.waitUntil(lambda: runs.active is None, timeout=LONG_MS)
    assert runs.state(other).status is Status.FAILED
    assert any("could not be brought up to date" in line for line in runs.state(other).log)


def test_a_home_that_cannot_be_written_is_said_at_once(queue, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskProblem):
        queue("good").add(named("one"), tmp_path / "file")


def test_a_run_that_ended_before_its_time_goes_on(queue, qtbot, tmp_path):
    runs = queue("slow", 60)
    run_id = runs.add(named("one"), tmp_path)
    folder = runs.folder(run_id)
    qtbot.waitUntil(lambda: runs.state(run_id).status is Status.RUNNING, timeout=LONG_MS)
    (folder / run_store.WORK).mkdir()
    (folder / run_store.WORK / "part").write_text("finished")
    runs.cancel(run_id)
    wait_until_done(qtbot, runs)
    assert run_store.can_resume(folder)
    again = queue("good")
    assert again.resume(folder) == run_id
    assert again.recipe(run_id) == named("one")
    wait_until_done(qtbot, again)
    assert again.state(run_id).status is Status.DONE


def test_unknown_ids_are_harmless(queue):
    runs = queue("good")
    runs.cancel("nothing")
    runs.kill("nothing")
    assert runs.state("nothing") is runs.folder("nothing") is runs.recipe("nothing") is None


def test_a_resumed_run_goes_on_with_the_curves_it_had(queue, tmp_path, qtbot):
    folder = run_store.create_run(tmp_path, named("Trained"))
    loss = [protocol.Metric(t=2.0, name="train/loss", value=1.0 / step, step=step) for step in (1, 2, 3)]
    messages = [protocol.Hello(t=1.0, protocol=1, version="0", pid=1), *loss, protocol.CancelledMessage(t=3.0)]
    (folder / run_store.EVENTS).write_bytes(b"".join(map(protocol.encode, messages)))
    made = queue("slow", "60")
    run_id = made.resume(folder)
    state = made.state(run_id)
    qtbot.waitUntil(lambda: state.status is Status.RUNNING, timeout=5000)
    assert made.state(run_id) is state
    assert state.metrics["train/loss"].x == [1, 2, 3]
    made.cancel(run_id)
    qtbot.waitUntil(lambda: state.status is Status.CANCELLED, timeout=5000)
