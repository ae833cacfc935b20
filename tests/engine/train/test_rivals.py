"""The best calibrated model of the same make becomes a line in a training's chart, measured anew; others do not."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch

from quantstudio.core import protocol, run_store
from quantstudio.core.jobs import RunJob
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_data import DataSection, FileData
from quantstudio.core.recipe_method import AnyMethod, Awq, Gptq, Hqq, Qat
from quantstudio.core.run_store import MODEL
from quantstudio.core.schemes import W2A16, W3A16
from quantstudio.engine.conduct import conduct
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.load import load_model
from quantstudio.engine.reporter import silent
from quantstudio.engine.train.rivals import calibrated_rivals


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Recipe:
    text = tmp_path / "text.txt"
    words = ["ship", "harbour", "evening", "letter", "garden", "winter", "answer", "silver", "window", "stone"]
    text.write_text(
        "\n\n".join(f"{words[i % 7]} {words[i % 10]} {i} {words[i * i % 9]}." for i in range(4000)), "utf-8"
    )
    data = DataSection(
        source=FileData(path=str(text)), sequence_length=32, calibration_sequences=16, held_out_sequences=8
    )
    return Recipe(
        model=ModelSection(id=str(tiny_folder)),
        scheme=W2A16(group_size=32),
        data=data,
        measure=MeasureSection(enabled=False),
        machine=MachineSection(device="cpu", threads=1),
    )


def carry_out(recipe: Recipe, home: Path, method: AnyMethod) -> tuple[Path, list[protocol.Message]]:

    chosen = recipe.model_copy(update={"method": method})
    folder = run_store.create_run(home, chosen)
    seen: list[protocol.Message] = []
    ending = conduct(RunJob(recipe=chosen, run_folder=str(folder)), seen.append, threading.Event())
    assert isinstance(ending, protocol.Result), ending
    return folder, seen


def perplexity(model: Path, recipe: Recipe) -> float:
    """Computed as plainly as can be."""
    loaded = load_model(model, "cpu", silent(), "reference")
    data = prepare_data(recipe.data, loaded.tokenizer, recipe.machine.seed, silent())
    with torch.no_grad():
        chances = loaded.model(input_ids=data.held_out).logits.float().log_softmax(-1)[:, :-1]
    loss = -chances.gather(-1, data.held_out[:, 1:, None]).squeeze(-1)
    return math.exp(float(loss[data.held_out_mask[:, 1:].bool()].mean()))


def test_the_best_calibrated_model_is_a_line_in_the_chart(recipe: Recipe, tmp_path: Path) -> None:
    home = tmp_path / "runs"
    gptq, _ = carry_out(recipe, home, Gptq())
    carry_out(recipe, home, Hqq())
    carry_out(recipe.model_copy(update={"scheme": W3A16(group_size=32)}), home, Awq())
    assert calibrated_rivals(recipe, home) == {"gptq": gptq / MODEL}
    _, seen = carry_out(recipe, home, Qat(steps=1, batch_sequences=2, evaluations=1))
    lines = {each.name: each.value for each in seen if isinstance(each, protocol.Metric) and "reference" in each.name}
    assert set(lines) == {"reference/original", "reference/rtn", "reference/gptq"}
    assert lines["reference/gptq"] == pytest.approx(perplexity(gptq / MODEL, recipe), rel=2e-3)  # bf16 logits
