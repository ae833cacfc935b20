"""The estimates' formulas against what the engine really keeps: autograd's tensors, the sums of calibration, one run.

Counting is exact where tensors can be counted. The run at the end is real and in a process of its own; its bound is
wide because libraries weigh more there than the tiny model.
"""

import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from quantstudio.core.errors import OutOfMemory
from quantstudio.core.estimate import estimate
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_data import DataSection, FileData
from quantstudio.core.recipe_io import recipe_to_toml
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import W4A16, WeightSpec
from quantstudio.core.working_memory import (
    AWQ_LIVE,
    ROUNDING,
    SEARCHING,
    Sizes,
    _Learner,
    _training,
    micro_batch,
    training_memory,
)
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.calibration.gptq_block import Moments, quantize_drifted
from quantstudio.engine.load import load_model
from quantstudio.engine.methods.awq import awq_scales, quantize_clipped
from quantstudio.engine.methods.gptq import GptqOptions
from quantstudio.engine.reporter import silent
from quantstudio.engine.train.fit import fit
from quantstudio.engine.train.loss import Objective
from quantstudio.engine.train.objective import Lesson
from quantstudio.engine.train.student import Training, make_student

GB = 10**9
MACHINE = Machine(cores=2, memory=64 * GB, available_memory=50 * GB, free_disk=500 * GB)


@pytest.fixture
def lesson(tiny_folder):
    """`lesson(rank)`: the tiny model that learns from itself, and its info."""

    def make(rank=0):
        info = read_model_info(tiny_folder)
        teacher = load_model(tiny_folder, "cpu", silent()).model
        plan = make_plan(info, Recipe(scheme=W4A16(group_size=16)))
        student = make_student(teacher, plan, inspect_architecture(info), Training(lora_rank=rank)).model
        return info, Lesson(student, teacher, Objective())

    return make


