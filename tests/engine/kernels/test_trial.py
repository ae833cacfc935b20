"""Kernels are chosen by what was measured on this machine, once, and the choice is told."""

from __future__ import annotations

import json

import pytest
import torch

from quantstudio.core.recipe import MachineSection
from quantstudio.core.schemes import WeightSpec
from quantstudio.core.speed_words import kernel_line, kernels_words
from quantstudio.engine.kernels import trial
from quantstudio.engine.kernels.cpu_int4 import CpuInt4
from quantstudio.engine.kernels.cpu_int8 import CpuInt8
from quantstudio.engine.kernels.cpu_int8_bags import CpuInt8Bags
from quantstudio.engine.kernels.dequantized import Dequantized
from quantstudio.engine.kernels.registry import AUTO, KERNELS, Chooser
from quantstudio.engine.kernels.trial import PROMPT_ROWS, Trials, machine_key

CPU = torch.device("cpu")
INT4 = WeightSpec(4, 128)
SHAPE = (512, 512)
INT8 = CpuInt8Bags if CpuInt8Bags.supports(WeightSpec(8, None), *SHAPE, CPU) else CpuInt8


pytestmark = pytest.mark.usefixtures("without_native")  # its own kernels are not raced against each other


@pytest.fixture
def clock(monkeypatch):
    """Kernel name → seconds for one row; a prompt takes ten times as long. Also counts the trials."""
    times = {"cpu_int4": 1e-4, "dequantized": 3e-4, "cpu_int8": 2e-4, "cpu_int8_bags": 2e-4}
    made: list[str] = []

    def measure(module, x):
        name = type(module).name
        made.append(name)
        assert module(x).shape[0] == x.shape[0]
        return times[name] * (10 if x.shape[0] == PROMPT_ROWS else 1)

    monkeypatch.setattr(trial, "_seconds", measure)
    return times, made


def chooser(path, wanted=AUTO, budget_s=5.0):
    trials = Trials(CPU, budget_s, path)
    return Chooser(CPU, wanted, lambda line: None, trials), trials


def test_a_clearly_faster_kernel_takes_the_place_of_the_rules(tmp_path, clock):
    times, _ = clock
    assert chooser(tmp_path / "a")[0].choose(INT4, *SHAPE) is CpuInt4
    times["cpu_int4"] = 4e-4
    assert chooser(tmp_path / "b")[0].choose(INT4, *SHAPE) is CpuInt4, "a quarter is no reason to change"
    times["cpu_int4"] = 6e-4
    assert chooser(tmp_path / "c")[0].choose(INT4, *SHAPE) is Dequantized


def test_a_shape_is_tried_once_and_kept_for_the_next_time(tmp_path, clock):
    _, made = clock
    first, trials = chooser(tmp_path / "kernels.json")
    for _ in range(3):
        first.choose(INT4, *SHAPE)
    once = len(made)
    assert set(made) == {"cpu_int4", "dequantized"}
    trials.save()
    second, _ = chooser(tmp_path / "kernels.json")
    second.choose(INT4, *SHAPE)
    assert len(made) == once
    assert second.uses()[0].decode_ratio == pytest.approx(3)
    second.choose(WeightSpec(4, 64), *SHAPE)
    assert len(made) == 2 * once, "another grid is another trial"


def test_nothing_is_timed_before_it_is_quiet_and_what_is_known_waits_for_nothing(tmp_path, clock):
    _, made = clock
    before: list[int] = []
    trials = Trials(CPU, 5.0, tmp_path / "kernels.json", until_quiet=lambda: before.append(len(made)))
    for _ in range(2):
        Chooser(CPU, AUTO, lambda line: None, trials).choose(INT4, *SHAPE)
    assert before == [0]
    assert made


