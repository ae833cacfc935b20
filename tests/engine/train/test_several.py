"""Two processes that train one model on the CPU: the same as one process, and gone when anything goes wrong."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled, OutOfMemory, RecipeError, WorkerLost
from quantstudio.core.recipe import MachineSection
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import W2A16
from quantstudio.engine.child import child_environment
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.train import crew, fit, run
from quantstudio.engine.train.group import Seat, joined, open_store
from quantstudio.engine.train.settings import _batch

SCHEME = W2A16(group_size=32)
METHOD = Qat(steps=4, batch_sequences=4, evaluations=2, learning_rate=2e-3)
FAULTY = """
import sys
from quantstudio.engine.train import beside
from quantstudio.engine.train.trainer import QatTrainer
take = QatTrainer.training_step
def fail(self, *inputs, **more):
    if self.state.global_step == 2:
        raise MemoryError("out of memory")
    return take(self, *inputs, **more)
QatTrainer.training_step = fail
status = beside.main()
sys.stderr.flush()
__import__("os")._exit(status)
"""
ENDLESS = """
import sys, time, types
task = types.SimpleNamespace(model_validate_json=lambda line: None)
sys.modules["quantstudio.engine.train.crew"] = types.SimpleNamespace(READY="ready", Task=task)
train = lambda task, ready: (ready(), time.sleep(600))
sys.modules["quantstudio.engine.train.run"] = types.SimpleNamespace(take_part=train)
from quantstudio.engine.train import beside
beside.main()
"""


@pytest.fixture(autouse=True)
def _alone_afterwards(monkeypatch):
    """One thread each; and nothing of a group may be left in this process or beside it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    assert not beside()
    assert not torch.distributed.is_initialized()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & set(os.environ)


def beside() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def losses(messages) -> dict[int, float]:
    metrics = [message for message in messages if isinstance(message, protocol.Metric)]
    return {metric.step: metric.value for metric in metrics if metric.name == "train/loss"}


def test_two_processes_learn_what_one_learns_also_after_one_of_them_has_failed(train, tmp_path, monkeypatch):
    said: list[protocol.Message] = []
    with monkeypatch.context() as patch:
        patch.setattr(crew, "COMMAND", (sys.executable, "-c", FAULTY))
        with pytest.raises(OutOfMemory, match="on GPU 1 of the 2"):
            train(METHOD, SCHEME, "two", said.append, processes=2)
    assert not beside()
    assert any("MemoryError" in message.text for message in said if isinstance(message, protocol.Log))
    assert not list((tmp_path / "two").rglob("passages*"))
    two = train(METHOD, SCHEME, "two", processes=2)
    assert list(losses(two.messages)) == [3, 4], "it goes on from the checkpoint"

    # In one process with the same micro-batches only the order differs in which gradients and norms are summed.
    monkeypatch.setattr(run, "fit", lambda *_: (2, False))
    one = train(METHOD, SCHEME, "one")
    assert losses(said) | losses(two.messages) == pytest.approx(losses(one.messages), rel=1e-3)
    for name in ("eval/loss", "train/learning_rate"):
        mine, theirs = dict(one.metric(name)), dict(two.metric(name))
        assert theirs == {step: pytest.approx(mine[step], rel=1e-3) for step in theirs}
    equal, values = compared(tmp_path / "one", tmp_path / "two")
    assert equal > 0.999 * values


@pytest.mark.parametrize("recompute", ["on", "off"])
def test_lora_in_shares_is_lora(train, tmp_path, recompute):
    """In a group of one: all that several processes do, but for what they hear from each other."""
    method = METHOD.model_copy(update={"train": "lora", "gradient_checkpointing": recompute})
    store = open_store(1)
    with joined(Seat(rank=0, count=1, port=store.port, device="cpu"), store):
        shared = train(method, SCHEME, "shared")
    alone = train(method, SCHEME, "alone")
    assert losses(shared.messages) == pytest.approx(losses(alone.messages), rel=1e-5)
    equal, values = compared(tmp_path / "shared", tmp_path / "alone")
    assert equal > 0.9999 * values


