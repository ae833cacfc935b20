"""The honest comparison: its arithmetic by hand, and a contest of real runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantstudio.core import protocol, run_store
from quantstudio.core.contest import CONTEST_FILE, Contest, Contestant, Verdict
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.jobs import ContestJob, RunJob
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.schemes import W4A16
from quantstudio.engine import load
from quantstudio.engine.conduct import conduct
from quantstudio.engine.contest import Made, Scored, compare, conclude, run_contest
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.measure.bootstrap import BlockSums, quality_intervals
from quantstudio.engine.reporter import Reporter, silent

ORIGINAL, RTN, HQQ, GPTQ = Contestant.ORIGINAL, Contestant.RTN, Contestant.HQQ, Contestant.GPTQ


def sums(extra: float, noise: float = 0.0, seed: int = 0) -> BlockSums:
    """64 blocks of 100 tokens; each token `extra` nats worse than the original on average."""
    chance = np.random.default_rng(7)
    tokens = np.full(64, 100.0)
    original = tokens * chance.normal(3.5, 0.3, 64)
    worse = tokens * (extra + noise * np.random.default_rng(seed).normal(0, 1, 64))
    return BlockSums(tokens, tokens * 4, original, original + worse, tokens * 0.02, tokens * 0.9)


def test_one_contestant_gets_the_intervals_of_an_ordinary_run() -> None:
    scored = sums(0.05, 0.02)
    figures, ordinary = conclude([Scored(RTN, scored)], 3), quality_intervals(scored, 3)
    for mine, other in (
        (figures.perplexity[RTN], ordinary.perplexity),
        (figures.perplexity[ORIGINAL], ordinary.original_perplexity),
        (figures.kl[RTN], ordinary.kl),
    ):
        # The same blocks are drawn; only the order of the additions in the product differs.
        assert (mine.value, mine.low, mine.high) == pytest.approx((other.value, other.low, other.high), rel=1e-9)
    assert figures.change[RTN].value == pytest.approx(ordinary.perplexity_change.value)


def test_half_of_the_gap_is_half_and_pairs_decide_what_single_intervals_cannot() -> None:
    rounded = sums(0.06, 0.005, seed=1)
    half = replace(rounded, nll=(rounded.nll + rounded.nll_original) / 2)
    figures = conclude([Scored(RTN, rounded), Scored(GPTQ, half)], 0)
    # The perplexity is exponential in the loss, so half the loss is a little more than half of the gap.
    assert figures.recovered[GPTQ].value == pytest.approx(0.5, abs=0.02)
    assert figures.recovered[GPTQ].low > 0.48
    assert not figures.gap_is_noise
    verdicts = {(pair.first, pair.second): pair.verdict for pair in figures.pairs}
    assert verdicts == {(ORIGINAL, RTN): Verdict.BETTER, (ORIGINAL, GPTQ): Verdict.BETTER, (RTN, GPTQ): Verdict.WORSE}
    assert figures.perplexity[RTN].low < figures.perplexity[GPTQ].value  # apart, their intervals overlap


def test_what_is_recovered_is_withheld_when_the_gap_is_noise() -> None:
    figures = conclude([Scored(RTN, sums(0.0, 0.02, seed=1)), Scored(GPTQ, sums(-0.01, 0.02, seed=2))], 0)
    assert figures.gap_is_noise
    assert figures.recovered == {}


def fail_all_but_rounding(message: str) -> Callable[..., protocol.Message]:
    def carry_out(job: RunJob, sink: Callable[[protocol.Message], None], cancel: threading.Event) -> protocol.Message:
        if job.recipe.method.kind == "rtn":
            return conduct(job, sink, cancel)
        return protocol.Error(kind="internal", what=message)

    return carry_out


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path) -> Recipe:
    return Recipe(
        model=ModelSection(id=str(tiny_folder)),
        scheme=W4A16(group_size=32),
        measure=MeasureSection(quality_tokens=1024, window=64),
        machine=MachineSection(device="cpu", threads=1, kernel="dequantized"),
    )


@pytest.fixture(scope="module")
def contest(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Contest:
    job = ContestJob(recipe=recipe, folder=str(tmp_path_factory.mktemp("contest")), contestants=(HQQ, RTN))
    return run_contest(job, silent(), fail_all_but_rounding("It broke."))


def test_a_contest_of_runs(contest: Contest) -> None:
    assert [row.contestant for row in contest.rows] == [ORIGINAL, RTN]
    assert [(each.contestant, each.why) for each in contest.failed] == [(HQQ, "It broke.")]
    rounded = contest.row(RTN)
    assert rounded is not None
    assert rounded.kl.low > 0
    assert rounded.nbytes < contest.rows[0].nbytes
    folder = Path(rounded.run_folder)
    assert (folder / "model" / "model.safetensors").is_file()
    assert Contest.model_validate_json((folder / CONTEST_FILE).read_bytes()) == contest
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "done"


def test_contestants_run_on_the_kernel_and_with_the_cache_that_the_recipe_asks_for(
    contest: Contest, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: list[set[str]] = []

    def load_and_note(folder: Path, device: str, reporter: Reporter, kernel: str = "auto") -> LoadedModel:
        loaded = load_model(folder, device, reporter, kernel)
        kernels.append(set(loaded.kernels))
        return loaded

    monkeypatch.setattr(load, "load_model", load_and_note)
    rounded = contest.row(RTN)
    assert rounded is not None
    folder = Path(rounded.run_folder)
    made = Made(RTN, folder, run_store.read_result(folder), 1.0)

    def kl(**how: str) -> float:
        machine = MachineSection(**recipe.machine.model_dump() | how)
        return compare(recipe.model_copy(update={"machine": machine}), [made], [], silent()).rows[1].kl.value

    assert kl(kv_cache="int8") > rounded.kl.value * 1.0001  # the cache's own error comes on top, and is small
    kl(kernel="cpu_int4")
    originals, contestants = kernels[::2], kernels[1::2]
    assert originals == [{"bf16"}, {"bf16"}]
    assert ["dequantized" in each for each in contestants] == [True, False]


def test_when_nobody_finishes_there_is_an_error_and_no_table(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=ModelSection(id=str(tiny_folder)))
    job = ContestJob(recipe=recipe, folder=str(tmp_path), contestants=(HQQ,))
    with pytest.raises(QuantStudioError, match="None of the ways"):
        run_contest(job, silent(), fail_all_but_rounding("It broke."))
