"""Trainings whose blocks are compiled: what is learnt, what is said, and what is left when compiling fails."""

import time

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import W2A16, W4A8
from quantstudio.engine import compiling
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.train import compiled
from quantstudio.engine.train.group import Seat, joined, open_store

SCHEME = W2A16(group_size=32)
METHOD = Qat(steps=4, batch_sequences=4, evaluations=2, learning_rate=2e-3)
ALONE = METHOD.model_copy(update={"loss": "cross_entropy"})
"""Without a teacher there is only one model to compile, which is what takes time here."""
SAID = "The model was compiled"


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    """Programs are made on this CPU, too, and kept in a folder of the test."""
    monkeypatch.setattr(compiling, "why_not", lambda device: "")
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # set here, so that it is as it was afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What was given to the compiler, which runs it as it is: everything but the writing of programs is torch's."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(compiling, "BACKEND", backend)
    return found


@pytest.fixture
def traced(monkeypatch) -> list[torch.fx.GraphModule]:
    """Likewise, with gradients as torch always finds them: for what concerns none of the programs."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph

    monkeypatch.setattr(compiling, "BACKEND", backend)
    return found


def losses(ran) -> list[float]:
    return [value for _, value in ran.metric("train/loss")]


@pytest.fixture(scope="module")
def _trained() -> dict:
    return {}


@pytest.fixture
def plain(train, _trained):
    """`plain(method, scheme)`: a training as usual, which is carried out once for all tests."""

    def ordinary(method, scheme):
        key = method.model_dump_json(), scheme.model_dump_json()
        if key not in _trained:
            _trained[key] = train(method, scheme, "plain")
        return _trained[key]

    return ordinary


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        (METHOD, SCHEME),
        (ALONE.model_copy(update={"train": "lora", "gradient_checkpointing": "on"}), W4A8(group_size=32)),
    ],
    ids=["all", "lora, recomputed"],
)
def test_compiled_blocks_learn_what_others_learn(train, plain, graphs, method, scheme):
    expected = plain(method, scheme)
    assert not graphs
    ran = train(method, scheme, "compiled", compiled=True)
    # One program for the student's blocks, one for the teacher's; under LoRA the first block's input needs no gradient.
    assert 1 <= len(graphs) <= 3
    # The same operators in the same order: what differs is nothing, or the order of sums in gradients.
    assert losses(ran) == pytest.approx(losses(expected), rel=1e-4)
    assert [value for _, value in ran.metric("eval/loss")] == pytest.approx(
        [value for _, value in expected.metric("eval/loss")], rel=1e-4
    )
    assert [text for text in ran.notices() if text.startswith(SAID)]
    assert any(message.detail.startswith("Compiling") for message in ran.messages if message.type == "progress")


def test_what_cannot_be_compiled_is_trained_as_usual_and_said(train, plain, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler was found\nbecause this one is broken")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    ran = train(METHOD, SCHEME, "broken", compiled=True)
    assert losses(ran) == losses(plain(METHOD, SCHEME))
    (notice,) = [text for text in ran.notices() if "without being compiled" in text]
    assert "no compiler was found" in notice
    assert "\n" not in notice


def test_gradients_that_cannot_be_compiled_are_known_before_the_first_step(train, plain, monkeypatch):
    from torch._dynamo.backends.common import aot_autograd

    def broken(graph, inputs):
        raise RuntimeError("gradients are too much for it")

    monkeypatch.setattr(compiling, "BACKEND", aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=broken))
    ran = train(ALONE, SCHEME, "broken", compiled=True)
    assert losses(ran) == losses(plain(ALONE, SCHEME))
    assert any("gradients are too much" in text for text in ran.notices())


def test_what_takes_too_much_memory_compiled_is_trained_as_usual(train, graphs, monkeypatch):
    monkeypatch.setattr(compiled, "fits_still", lambda *_: False)
    ran = train(ALONE, SCHEME, compiled=True)
    assert any("its memory does not suffice" in text for text in ran.notices())
    assert len(losses(ran)) == ALONE.steps
    assert not graphs, "it is not compiled later on"


def test_where_nothing_can_be_compiled_this_is_said(train, monkeypatch):
    monkeypatch.undo()
    ran = train(METHOD.model_copy(update={"steps": 1, "evaluations": 1}), SCHEME, compiled=True)
    assert any("without being compiled: torch writes faster programs for NVIDIA" in text for text in ran.notices())


def test_a_nan_goes_back_with_new_blocks_compiled(train, traced, one_nan):
    ran = train(ALONE, SCHEME, compiled=True)
    assert [step for step, _ in ran.metric("train/loss")] == [1, 2, 3, 3, 4]
    assert len([text for text in ran.notices() if text.startswith(SAID)]) == 2


def test_whether_to_stop_is_asked_between_compiled_blocks(train, traced, monkeypatch):
    asked, look = [], Reporter.check_cancel

    def count(reporter):
        asked.append(1)
        look(reporter)

    monkeypatch.setattr(Reporter, "check_cancel", count)
    before = []

    def listen(message: protocol.Message) -> None:
        if isinstance(message, protocol.Metric) and message.name == "train/loss":
            before.append(len(asked))
            if message.step == 2:
                monkeypatch.setattr(Reporter, "check_cancel", stop)

    def stop(reporter):
        raise Cancelled

    with pytest.raises(Cancelled):
        train(METHOD.model_copy(update={"evaluations": 1}), SCHEME, listen=listen, compiled=True)
    assert before[1] - before[0] >= 6  # teacher, student, and the student's gradients, of two blocks each


def test_whoever_stops_need_not_wait_for_the_compiler(train, monkeypatch):
    """What it does is Python that takes long, and it makes something of its own of the errors that it meets."""
    looked = []

    def slow(graph, inputs):
        try:
            for _ in range(3000):
                looked.append(time.sleep(0.01))
        except Exception as error:
            raise RuntimeError("an error of the compiler") from error
        return graph

    def check(reporter):
        if looked:
            raise Cancelled

    monkeypatch.setattr(compiling, "BACKEND", slow)
    monkeypatch.setattr(Reporter, "check_cancel", check)
    with pytest.raises(Cancelled):
        train(ALONE, SCHEME, compiled=True)
    assert len(looked) < 3000


def test_blocks_in_shares_are_compiled(train, plain, graphs, monkeypatch):
    """In a group of one: all that several processes do, but for what they hear from each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # accelerate warns of its own choice
    store = open_store(1)
    with joined(Seat(rank=0, count=1, port=store.port, device="cpu"), store):
        shared = train(ALONE, SCHEME, "shared", compiled=True)
    assert graphs
    assert losses(shared) == pytest.approx(losses(plain(ALONE, SCHEME)), rel=1e-3)
