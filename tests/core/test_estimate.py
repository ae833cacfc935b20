"""Costs before a run, and what is wrong with it beside the field that causes it."""

import dataclasses
import os
from pathlib import Path

import pytest

from quantstudio.core import machine as machine_module
from quantstudio.core.errors import DiskProblem, LayerMisfit, ModelUnsupported, OutOfMemory, RecipeError
from quantstudio.core.estimate import (
    BASE_MEMORY,
    BLOCK_MEMORY,
    COMPANION_BYTES,
    LIBRARY_MEMORY,
    ONNX_MEMORY,
    START_SECONDS,
    Level,
    Machine,
    check_machine,
    estimate,
    quantize_base,
)
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import FileText, LayersSection, MachineSection, MeasureSection, Recipe
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import W3A16, W4A16
from quantstudio.core.working_memory import asking_memory, other_scoring_memory, scoring_memory

GB = 10**9
BIG = Machine(cores=4, memory=64 * GB, available_memory=50 * GB, free_disk=500 * GB)
HOME = Path("/some/runs")


@pytest.fixture
def llama(make_model):
    return read_model_info(make_model())


def recipe(group_size=8, text=None, machine=None, layers=None, **measure):
    section = MeasureSection(**measure, **({"text": text} if text else {}))
    return Recipe(
        scheme=W4A16(group_size=group_size),
        measure=section,
        machine=machine or MachineSection(),
        layers=layers or LayersSection(),
    )


def problems(info, wanted, machine=BIG):
    return {problem.field: problem for problem in estimate(info, wanted, machine, HOME).problems}


def test_a_run_that_fits_has_no_problems_and_costs_what_the_plan_says(llama):
    wanted = recipe()
    costs = estimate(llama, wanted, BIG, HOME)
    costs.require()
    assert costs.problems == ()
    assert costs.plan == make_plan(llama, wanted)
    assert costs.output_bytes == costs.plan.sizes.total
    assert costs.disk_bytes == costs.output_bytes + COMPANION_BYTES
    assert costs.quantize_memory_bytes == quantize_base(llama)
    assert LIBRARY_MEMORY < quantize_base(llama) < LIBRARY_MEMORY + BLOCK_MEMORY, "a small model has no full blocks"
    # The waiting worker and the process that measures, both models, and a batch of scores.
    assert costs.measure_memory_bytes == 2 * BASE_MEMORY + llama.nbytes + costs.output_bytes + scoring_memory(
        llama, wanted
    )
    assert costs.peak_memory_bytes == max(costs.quantize_memory_bytes, costs.measure_memory_bytes)
    assert costs.seconds_range[0] < costs.seconds < costs.seconds_range[1]


def test_quantizing_holds_the_experts_of_one_layer_twice(make_model):
    experts = {
        f"model.layers.{i}.mlp.experts.{e}.up_proj.weight": ("BF16", (32, 64)) for i in range(3) for e in range(8)
    }
    info = read_model_info(make_model(tensors=make_model.llama_tensors() | experts))
    memory = estimate(info, recipe(), BIG, HOME).quantize_memory_bytes
    assert memory == quantize_base(info) + 2 * 8 * 32 * 64 * 2


def test_few_bits_are_asked_about_before_the_run_which_takes_memory_of_its_own(llama):
    few = recipe().model_copy(update={"scheme": W3A16(group_size=8)})
    memory = estimate(llama, few, BIG, HOME).quantize_memory_bytes
    assert memory == LIBRARY_MEMORY + asking_memory(llama, make_plan(llama, few)) > quantize_base(llama)


def test_time_grows_with_what_is_measured(llama):
    def seconds(**measure):
        return estimate(llama, recipe(**measure), BIG, HOME).seconds

    assert seconds(enabled=False) < seconds() < seconds(trials=50) < seconds(trials=50, quality_tokens=4_000_000)
    assert estimate(llama, recipe(enabled=False), BIG, HOME).measure_memory_bytes == 0


