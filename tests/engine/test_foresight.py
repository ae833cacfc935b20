"""Before a long job the kernels are timed on the model's shapes, and a slower outcome is told."""

from types import SimpleNamespace

import pytest
import torch

from quantstudio.core import protocol
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, MachineSection, MeasureSection, Recipe
from quantstudio.core.schemes import W4A16, WeightSpec
from quantstudio.engine import foresight
from quantstudio.engine.foresight import warn_if_slower
from quantstudio.engine.kernels import trial
from quantstudio.engine.kernels.cpu_int8 import CpuInt8
from quantstudio.engine.kernels.cpu_int8_bags import CpuInt8Bags
from quantstudio.engine.kernels.trial import AT_LOAD_S, BEFORE_A_JOB_S, PROMPT_ROWS
from quantstudio.engine.measure.spec import MeasureSpec
from quantstudio.engine.reporter import Reporter, silent

CPU = MachineSection(device="cpu")
INT8 = CpuInt8Bags if CpuInt8Bags.supports(WeightSpec(8, None), 64, 64, torch.device("cpu")) else CpuInt8


@pytest.fixture
def told(tiny_folder, monkeypatch, tmp_path, without_native):
    """What is said when one row takes `int4` and `int8` as long as bf16."""
    monkeypatch.setattr(trial, "SMALLEST", 1 << 10)
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path))
    info = read_model_info(tiny_folder)

    def tell(int4, int8=0.5, machine=CPU, **layers):
        times = {"cpu_int4": int4, "cpu_int8": int8, "cpu_int8_bags": int8, "dequantized": 1.0}
        monkeypatch.setattr(trial, "_seconds", lambda module, x: times[type(module).name] * (x.shape[0] / PROMPT_ROWS))
        sent = []
        recipe = Recipe(scheme=W4A16(group_size=32), layers=LayersSection(**layers))
        warn_if_slower(make_plan(info, recipe), machine, Reporter(sent.append))
        return [message for message in sent if isinstance(message, protocol.Notice)]

    return tell


def test_a_faster_outcome_is_told_with_its_kernels(told):
    (notice,) = told(0.25)
    assert notice.level == "info"
    assert "int4 weights (W4A16 g32) 4 times as fast as bf16 for one token" in notice.text
    assert "int8 weights (W8A16) 2 times as fast as bf16" in notice.text
    assert notice.text.endswith(f"(a short trial here; run by _weight_int4pack_mm_for_cpu, {INT8.operator}).")


def test_a_slower_one_is_a_warning(told):
    # 1.4 times as long is not yet clearly slower for the choice of the kernel, but it is for the person.
    (notice,) = told(1.4, 1.4)
    assert notice.level == "warning"
    assert "will write slower than the original: its matrices take 1.4 times as long" in notice.text
    assert "It will still be smaller" in notice.text


def test_a_kernel_of_the_persons_choice_is_the_one_that_is_tried(told):
    (notice,) = told(3.0, machine=MachineSection(device="cpu", kernel="cpu_int4"))
    assert notice.level == "warning"


def test_what_stays_in_bf16_counts_on_both_sides(told):
    (all_layers,) = told(1.4, 1.4)
    (fewer,) = told(1.4, 1.4, keep=("*.mlp.*",), head="keep", embedding="keep")
    assert "1.4 times" in all_layers.text
    assert "1.1 times" in fewer.text


def test_models_too_small_to_time_are_passed_over(told, monkeypatch):
    monkeypatch.setattr(trial, "SMALLEST", 1 << 30)
    assert told(9.0) == []


def test_a_measured_run_tries_the_kernels_before_its_fresh_processes_do(tiny_folder, tmp_path, monkeypatch):
    """There, the trial's own memory would count as the model's."""
    from quantstudio.engine import pipeline
    from quantstudio.engine.measure import __main__ as measuring

    tried = []
    monkeypatch.setattr(foresight, "try_kernels", lambda plan, machine, reporter, limit_s: tried.append(limit_s))
    info = read_model_info(tiny_folder)
    for enabled in (True, False):
        recipe = Recipe(
            scheme=W4A16(group_size=32),
            measure=MeasureSection(enabled=enabled),
            machine=MachineSection(device="cpu", threads=1),
        )
        partial = tmp_path / str(enabled) / "model.partial"
        partial.mkdir(parents=True)
        pipeline._quantize(info, make_plan(info, recipe), recipe, partial, lambda phase: None, silent())
    assert tried == [BEFORE_A_JOB_S]
    budgets = []

    def load_model(folder, device, reporter, kernels, trials_s, *, compiled):
        budgets.append(trials_s)
        raise RuntimeError("enough")

    monkeypatch.setattr("quantstudio.engine.load.load_model", load_model)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for alone in (True, False):
        with pytest.raises(RuntimeError, match="enough"):
            measuring.measure(MeasureSpec(model=str(tiny_folder), label="Tiny", alone=alone), silent())
    assert budgets == [AT_LOAD_S, 0.0]


def test_it_is_asked_before_calibration_and_can_be_skipped(monkeypatch):
    from quantstudio.core.recipe_method import Gptq
    from quantstudio.engine import pipeline

    asked, stop = [], RuntimeError("enough")

    def enter(phase):
        raise stop

    monkeypatch.setattr(foresight, "warn_if_slower", lambda *args: asked.append(args))
    for trial_wanted in (True, False):
        recipe = Recipe(method=Gptq(), measure=MeasureSection(trial=trial_wanted), machine=MachineSection(threads=1))
        with pytest.raises(RuntimeError, match="enough"):
            pipeline._quantize(None, None, recipe, SimpleNamespace(parent=None), enter, silent())
        assert len(asked) == 1
