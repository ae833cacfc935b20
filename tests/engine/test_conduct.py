"""Any job, however it ends: one terminal message, the same in the folder as on the wire."""

import errno
import threading

import pytest

from quantstudio.core import protocol, run_store
from quantstudio.core.disk import partial_of
from quantstudio.core.errors import BadWeights, Cancelled
from quantstudio.core.jobs import MeasureJob, RunJob
from quantstudio.core.recipe import Recipe
from quantstudio.core.run_lock import RunLock, is_locked
from quantstudio.core.run_state import Status, replay
from quantstudio.core.schemes import W8A8
from quantstudio.engine import pipeline
from quantstudio.engine.conduct import conduct


@pytest.fixture
def run(tmp_path):
    return run_store.create_run(tmp_path / "runs", Recipe())


@pytest.fixture
def work(monkeypatch):
    """Puts a function in place of the pipeline, to end a job in every way there is."""

    def put(function):
        monkeypatch.setattr(pipeline, "run_recipe", function)

    return put


def carry_out(run, cancel=None):
    sent = []
    message = conduct(RunJob(recipe=Recipe(), run_folder=str(run)), sent.append, cancel or threading.Event())
    assert [m for m in sent if isinstance(m, protocol.TERMINAL)] == [message] == sent[-1:]
    assert not is_locked(run)
    assert not partial_of(run / "model").exists()
    return message, sent


def failing(error):
    def run_recipe(recipe, folder, reporter):
        reporter.phase("quantize", "Quantizing", 0, 1)
        partial_of(folder / "model").mkdir()
        raise error

    return run_recipe


def test_a_result_is_told_recorded_and_replayed(run, work, make_result):
    def run_recipe(recipe, folder, reporter):
        assert run_store.read_header(folder).status is Status.RUNNING
        reporter.phase("quantize", "Quantizing", 0, 1)
        reporter.metric("perplexity", 3.5)
        return make_result("int4", run_id=folder.name)

    work(run_recipe)
    message, sent = carry_out(run)
    assert isinstance(message, protocol.Result)
    assert any(isinstance(m, protocol.Memory) for m in sent)
    assert run_store.read_messages(run) == sent
    assert replay(sent).status is Status.DONE
    header = run_store.read_header(run)
    assert (header.status, header.finished) == (Status.DONE, message.t)
    assert header.quantized_bytes == 5_458_875
    assert header.summary.startswith("3.1× smaller")
    assert header.seconds > 0


def test_the_folder_is_finished_when_the_last_message_is_seen(run, work, make_result):
    work(lambda recipe, folder, reporter: make_result("int4"))
    seen = []

    def sink(message):
        if isinstance(message, protocol.TERMINAL):
            seen.append(run_store.read_header(run).status)

    conduct(RunJob(recipe=Recipe(), run_folder=str(run)), sink, threading.Event())
    assert seen == [Status.DONE]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (BadWeights("A weight is NaN.", hint="Try another copy."), "bad_weights", "A weight is NaN."),
        (MemoryError(), "out_of_memory", "memory is not enough"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk", "disk is full"),
        (ValueError("token=hf_AbCdEfGhIjKlMn"), "internal", "inside QuantStudio"),
        (SystemExit(3), "internal", "inside QuantStudio"),
    ],
)
def test_every_failure_becomes_one_error(run, work, error, kind, words):
    work(failing(error))
    message, sent = carry_out(run)
    assert (message.kind, run_store.read_header(run).error_kind) == (kind, kind)
    assert words in message.what
    assert run_store.read_header(run).status is Status.FAILED
    assert run_store.read_messages(run) == sent
    log = (run / "worker.log").read_text()
    assert "Traceback" in log
    assert "AbCdEf" not in log + str(message)


@pytest.mark.parametrize("error", [Cancelled(), KeyboardInterrupt()])
def test_a_cancelled_run_leaves_nothing_half_done(run, work, error):
    work(failing(error))
    message, _ = carry_out(run)
    assert isinstance(message, protocol.CancelledMessage)
    assert run_store.read_header(run).status is Status.CANCELLED


def test_cancelled_before_it_began(run):
    cancel = threading.Event()
    cancel.set()
    message, _ = carry_out(run, cancel)
    assert isinstance(message, protocol.CancelledMessage)


def test_a_run_that_another_window_works_on_is_left_alone(run):
    with RunLock(run):
        before = (run / "run.json").read_bytes()
        sent = []
        message = conduct(RunJob(recipe=Recipe(), run_folder=str(run)), sent.append, threading.Event())
    assert message.kind == "run_busy"
    assert sent == [message]
    assert (run / "run.json").read_bytes() == before
    assert not (run / "events.jsonl").exists()


def test_a_finished_run_is_not_carried_out_again(run, work, make_result):
    work(lambda recipe, folder, reporter: make_result("int4"))
    carry_out(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    message, _ = carry_out(run)
    assert message.kind == "run_busy"
    assert "already" in message.what
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_with_finished_work_goes_on_in_its_folder(run, work, make_result):
    def first_half(recipe, folder, reporter):
        reporter.phase("calibrate", "Calibrating", 1, 3)
        (folder / run_store.WORK).mkdir()
        (folder / run_store.WORK / "block.0").write_text("done")
        raise Cancelled

    def second_half(recipe, folder, reporter):
        reporter.phase("calibrate", "Calibrating", 1, 3)
        assert (folder / run_store.WORK / "block.0").exists()
        return make_result("int4", run_id=folder.name)

    work(first_half)
    carry_out(run)
    assert run_store.can_resume(run)
    message = conduct(RunJob(recipe=Recipe(scheme=W8A8()), run_folder=str(run)), lambda _: None, threading.Event())
    assert "another recipe" in message.what
    work(second_half)
    carry_out(run)
    assert not run_store.can_resume(run)
    state = replay(run_store.read_messages(run))
    assert state.status is Status.DONE
    assert [phase.id for phase in state.phases] == ["calibrate"]


def test_a_run_without_finished_work_cannot_go_on(run, work):
    work(failing(Cancelled()))
    carry_out(run)
    assert not run_store.can_resume(run)
    message, _ = carry_out(run)
    assert message.kind == "run_busy"


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    sent = []
    job = RunJob(recipe=Recipe(), run_folder=str(tmp_path / "file" / "run"))
    message = conduct(job, sent.append, threading.Event())
    assert sent == [message]
    assert isinstance(message, protocol.Error)
    assert message.kind == "disk"


def test_a_disk_that_is_full_to_the_last_byte_still_ends_in_one_message(run, work, make_result, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    def run_recipe(recipe, folder, reporter):
        monkeypatch.setattr("quantstudio.core.run_store.write_atomically", full)
        monkeypatch.setattr("quantstudio.engine.recorder.protocol.encode", full)
        return make_result("int4")

    work(run_recipe)
    sent = []
    message = conduct(RunJob(recipe=Recipe(), run_folder=str(run)), sent.append, threading.Event())
    monkeypatch.undo()
    assert message.kind == "disk"
    assert [m for m in sent if isinstance(m, protocol.TERMINAL)] == [message]
    assert run_store.read_header(run).error_kind == "worker_lost"


def test_a_measurement_needs_no_folder(tmp_path):
    sent = []
    message = conduct(MeasureJob(model=str(tmp_path / "nothing")), sent.append, threading.Event())
    assert message.kind == "model_not_found"
    assert sent[-1] == message
    assert list(tmp_path.iterdir()) == []