def test_more_cores_take_less_time(llama):
    big = dataclasses.replace(llama, parameters=10**9)
    few = estimate(big, recipe(machine=MachineSection(threads=1)), BIG, HOME).seconds
    assert estimate(big, recipe(), BIG, HOME).seconds < few


WITH_ONNX = dataclasses.replace(BIG, onnx_runtime=True)
ASKED = MachineSection(engine="onnxruntime")


def test_a_trial_of_the_other_engine_has_its_price(llama):
    measured = {"quality_tokens": 40_960, "trials": 50}
    without, tried = (estimate(llama, recipe(machine=ASKED, **measured), each, HOME) for each in (BIG, WITH_ONNX))
    assert tried.seconds - without.seconds > START_SECONDS, "one more process"
    # Its scores are fp32 and the other engine holds the result once more, but no original stands beside them.
    other = without.measure_memory_bytes - llama.nbytes + without.output_bytes + ONNX_MEMORY
    fewer = other_scoring_memory(llama, recipe(**measured)) - scoring_memory(llama, recipe(**measured))
    assert tried.measure_memory_bytes == max(without.measure_memory_bytes, other + fewer)
    unmeasured = (estimate(llama, recipe(enabled=False, machine=ASKED), each, HOME) for each in (BIG, WITH_ONNX))
    assert len({(costs.seconds, costs.measure_memory_bytes) for costs in unmeasured}) == 1


def test_fp32_scores_of_many_words_need_more_than_the_original_does(llama):
    wordy = dataclasses.replace(llama, vocab_size=32_768)
    assert other_scoring_memory(wordy, recipe()) - scoring_memory(wordy, recipe()) == 2 * 3072 * 32_768
    needs = [estimate(wordy, recipe(machine=ASKED), each, HOME).measure_memory_bytes for each in (BIG, WITH_ONNX)]
    assert needs[0] < needs[1]


@pytest.mark.parametrize(
    ("change", "tried"),
    [
        ({}, True),
        ({"engine": "torch"}, False),
        ({"engine": "auto"}, False),
        ({"engine": "auto", "slow": True}, True),
        ({"gpu": "H100"}, False),
        ({"gpu": "H100", "device": "cpu"}, True),
        ({"onnx_runtime": False}, False),
        ({"model_type": "gpt_neox"}, False),
        ({"layers": LayersSection(keep=("*.up_proj",))}, False),
        ({"layers": LayersSection(head="keep")}, False),
        ({"layers": LayersSection(embedding="keep")}, True),
    ],
    ids=str,
)
def test_the_other_engine_is_priced_where_it_will_be_tried(llama, change, tried):
    section = MachineSection(engine=change.get("engine", "onnxruntime"), device=change.get("device", "auto"))
    machine = dataclasses.replace(BIG, gpu=change.get("gpu", ""), onnx_runtime=change.get("onnx_runtime", True))
    info = dataclasses.replace(llama, model_type=change.get("model_type", llama.model_type))
    wanted = recipe(machine=section, layers=change.get("layers"))
    with pytest.MonkeyPatch.context() as patch:
        if change.get("slow"):
            patch.setattr("quantstudio.core.estimate.DECODE_BYTES_PER_S", 1000)
        never = estimate(info, wanted, dataclasses.replace(machine, onnx_runtime=False), HOME).seconds
        assert (estimate(info, wanted, machine, HOME).seconds > never) is tried


def test_misfits_stand_at_the_group_size_with_names_and_sizes_that_fit(llama):
    problem = problems(llama, recipe(32))["scheme.group_size"]
    assert problem.level is Level.ERROR
    assert "model.layers.0–2.mlp.down_proj: rows of 152 weights (nearest that fit: 38, 19, 8" in problem.text
    with pytest.raises(LayerMisfit):
        estimate(llama, recipe(32), BIG, HOME).require()


@pytest.mark.parametrize(
    ("on_misfit", "words"), [("keep", "They stay in bf16."), ("smaller", "They get smaller groups.")]
)
def test_misfits_that_the_recipe_settles_only_warn(llama, on_misfit, words):
    costs = estimate(llama, recipe(32, layers=LayersSection(on_misfit=on_misfit)), BIG, HOME)
    costs.require()
    (problem,) = costs.problems
    assert (problem.field, problem.level) == ("scheme.group_size", Level.WARNING)
    assert problem.text.endswith(words)


