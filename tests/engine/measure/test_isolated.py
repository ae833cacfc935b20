"""Measuring in a process of its own: real processes, really killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled, ModelNotFound, OutOfMemory, WorkerLost
from quantstudio.core.recipe import MachineSection, MeasureSection
from quantstudio.engine.measure import isolated
from quantstudio.engine.measure.isolated import measure_isolated
from quantstudio.engine.measure.spec import MeasureSpec
from quantstudio.engine.reporter import Reporter, silent

SMALL = MeasureSection(quality_tokens=2048, window=64, prompt_tokens=48, decode_tokens=8)


def nothing():
    """For runs that are not expected to come to the quality."""


def spec(folder, **values):
    return MeasureSpec(
        model=str(folder), label="Tiny", measure=SMALL, machine=MachineSection(device="cpu", threads=1), **values
    )


def children():
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_a_model_measured_against_itself(tiny_folder):
    sent, turned = [], []
    measured = measure_isolated(
        spec(tiny_folder, original=str(tiny_folder)), Reporter(sent.append), lambda: turned.append(len(sent))
    )
    speed = measured.performance
    assert len(speed.decode_tps.trials) == len(speed.ttft_s.trials) == 5
    assert 0 < speed.decode_tps.low <= speed.decode_tps.median <= speed.decode_tps.high
    assert speed.prompt_tps.median == pytest.approx(48 / speed.ttft_s.median)
    assert speed.peak_rss > 100_000_000
    assert (speed.prompt_tokens, speed.decode_tokens, speed.device) == (48, 8, "cpu")

    quality = measured.quality
    assert quality.tokens == 32 * 63
    assert quality.perplexity == quality.original_perplexity
    assert (quality.perplexity_change.value, quality.kl.value, quality.top1.value) == (0, 0, 1)

    progress = [message for message in sent if isinstance(message, protocol.Progress)]
    assert {message.unit for message in progress} == {"trials", "windows"}
    assert turned
    assert not any(isinstance(message, protocol.TERMINAL) for message in sent)
    assert children() == []


FAILS = """
import sys
from quantstudio.core import protocol

sys.stdin.readline()
error = protocol.Error(t=1.0, kind="model_not_found", what="It is gone.", why="Moved.", hint="Look.", field="model.id")
sys.stdout.buffer.write(protocol.encode(error))
"""


def test_an_error_in_the_process_arrives_as_the_named_error(monkeypatch):
    """From the real process: `test_faults`, where memory runs out while it measures."""
    monkeypatch.setattr(isolated, "COMMAND", (sys.executable, "-c", FAILS))
    with pytest.raises(ModelNotFound) as caught:
        measure_isolated(spec("anywhere"), silent(), nothing)
    error = caught.value
    assert (error.what, error.why, error.hint, error.field) == ("It is gone.", "Moved.", "Look.", "model.id")
    assert children() == []


def test_cancelling_kills_the_process_at_once(tiny_folder):
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        measure_isolated(spec(tiny_folder), Reporter(lambda message: None, cancel), nothing)
    assert time.monotonic() - started < 1.5
    assert children() == []


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (signal.SIGKILL, OutOfMemory, r"memory ran out.*It last held \d.*are free now"),
        (signal.SIGTERM, WorkerLost, r"ended without saying how.*signal 15"),
    ],
)
def test_a_killed_process_is_explained(tiny_folder, number, error, words):
    def kill():
        while not (found := children()):
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(found[0].pid, number)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(error, match=words):
        measure_isolated(spec(tiny_folder), silent(), nothing)
    killer.join()
    assert children() == []


def test_a_process_that_dies_at_its_start_leaves_its_last_words_in_the_log(monkeypatch):
    words = "import sys; print('no such library', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(isolated, "COMMAND", (sys.executable, "-c", words))
    sent = []
    with pytest.raises(WorkerLost, match="exit status 3"):
        measure_isolated(spec("anywhere"), Reporter(sent.append), nothing)
    assert [message.text for message in sent if isinstance(message, protocol.Log)] == ["no such library"]


def test_the_process_ends_when_its_parent_is_gone(tiny_folder):
    process = subprocess.Popen(
        isolated.COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=isolated._environment(spec(tiny_folder)),
    )
    process.stdin.write(spec(tiny_folder).model_dump_json().encode() + b"\n")
    process.stdin.close()
    assert process.wait(timeout=20) == 1


def test_what_libraries_print_cannot_reach_the_protocol():
    """Prints, and questions asked on stdin, go nowhere near the two pipes."""
    code = (
        "import os, sys\n"
        "from quantstudio.engine.child import take_stdio\n"
        "commands, messages = take_stdio()\n"
        "print('noise'); os.system('echo noise'); sys.stdout.flush()\n"
        "try:\n    input('Run custom code? ')\nexcept EOFError:\n    os.write(messages, b'asked nobody\\n')\n"
        "os.write(messages, commands.readline())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"command\n", capture_output=True, check=True)
    assert done.stdout == b"asked nobody\ncommand\n"
    assert done.stderr.count(b"noise") == 2
