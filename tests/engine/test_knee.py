"""Before a run with few bits: warnings only where much is lost, and offers only of what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantstudio.core import protocol
from quantstudio.core.model_info import read_model_info
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_method import Hqq
from quantstudio.core.schemes import W2A16
from quantstudio.engine.pipeline import run_recipe
from quantstudio.engine.reporter import Reporter, silent
from quantstudio.engine.sensitivity import knee

CPU = MachineSection(device="cpu", threads=1)
RECIPE = Recipe(scheme=W2A16(group_size=32), machine=CPU, measure=MeasureSection(enabled=False))


@pytest.fixture(autouse=True)
def _little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knee, "JUDGED", 256)
    monkeypatch.setattr(knee, "FITTED", 1024)
    monkeypatch.setattr(knee, "LENGTH", 64)


def test_a_model_that_bears_the_bits_is_let_alone(tiny_folder: Path) -> None:
    """Random weights say nothing, so nothing is lost by rounding them."""
    assert knee.knee_warnings(read_model_info(tiny_folder), RECIPE, silent()) == []


@pytest.mark.parametrize("method", [RECIPE.method, Hqq()], ids=["rtn", "hqq"])
def test_below_the_knee_a_run_warns_and_offers(
    method: object, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knee, "KNEE_KL", 1e-6)  # as if the tiny model had something to lose
    model = ModelSection(id=str(tiny_folder))
    seen: list[protocol.Message] = []
    run_recipe(RECIPE.model_copy(update={"model": model, "method": method}), tmp_path, Reporter(seen.append))
    warnings = [each.text for each in seen if isinstance(each, protocol.Notice) and each.level == "warning"]
    assert "2 bits with groups of 32 are fewer than this model bears" in warnings[0]
    assert any("GPTQ measures better" in text for text in warnings)
    assert (tmp_path / "model" / "model.safetensors").is_file()