def test_a_pattern_for_nothing_is_pointed_out(llama):
    problem = problems(llama, recipe(layers=LayersSection(keep=("*.typo",))))["layers.keep"]
    assert (problem.level, problem.text) == (Level.WARNING, "No layer of this model is called *.typo.")


def test_a_quantized_model_stands_at_the_model(make_model):
    info = read_model_info(make_model(quantization_config={"quant_method": "awq"}))
    assert problems(info, recipe())["model.id"].level is Level.ERROR
    with pytest.raises(ModelUnsupported):
        estimate(info, recipe(), BIG, HOME).require()


def test_a_disk_too_small_is_said_with_both_sizes(llama):
    small = dataclasses.replace(BIG, free_disk=1_000_000)
    problem = problems(llama, recipe(), small)["output.name"]
    assert "/some/runs; 1 MB are free" in problem.text
    with pytest.raises(DiskProblem, match="1 MB are free"):
        estimate(llama, recipe(), small, HOME).require()


@pytest.mark.parametrize(("memory", "words"), [(400_000_000, "Quantizing this model"), (GB, "Measuring")])
def test_memory_too_small_for_the_machine(llama, memory, words):
    small = dataclasses.replace(BIG, memory=memory)
    with pytest.raises(OutOfMemory, match=words):
        estimate(llama, recipe(), small, HOME).require()


def test_memory_that_is_taken_just_now_only_warns(llama):
    busy = dataclasses.replace(BIG, available_memory=100_000_000)
    problem = problems(llama, recipe(), busy)["model.id"]
    assert problem.level is Level.WARNING
    assert "100 MB are free just now" in problem.text


def test_measuring_can_be_turned_off_to_fit(llama):
    small = dataclasses.replace(BIG, memory=GB)
    estimate(llama, recipe(enabled=False), small, HOME).require()
    assert "Turn off 'Measure afterwards'" in problems(llama, recipe(), small)["model.id"].text


@pytest.mark.parametrize(
    ("name", "words"), [("", "No text file is chosen"), ("gone.txt", "There is no file"), ("empty.txt", "is empty")]
)
def test_the_text_file_must_be_there(llama, tmp_path, name, words):
    (tmp_path / "empty.txt").touch()
    wanted = recipe(text=FileText(path=str(tmp_path / name) if name else ""))
    assert words in problems(llama, wanted)["measure.text.path"].text
    with pytest.raises(RecipeError, match=words):
        estimate(llama, wanted, BIG, HOME).require()
    assert problems(llama, recipe(text=FileText(path=name), enabled=False)) == {}


def test_lengths_beyond_the_context_warn_or_stop(llama, make_model):
    found = problems(llama, recipe(prompt_tokens=1000, decode_tokens=100, window=2048))
    assert {problem.level for problem in found.values()} == {Level.WARNING}
    assert set(found) == {"measure.prompt_tokens", "measure.window"}
    assert "Prompt and answer of 1,100 tokens are longer than the 1,024" in found["measure.prompt_tokens"].text

    table = make_model.llama_tensors() | {"transformer.wpe.weight": ("BF16", (1024, 64))}
    fixed = read_model_info(make_model("fixed", tensors=table))
    assert problems(fixed, recipe(window=2048))["measure.window"].level is Level.ERROR


def test_a_gpu_that_is_not_there_and_too_many_threads(llama):
    wanted = recipe(machine=MachineSection(device="cuda", threads=64))
    found = problems(llama, wanted)
    assert (found["machine.device"].level, found["machine.threads"].level) == (Level.ERROR, Level.WARNING)
    with_gpu = dataclasses.replace(BIG, gpu="H200", gpu_memory=141 * GB)
    assert "machine.device" not in problems(llama, wanted, with_gpu)


