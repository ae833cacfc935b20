"""Methods that learn from text: the window's work, killed, and the terminal's that goes on with it give the same bytes.

A kill without warning between two blocks, and what is half done then: `test_calibrate`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from quantstudio.cli.main import run_command
from quantstudio.client.run_queue import RunQueue
from quantstudio.core import run_store
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_data import DataSection, FileData
from quantstudio.core.recipe_io import recipe_to_toml
from quantstudio.core.recipe_method import AnyMethod, Gptq, Qat
from quantstudio.core.run_state import Status
from quantstudio.core.schemes import W4A16

LONG_MS = 120_000
WORDS = ["ship", "harbour", "evening", "letter", "garden", "winter", "answer", "silver", "window", "stone"]
METHODS: dict[str, AnyMethod] = {
    "gptq": Gptq(),
    "qat": Qat(steps=3, batch_sequences=4, evaluations=3, learning_rate=1e-3),
}
FINISHED = {"gptq": "work/calibrated/block.0.safetensors", "qat": "work/training/checkpoint"}
"""What is there once a part of the work is finished, and never before."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    chance = random.Random(1)  # noqa: S311 - words, no secret
    path.write_text("\n\n".join(" ".join(chance.choices(WORDS, k=60)) for _ in range(700)), encoding="utf-8")
    return path


@pytest.fixture
def recipe(method: str, tiny_folder: Path, text: Path) -> Recipe:
    return Recipe(
        model=ModelSection(id=str(tiny_folder)),
        scheme=W4A16(group_size=32),
        method=METHODS[method],
        data=DataSection(
            source=FileData(path=str(text)), sequence_length=64, calibration_sequences=200, held_out_sequences=8
        ),
        measure=MeasureSection(enabled=False),
        machine=MachineSection(device="cpu", threads=1),
    )


@pytest.fixture
def queue(qtbot: QtBot) -> Iterator[RunQueue]:
    """A queue with real workers."""
    runs = RunQueue()
    yield runs
    runs.shutdown()


def wait_for_end(qtbot: QtBot, queue: RunQueue, run_id: str) -> None:
    qtbot.waitUntil(lambda: queue.active is None and queue.state(run_id).status.final, timeout=LONG_MS)


def fingerprints(folder: Path) -> dict[str, str]:
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


@pytest.mark.parametrize("method", METHODS)
def test_what_the_window_began_and_the_terminal_finished_has_the_bytes_of_a_whole_run(
    method: str, recipe: Recipe, queue: RunQueue, qtbot: QtBot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe), encoding="utf-8")
    terminal = tmp_path / "terminal"
    assert run_command(["run", str(tmp_path / "recipe.toml"), "--runs-folder", str(terminal)]) == 0
    (made,) = terminal.glob("*/model")
    expected = fingerprints(made)
    assert "model.safetensors" in expected

    killed = queue.add(recipe, tmp_path / "window")
    folder = queue.folder(killed)
    qtbot.waitUntil((folder / FINISHED[method]).exists, timeout=LONG_MS)
    queue.kill(killed)
    wait_for_end(qtbot, queue, killed)
    state = queue.state(killed)
    assert state.status is Status.CANCELLED
    assert ("eval/perplexity" in state.metrics) is (method == "qat")
    assert not (folder / "model").exists()
    assert run_command(["resume", killed, "--runs-folder", str(folder.parent)]) == 0
    assert fingerprints(folder / "model") == expected
    assert run_store.read_header(folder).status is Status.DONE
    capsys.readouterr()