def test_another_machine_or_torch_is_tried_anew(tmp_path, clock, monkeypatch):
    _, made = clock
    one, trials = chooser(tmp_path / "kernels.json")
    one.choose(INT4, *SHAPE)
    trials.save()
    once = len(made)
    monkeypatch.setattr(trial, "cpu_name", lambda: "Another")
    other, trials = chooser(tmp_path / "kernels.json")
    other.choose(INT4, *SHAPE)
    trials.save()
    assert len(made) == 2 * once
    assert len(json.loads((tmp_path / "kernels.json").read_text())) == 2
    assert torch.__version__ in machine_key(CPU)
    before = machine_key(CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert machine_key(CPU) != before


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": {"b": {"c": [1]}}}', '{"a": {"b": {"c": [-1, NaN]}}}'])
def test_a_damaged_file_is_measured_again(tmp_path, clock, text):
    path = tmp_path / "kernels.json"
    path.write_text(text)
    chosen, trials = chooser(path)
    assert chosen.choose(INT4, *SHAPE) is CpuInt4
    trials.save()
    assert "512 x 512" in path.read_text()


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, clock):
    (tmp_path / "file").write_text("")
    chosen, trials = chooser(tmp_path / "file" / "kernels.json")
    chosen.choose(INT4, *SHAPE)
    trials.save()


def test_without_time_left_and_for_small_layers_the_rules_decide(tmp_path, clock):
    times, made = clock
    times["cpu_int4"] = 1.0
    assert chooser(tmp_path / "a", budget_s=0)[0].choose(INT4, *SHAPE) is CpuInt4
    assert chooser(tmp_path / "a")[0].choose(INT4, 256, 512) is CpuInt4
    assert made == []


def test_the_person_has_the_last_word(tmp_path, clock):
    times, _ = clock
    times["cpu_int4"] = 1.0
    chosen = chooser(tmp_path / "a", "cpu_int4")[0]
    assert chosen.choose(INT4, *SHAPE) is CpuInt4
    assert chosen.choose(WeightSpec(8, None), *SHAPE) is INT8, "what it cannot run goes to the others"


def test_what_was_chosen_is_told_with_all_its_layers(tmp_path, clock):
    chosen = chooser(tmp_path / "a")[0]
    for rows in (512, 4096):
        chosen.choose(INT4, rows, 512)
    chosen.choose(WeightSpec(8, None), 64, 64)
    int4, int8 = chosen.uses()
    assert (int4.scheme, int4.kernel, int4.layers) == ("W4A16 g128", "cpu_int4", 2)
    assert int4.decode_ratio == int4.prompt_ratio == pytest.approx(3)
    assert int8.decode_ratio is None
    assert kernel_line(int4) == "int4 weights 3 times as fast as bf16"
    assert kernels_words([int4, int8]) == (
        "int4 weights (W4A16 g128) 3 times as fast as bf16 for one token, 3 times for a prompt of 128; "
        f"int8 weights (W8A16) not timed (a short trial here; run by {int4.operator}, {INT8.operator})"
    )


def test_times_of_a_disturbed_machine_are_not_believed(tmp_path, monkeypatch):
    times = iter([1.0, 9.0] * 1000)
    monkeypatch.setattr(trial, "_seconds", lambda module, x: next(times))
    chosen, trials = chooser(tmp_path / "kernels.json")
    assert chosen.choose(INT4, *SHAPE) is CpuInt4
    assert chosen.uses()[0].decode_ratio is None
    trials.save()
    assert not (tmp_path / "kernels.json").exists()


def test_a_real_trial_measures_and_spends_what_it_says(tmp_path, monkeypatch):
    trials = Trials(CPU, path=tmp_path / "kernels.json")
    monkeypatch.setattr(trial, "_DISTURBED", float("inf"))
    found = trials.timings(INT4, 512, 512, [CpuInt4, Dequantized])
    assert set(found) == {"cpu_int4", "dequantized"}
    assert all(0 < timing.one < timing.prompt for timing in found.values())
    assert trials.seconds > sum(timing.prompt for timing in found.values())


def test_every_kernel_can_be_asked_for_in_a_recipe():
    choices = MachineSection.model_fields["kernel"].annotation.__args__
    assert choices == (AUTO, *(kernel.name for kernel in KERNELS))