@pytest.mark.parametrize(
    ("found", "wanted", "device", "batch", "field"),
    [
        (2, 2, "auto", 6, ""),
        (2, 2, "auto", 0, ""),
        (2, 4, "auto", 0, "machine.gpus"),
        (0, 2, "auto", 0, "machine.gpus"),
        (2, 2, "cpu", 0, "machine.gpus"),
        (2, 2, "cuda", 5, "method.batch_sequences"),
    ],
)
def test_gpus_over_which_a_training_cannot_be_spread(llama, found, wanted, device, batch, field):
    machine = dataclasses.replace(BIG, gpu="H200" if found else "", gpu_memory=141 * GB if found else 0, gpus=found)
    section = MachineSection(gpus=wanted, device=device)
    trained = recipe(machine=section).model_copy(update={"method": Qat(batch_sequences=batch)})
    wrong = {name for name, problem in problems(llama, trained, machine).items() if problem.level is Level.ERROR}
    assert wrong == ({field} if field else set())
    assert "machine.gpus" not in problems(llama, recipe(machine=section), machine), "nothing is trained"


def test_compiling_is_for_gpus(llama):
    wanted = recipe(machine=MachineSection(compile=True))
    assert problems(llama, wanted)["machine.compile"].level is Level.WARNING
    with_gpu = dataclasses.replace(BIG, gpu="H200", gpu_memory=141 * GB)
    assert "machine.compile" not in problems(llama, wanted, with_gpu)
    on_cpu = recipe(machine=MachineSection(compile=True, device="cpu"))
    assert "machine.compile" in problems(llama, on_cpu, with_gpu)
    for machine, less in ((with_gpu, True), (BIG, False)):
        plain, compiled = (
            estimate(llama, each.model_copy(update={"method": Qat(preset="best")}), machine, HOME).seconds
            for each in (recipe(), wanted)
        )
        assert (compiled < plain) is less


def test_this_machine_can_quantize_a_tiny_model(llama, tmp_path):
    assert check_machine(llama, recipe(), tmp_path / "runs" / "not" / "there").output_bytes > 0


@pytest.mark.parametrize(
    ("limit", "memory"), [("2000000000", 2 * GB), ("max", 8 * GB), ("99000000000", 8 * GB), (None, 8 * GB)]
)
def test_a_containers_limit_counts_as_the_machines_memory(tmp_path, monkeypatch, limit, memory):
    if limit:
        (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="ascii")
        (tmp_path / "memory.current").write_text("500000000\n", encoding="ascii")
    monkeypatch.setattr(machine_module, "CGROUP", tmp_path)
    available = GB * 3 // 2 if memory == 2 * GB else 6 * GB
    assert machine_module.within_container(8 * GB, 6 * GB) == (memory, available)


def test_this_machine_is_read(tmp_path):
    machine = machine_module.read_machine(tmp_path / "not" / "there" / "yet")
    assert 0 < machine.available_memory <= machine.memory
    assert machine.cores >= 1
    assert machine.free_disk > 0


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for the tool is a shell script")
@pytest.mark.parametrize(
    ("script", "gpu"),
    [
        ("echo 'NVIDIA H200, 143771'", ("NVIDIA H200", 143771 << 20, 1)),
        ("echo 'NVIDIA H200, 143771'; echo 'NVIDIA T4, 15360'", ("NVIDIA H200", 143771 << 20, 2)),
        ("echo 'No devices were found'", ("", 0, 0)),
        ("true", ("", 0, 0)),
        ("echo broken; exit 9", ("", 0, 0)),
        ("exec sleep 30", ("", 0, 0)),
    ],
)
def test_the_gpu_is_asked_through_its_tool_which_may_fail_or_hang(tmp_path, monkeypatch, script, gpu):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setattr(machine_module.shutil, "which", lambda _: str(tool))
    monkeypatch.setattr(machine_module, "GPU_QUERY_SECONDS", 0.5)
    machine_module._gpus.cache_clear()
    try:
        assert machine_module._gpus() == gpu
    finally:
        machine_module._gpus.cache_clear()