def compared(one: Path, other: Path) -> tuple[int, int]:
    """How many values of what was handed over are the same in both, and how many there are."""
    (file,) = (one / "work" / "chosen").glob("*.safetensors")
    first, second = load_file(file), load_file(other / "work" / "chosen" / file.name)
    assert first.keys() == second.keys()
    equal = sum(int((first[name] == second[name]).sum()) for name in first)
    return equal, sum(value.numel() for value in first.values())


@pytest.mark.parametrize(
    ("last_deed", "error", "words"),
    [("sys.exit(3)", WorkerLost, "GPU 1 .* exit status 3"), ("os.kill(os.getpid(), 9)", OutOfMemory, "GPU 1")],
)
def test_a_process_that_does_not_even_start(train, monkeypatch, last_deed, error, words):
    code = f"import os, sys; print('no such library', file=sys.stderr, flush=True); {last_deed}"
    monkeypatch.setattr(crew, "COMMAND", (sys.executable, "-c", code))
    said = []
    with pytest.raises(error, match=words):
        train(METHOD, SCHEME, listen=said.append, processes=2)
    assert any("no such library" in message.text for message in said if isinstance(message, protocol.Log))


def test_cancelled_before_the_other_process_is_ready(train, monkeypatch):
    monkeypatch.setattr(crew, "COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    asked = []

    def check(self):
        asked.append(1)
        if len(asked) > 20:
            raise Cancelled

    monkeypatch.setattr(Reporter, "check_cancel", check)
    with pytest.raises(Cancelled):
        train(METHOD, SCHEME, processes=2)


def test_the_other_process_ends_when_the_first_is_gone():
    """However the first one dies, its end of the pipe closes; here while the other trains for ten minutes."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], stdin=pipe, stdout=pipe, env=child_environment())
    process.stdin.write(b"{}\n")
    process.stdin.flush()
    assert b"ready" in process.stdout.readline()
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    process.stdout.close()


def test_gpus_that_are_not_there(monkeypatch):
    assert crew.gpus_of(MachineSection()) == 1
    with pytest.raises(RecipeError, match="CPU") as found:
        crew.gpus_of(MachineSection(device="cpu", gpus=2))
    assert found.value.field == "machine.gpus"
    monkeypatch.setattr(crew, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert crew.gpus_of(MachineSection(gpus=2)) == 2
    with pytest.raises(RecipeError, match="spread over 4 GPUs, and this machine has 2"):
        crew.gpus_of(MachineSection(gpus=4))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(RecipeError, match="NCCL"):
        crew.gpus_of(MachineSection(gpus=2))


def test_every_gpu_gets_as_many_sequences():
    assert [_batch(0, 512, gpus) for gpus in (1, 2, 3, 5)] == [16, 16, 18, 20]
    assert _batch(0, 8192, 4) == 4
    assert _batch(6, 512, 3) == 6
    with pytest.raises(RecipeError, match="Take 4 or 8"):
        _batch(6, 512, 4)


@pytest.mark.parametrize(
    ("checkpointing", "room", "expected"),
    [
        ("auto", 10_000, (16, False)),
        ("auto", 1000, (8, False)),  # 100 for the weights, 100 for each sequence
        ("auto", 340, (2, False)),
        ("auto", 215, (8, True)),  # one sequence would fit, but it is too close to be tried
        ("auto", 125, (2, True)),
        ("on", 10_000, (16, True)),
        ("off", 215, (1, False)),
        ("off", 190, None),
        ("auto", 105, None),
    ],
)
def test_several_gpus_take_what_fits_without_ever_trying_what_does_not(monkeypatch, checkpointing, room, expected):
    def needed(lesson, micro, length, recompute):
        bytes_ = 100 + micro * (10 if recompute else 100)
        assert bytes_ < room or micro == 1, "this would have run out of memory"
        return bytes_

    monkeypatch.setattr(fit, "_needed", needed)
    monkeypatch.setattr(fit, "_room", lambda: room)
    monkeypatch.setattr(fit, "_kept_bytes", lambda lesson, recompute: 10 if recompute else 100)
    if expected:
        assert fit._fit_together(None, 16, 1, checkpointing) == expected
    else:
        with pytest.raises(OutOfMemory):
            fit._fit_together(None, 16, 1, checkpointing)