@pytest.mark.parametrize(("rank", "norms"), [(0, 26), (4, 22)])
def test_activations_are_what_autograd_keeps(lesson, rank, norms):
    """26 H + 8 I of each token and block (22 H under LoRA), beside the embedding's rows and the logits' gradient."""
    info, learner = lesson(rank)
    sizes = Sizes.of(info)
    weights = {value.untyped_storage().data_ptr() for value in [*learner.parameters(), *learner.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(3, sizes.words, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner(ids, ids)
    gradient = 2 * ids.numel() * sizes.words
    by_token = (sum(kept.values()) - gradient) / ids.numel() / sizes.blocks
    # The rest: the embedding's rows in fp32, the last norm, statistics of norms and attention.
    assert by_token == pytest.approx(norms * sizes.width + 8 * sizes.inner, rel=0.1)


def test_training_holds_fourteen_bytes_for_each_weight_and_four_more_where_gradients_wait():
    sizes = Sizes(10**9, 10**7, 10**8, 1024, 4096, 24, 32_000)
    learner = _Learner(held=14 * 10**9, trained=10**9, norms=26, passing=0)
    alone = _training(sizes, learner, 512, accumulates=False, again=True)
    waiting = _training(sizes, learner, 512, accumulates=True, again=True)
    assert alone > 18 * 10**9, "at the end of the backward pass all gradients are there"
    assert 18 * 10**9 < waiting < 20 * 10**9
    more = _training(sizes, learner, 4096, accumulates=True, again=False)
    assert more - waiting > 0.9 * (4096 * 24 * (26 * 1024 + 8 * 4096))


@pytest.mark.parametrize("free", [50 * GB, 40_000_000, 14_000_000])
@pytest.mark.parametrize("checkpointing", ["auto", "on", "off"])
def test_the_estimate_expects_the_micro_batch_that_training_takes(lesson, monkeypatch, free, checkpointing):
    info, learner = lesson()
    memory = type("Memory", (), {"available": free})
    monkeypatch.setattr("quantstudio.engine.train.fit.psutil.virtual_memory", lambda: memory)
    trained = sum(value.numel() for value in learner.parameters() if value.requires_grad)
    try:
        taken = fit(learner, 16, 512, checkpointing, "cpu")
    except OutOfMemory:
        taken = (1, checkpointing != "off")  # nothing fits: the least is what the estimate says
    assert micro_batch(Sizes.of(info), trained, 16, 512, checkpointing, free) == taken


GPTQ_SHAPES = {(256, 256): ROUNDING, (1024, 128): SEARCHING}
ALONE = """
from quantstudio.engine.memory import importing
with importing():
    from tests.engine.test_working_memory import GPTQ_SHAPES, gptq_alive
print(*[gptq_alive(*shape) for shape in GPTQ_SHAPES])
"""


def test_gptq_keeps_alive_what_is_counted():
    """By torch's own profiler: 5 C² + 6 W where C is large, 3 C² + 7.3 W where W is.

    In a process of its own: in one where torch.compile has been at work, a matrix more stays alive.
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=root, capture_output=True, text=True, check=True)
    expected = [
        4 * (squares * columns**2 + times * rows * columns) for (rows, columns), (squares, times) in GPTQ_SHAPES.items()
    ]
    assert [int(alive) for alive in done.stdout.split()] == pytest.approx(expected, rel=0.1)


def gptq_alive(rows, columns):
    def choose():
        moments = Moments(columns, torch.device("cpu"))
        inputs = torch.randn(columns, columns)
        moments.add(inputs.clone(), inputs)
        del inputs
        weight = torch.randn(rows, columns, dtype=torch.bfloat16)
        quantize_drifted(weight, moments, WeightSpec(4, 32), GptqOptions(refinements=1), lambda: None)

    return most_alive(choose)


def test_awq_keeps_alive_what_is_counted():
    def choose():
        weight = torch.randn(512, 256)
        awq_scales([(weight, WeightSpec(4, 32))], hessian, torch.rand(256), 3)
        quantize_clipped(weight, hessian, WeightSpec(4, 32))

    hessian = torch.eye(256)
    assert most_alive(choose) == pytest.approx(4 * AWQ_LIVE * 512 * 256, rel=0.1)


def most_alive(work):
    """Bytes of tensors that were there at once."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(alive)


def test_recomputing_and_lora_need_less(lesson):
    info, _ = lesson()
    recipe = Recipe(scheme=W4A16(group_size=16), data=DataSection(held_out_sequences=1))

    def need(**settings):
        trained = recipe.model_copy(update={"method": Qat(**settings)})
        return training_memory(info, make_plan(info, trained), trained, 50 * GB)

    assert need(train="lora") < need()
    assert need(gradient_checkpointing="on") < need()


def test_a_real_run_holds_what_was_estimated(tmp_path, tiny_folder):
    """Mostly libraries, text and the loss: a formula that forgets one of them, or keeps room to spare, shows."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The {n}th lamp is lit at {n * 7 % 24} in the evening." for n in range(20_000)))
    recipe = Recipe(
        model=ModelSection(id=str(tiny_folder)),
        scheme=W4A16(group_size=32),
        method=Qat(steps=2, evaluations=1, batch_sequences=16),
        data=DataSection(source=FileData(path=str(text)), sequence_length=128, held_out_sequences=2),
        measure=MeasureSection(enabled=False),
        machine=MachineSection(device="cpu", threads=1),
    )
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe))
    command = [sys.executable, "-P", "-m", "quantstudio", "run", str(tmp_path / "recipe.toml")]
    environ = os.environ | {"QUANTSTUDIO_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "home").rglob("result.json")
    measured = json.loads(result.read_text())["costs"]["measured_memory"]
    predicted = estimate(read_model_info(tiny_folder), recipe, MACHINE, tmp_path).peak_memory_bytes
    assert predicted == pytest.approx(measured, rel=0.25)
