"""What `best` and `sensitivity` print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantstudio.cli.best import contest_text, sensitivity_text
from quantstudio.cli.main import build_parser, run_command
from quantstudio.core.contest import Contest, Contestant, Failed, Pair, Row, Verdict
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_precision import AverageBits
from quantstudio.core.result import Interval
from quantstudio.core.sensitivity import LayerSensitivity, Option, Sensitivity, allot


def interval(value: float, half: float = 0.01) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def row(contestant: Contestant, perplexity: float, recovered: Interval | None = None) -> Row:
    return Row(
        contestant=contestant,
        title={"original": "Original", "rtn": "Round to nearest", "gptq": "GPTQ"}[contestant],
        run_folder="" if contestant is Contestant.ORIGINAL else f"/runs/{contestant}",
        nbytes=5_000_000,
        bits_per_weight=4.13,
        seconds=12.0,
        perplexity=interval(perplexity, 1),
        perplexity_change=interval(perplexity / 34 - 1),
        kl=interval(0.04),
        recovered=recovered,
    )


def contest(*, noise: bool) -> Contest:
    share = None if noise else interval(0.44, 0.05)
    pair = Pair(first=Contestant.RTN, second=Contestant.GPTQ, difference=interval(0.02, 0.005), verdict=Verdict.WORSE)
    return Contest(
        model_name="starter",
        scheme="W4A16 g128",
        recipe=Recipe(),
        text="built-in novels",
        tokens=32704,
        windows=64,
        rows=(row(Contestant.ORIGINAL, 34), row(Contestant.RTN, 36), row(Contestant.GPTQ, 35, share)),
        failed=(Failed(contestant=Contestant.AWQ, why="It broke."),),
        pairs=(pair,),
        gap=interval(2.0),
        gap_is_noise=noise,
        best=Contestant.GPTQ,
        recommendation="Take GPTQ.",
    )


def test_the_table_of_a_contest_says_what_was_found() -> None:
    text = contest_text(contest(noise=False))
    line = next(line for line in text.splitlines() if line.startswith("GPTQ"))
    assert "44 % (39 to 49)" in line
    assert "5 MB" in line
    assert "Round to nearest against GPTQ: worse (+2.00 % (+1.50 to +2.50))" in text
    assert "AWQ: not made. It broke." in text
    assert f"Take GPTQ.\nModel: {Path('/runs/gptq') / 'model'}" in text


def test_a_share_of_noise_is_withheld() -> None:
    text = contest_text(contest(noise=True))
    assert "withheld" in next(line for line in text.splitlines() if line.startswith("GPTQ"))
    assert "within noise" in text


def test_the_map_names_every_layer_with_its_bits() -> None:
    options = tuple(Option(bits=bits, nbytes=bits * 1000, kl=0.1 / 4**bits) for bits in (2, 3, 4, 8))
    layers = tuple(LayerSensitivity(name=f"layers.{number}.up", weights=8000, options=options) for number in range(2))
    measured = Sensitivity(
        model_name="toy",
        scheme="W4A16 g32",
        method="rtn",
        measured_as="each",
        tokens=2048,
        layers=layers,
        other_bytes=9,
    )
    allotted = allot(measured, AverageBits(average_bits=3.5))
    text = sensitivity_text(measured, allotted)
    assert sorted(allotted.bits.values()) == [3, 4]
    for name, bits in allotted.bits.items():
        assert text.count(name) == 1
        assert next(line for line in text.splitlines() if line.startswith(name)).split()[1] == str(bits)
    assert "(3.50 on average): 7.01 kB" in text


def test_saving_needs_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["sensitivity", "starter", "--save", str(tmp_path / "recipe.toml")]) == 1
    assert "--precision.kind average_bits" in capsys.readouterr().err
    assert not (tmp_path / "recipe.toml").exists()


def test_fields_of_the_recipe_are_flags() -> None:
    options = build_parser().parse_args(["best", "starter", "--scheme.kind", "w3a16", "--only", "rtn", "gptq"])
    assert vars(options)["scheme.kind"] == "w3a16"
    assert options.only == ["rtn", "gptq"]
