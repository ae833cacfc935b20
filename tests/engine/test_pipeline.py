"""Recipes carried out on a tiny model: whole or absent, the same twice, measured in processes of their own."""

import errno
import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quantstudio.core import protocol, run_store
from quantstudio.core.disk import check_model
from quantstudio.core.errors import OutOfMemory
from quantstudio.core.jobs import MeasureJob, RunJob
from quantstudio.core.recipe import (
    FileText,
    LayersSection,
    MachineSection,
    MeasureSection,
    ModelSection,
    OutputSection,
    Recipe,
)
from quantstudio.core.run_state import Status, replay
from quantstudio.core.schemes import W4A16, W8A16
from quantstudio.engine import pipeline
from quantstudio.engine.conduct import conduct
from quantstudio.engine.measure.spec import Measured

SMALL = MeasureSection(quality_tokens=2048, window=64, prompt_tokens=48, decode_tokens=8)
OFF = MeasureSection(enabled=False)
CPU = MachineSection(device="cpu", threads=1)


def recipe_for(folder, measure=OFF, **sections):
    return Recipe(**{"model": ModelSection(id=str(folder)), "measure": measure, "machine": CPU, **sections})


@pytest.fixture
def carry_out(tmp_path):
    """Carries a recipe out in a new run folder: its terminal message, the folder, and all that was sent."""

    def run(recipe, cancel_at=""):
        folder = run_store.create_run(tmp_path / "runs", recipe)
        sent, cancel = [], threading.Event()

        def sink(message):
            sent.append(message)
            if isinstance(message, protocol.Phase) and message.id == cancel_at:
                cancel.set()

        return conduct(RunJob(recipe=recipe, run_folder=str(folder)), sink, cancel), folder, sent

    return run


def fingerprints(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name not in ("README.md", "quantstudio.json")
    }


ON_BOTH_ENGINES = CPU.model_copy(update={"engine": "onnxruntime"})


def test_a_whole_run_from_recipe_to_verdict_on_both_engines(tiny_folder, carry_out):
    message, folder, sent = carry_out(recipe_for(tiny_folder, SMALL, machine=ON_BOTH_ENGINES))
    assert isinstance(message, protocol.Result), message
    result = run_store.read_result(folder)
    assert message.data == result.model_dump(mode="json")
    check_model(folder / "model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "environment.json",
        "events.jsonl",
        "metrics.jsonl",
        "model",
        "recipe.resolved.json",
        "recipe.toml",
        "result.json",
        "run.json",
        "run.lock",
        "worker.log",
    ]
    resolved = json.loads((folder / "recipe.resolved.json").read_text())
    assert resolved["recipe"]["measure"]["trials"] == 5
    assert list(resolved["model"]["weight_files"]) == ["model.safetensors"]
    assert len(resolved["text"]["sha256"]) == len(resolved["model"]["config_sha256"]) == 64
    assert "torch" in resolved["versions"]
    assert result.original_first.label == result.original_last.label == "Original"
    assert result.quantized.label == "W4A16 g128"
    assert result.quality.kl.value > 0
    assert 0 < result.quality.top1.value < 1
    assert result.verdict
    assert "tiny-llama" in (folder / "model" / "README.md").read_text()
    assert [m.id for m in sent if isinstance(m, protocol.Phase)] == [
        id for id in pipeline._PHASES if id not in ("download", "sensitivity")
    ]
    assert replay(sent).status is Status.DONE
    assert replay(run_store.read_messages(folder)) == replay(sent)
    assert (folder / "metrics.jsonl").read_text().count("perplexity") >= 2
    trial = result.other_engine
    assert trial.engine == "onnxruntime"
    assert list(trial.performance.kernels) == ["onnxruntime"]
    assert 0 < trial.kl.value < 0.05  # of rounding activations; a wrong graph is off by nats
    assert trial.tokens > 1000
    assert any("ONNX Runtime" in sentence for sentence in result.verdict)


def test_a_model_that_the_other_engine_cannot_run_is_measured_on_torch_alone(
    tiny_folder, carry_out, make_result, monkeypatch
):
    measured = []

    def measure(spec, reporter, on_quality):
        measured.append(spec)
        return Measured(performance=make_result().quantized)

    monkeypatch.setattr(pipeline, "measure_isolated", measure)
    layers = LayersSection(head="keep", embedding="keep")
    message, folder, sent = carry_out(recipe_for(tiny_folder, SMALL, machine=ON_BOTH_ENGINES, layers=layers))
    assert isinstance(message, protocol.Result), message
    assert run_store.read_result(folder).other_engine is None
    assert [Path(spec.model).name for spec in measured] == ["tiny-llama", "model.partial", "tiny-llama"]
    assert not any(spec.other_engine for spec in measured)
    assert any("Not tried on ONNX Runtime" in m.text for m in sent if isinstance(m, protocol.Notice))


@pytest.mark.parametrize("scheme", [W4A16(), W8A16()])
def test_the_bytes_are_the_same_twice_whatever_the_run_is_called_and_however_the_model_is_run(
    tiny_folder, carry_out, scheme
):
    """Kernels are chosen by a race; what is saved must not know who won it."""
    machine = MachineSection(device="cpu", threads=1, kernel="dequantized", kv_cache="int8")
    again = {"output": OutputSection(name="Another name"), "machine": machine}
    first, folder, _ = carry_out(recipe_for(tiny_folder, scheme=scheme))
    second, other, _ = carry_out(recipe_for(tiny_folder, scheme=scheme, **again))
    assert isinstance(first, protocol.Result), first
    assert isinstance(second, protocol.Result), second
    found = fingerprints(folder / "model")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(found)
    assert found == fingerprints(other / "model")


def test_without_measuring_there_is_a_model_and_no_claim(tiny_folder, carry_out):
    message, folder, sent = carry_out(recipe_for(tiny_folder))
    check_model(folder / "model")
    result = run_store.read_result(folder)
    assert result.quantized is None
    assert "not measured" in result.verdict[-1]
    assert [m.id for m in sent if isinstance(m, protocol.Phase)] == ["check", "quantize", "save"]
    assert not any(isinstance(m, protocol.Error) for m in sent)
    assert message.data["run_id"] == folder.name


@pytest.mark.parametrize(
    ("sections", "kind", "field"),
    [
        ({"model": ModelSection(id="/nowhere/at/all")}, "model_not_found", "model.id"),
        ({"scheme": W4A16(group_size=96)}, "layer_misfit", "scheme.group_size"),
        ({"layers": LayersSection(keep=("*",))}, "model_unsupported", None),
        ({"measure": MeasureSection(text=FileText(path="/nowhere.txt"))}, "recipe", "measure.text.path"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_of_the_model_is_written(
    tiny_folder, carry_out, sections, kind, field
):
    message, folder, sent = carry_out(recipe_for(tiny_folder, **sections))
    assert message.kind == kind
    assert message.hint
    if field is not None:
        assert message.field == field
    assert not (folder / "model").exists()
    assert [m.id for m in sent if isinstance(m, protocol.Phase)] == ["check"]


@pytest.mark.parametrize("phase", ["quantize", "measure_original"])
def test_cancelled_in_any_phase_nothing_of_the_model_stays(tiny_folder, carry_out, phase):
    message, folder, _ = carry_out(recipe_for(tiny_folder, SMALL), cancel_at=phase)
    assert isinstance(message, protocol.CancelledMessage)
    assert run_store.read_header(folder).status is Status.CANCELLED
    assert [path.name for path in folder.iterdir() if path.name.startswith("model")] == []


def test_when_only_measuring_fails_the_model_is_kept_and_the_error_says_where(tiny_folder, carry_out, monkeypatch):
    def fail(spec, reporter, on_quality):
        raise OutOfMemory("Memory ran out.", hint="Use a shorter window.")

    monkeypatch.setattr(pipeline, "measure_isolated", fail)
    message, folder, sent = carry_out(recipe_for(tiny_folder, SMALL))
    check_model(folder / "model")
    assert message.kind == "out_of_memory"
    assert message.hint.startswith("Use a shorter window.")
    assert str(folder / "model") in message.hint
    assert any(isinstance(m, protocol.Artifact) and m.kind == "model" for m in sent)
    assert run_store.read_header(folder).status is Status.FAILED


def test_when_measuring_fails_for_no_known_reason_the_model_is_kept_too(tiny_folder, carry_out, monkeypatch):
    monkeypatch.setattr(pipeline, "measure_isolated", lambda *_: 1 // 0)
    message, folder, sent = carry_out(recipe_for(tiny_folder, SMALL))
    check_model(folder / "model")
    assert message.kind == "internal"
    assert any("only its numbers are missing" in m.text for m in sent if isinstance(m, protocol.Notice))


def test_a_disk_that_fills_while_saving_leaves_nothing_of_the_model(tiny_folder, carry_out, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("quantstudio.core.disk.flush_file", full)
    message, folder, _ = carry_out(recipe_for(tiny_folder))
    assert message.kind == "disk"
    assert "full" in message.what
    assert [path.name for path in folder.iterdir() if path.name.startswith("model")] == []


def test_one_model_measured_by_itself(tiny_folder):
    sent = []
    job = MeasureJob(model=str(tiny_folder), measure=SMALL, machine=CPU)
    message = conduct(job, sent.append, threading.Event())
    assert isinstance(message, protocol.Result), message
    assert message.data["model_name"] == "tiny-llama"
    assert message.data["performance"]["threads"] == 1
    assert message.data["perplexity"]["low"] < message.data["perplexity"]["value"]
    assert [m.id for m in sent if isinstance(m, protocol.Phase)] == ["check", "measure", "quality"]


CONDUCT = """
import sys, threading
from quantstudio.core import protocol
from quantstudio.core.jobs import RunJob
from quantstudio.core.recipe_io import load_recipe
from pathlib import Path
from quantstudio.engine.conduct import conduct

folder = Path(sys.argv[1])
job = RunJob(recipe=load_recipe(folder / "recipe.toml"), run_folder=str(folder))
print(type(conduct(job, lambda message: sys.stdout.buffer.write(protocol.encode(message)) and sys.stdout.flush(),
                   threading.Event())))
"""


def test_a_worker_killed_at_work_leaves_no_model(tiny_folder, tmp_path):
    """A real process, killed for real; the next start of the program puts the rest in order.

    One that is killed while it measures: `test_in_worker`.
    """
    folder = run_store.create_run(tmp_path / "runs", recipe_for(tiny_folder, SMALL))
    process = subprocess.Popen([sys.executable, "-c", CONDUCT, str(folder)], stdout=subprocess.PIPE)
    for line in process.stdout:
        message = protocol.decode(line)
        if isinstance(message, protocol.Phase) and message.id == "quantize":
            break
    assert run_store.read_header(folder).status is Status.RUNNING
    process.kill()
    process.wait()
    process.stdout.close()

    assert run_store.read_header(folder).status is Status.FAILED
    assert replay(run_store.read_messages(folder)).error.kind == "worker_lost"
    after = run_store.create_run(tmp_path / "runs", recipe_for("/nowhere/at/all"))
    conduct(
        RunJob(recipe=recipe_for("/nowhere/at/all"), run_folder=str(after)), lambda message: None, threading.Event()
    )
    assert [path.name for path in folder.iterdir() if path.name.startswith("model")] == []
