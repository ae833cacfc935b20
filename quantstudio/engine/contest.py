"""Makes a model of one size in every way there is, and measures them all on the same held-out text.

Each contestant is an ordinary run in a folder of its own, so that the best can be used, and any can be looked at. One
that fails is named, and the others go on. Scoring comes last and for all alike: the same windows, the original beside
each, blocks of windows drawn again for all of them together, so that every difference is paired.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from quantstudio.core import protocol, run_store
from quantstudio.core.contest import (
    CONTEST_FILE,
    TITLES,
    Contest,
    Contestant,
    Failed,
    Pair,
    Row,
    contest_steps,
    recommend,
    verdict_of,
)
from quantstudio.core.disk import write_atomically
from quantstudio.core.errors import Cancelled, QuantStudioError
from quantstudio.core.first_layers import layers_kept
from quantstudio.core.jobs import ContestJob, RunJob
from quantstudio.core.library import resolve_model
from quantstudio.core.model_info import read_model_info
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import AnyMethod, Awq, FineTune, Gptq, Hqq, Qat, RoundToNearest
from quantstudio.core.result import Interval, RunResult
from quantstudio.engine.measure.bootstrap import Array, BlockSums, draw_totals, percentile_interval
from quantstudio.engine.reporter import Reporter

ANNOUNCED = (protocol.Progress, protocol.Notice, protocol.Metric, protocol.Memory, protocol.Sample, protocol.Log)
"""What a contestant's run says that is of interest outside it; its phases and its ending are not the contest's."""
_TRAINING_FIELDS = frozenset(Qat.model_fields) & frozenset(FineTune.model_fields) - {"kind"}

Conduct = Callable[[RunJob, Callable[[protocol.Message], None], threading.Event], protocol.Message]
"""`conduct.conduct`, handed in because it knows this module."""


@dataclass(frozen=True, slots=True)
class Made:
    """A contestant's finished run."""

    contestant: Contestant
    folder: Path
    result: RunResult
    seconds: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A contestant's sums over the same blocks of the same text."""

    contestant: Contestant
    sums: BlockSums


def run_contest(job: ContestJob, reporter: Reporter, conduct: Conduct) -> Contest:
    """Make and compare. `contest.json` is written beside each contestant's result.

    Raises what measuring raises, Cancelled, and the first contestant's error when every one failed.
    """
    recipe = job.recipe.model_copy(update={"measure": job.recipe.measure.model_copy(update={"enabled": False})})
    if layers_kept(recipe):
        recipe = recipe.model_copy(update={"method": recipe.method.model_copy(update={"keep_layers": 0})})
        reporter.notice("All layers are kept here: models of one size are compared.")
    contestants = [each for each in Contestant if each in job.contestants and each is not Contestant.ORIGINAL]
    made: list[Made] = []
    failed: list[Failed] = []
    for number, contestant in enumerate(contestants):
        reporter.phase(f"make_{contestant}", f"Making: {TITLES[contestant]}", number, len(contestants) + 1)
        outcome = _make(contestant, _recipe_for(recipe, contestant), Path(job.folder), reporter, conduct)
        if isinstance(outcome, Made):
            made.append(outcome)
            recipe = _with_the_same_bits(recipe, outcome.result.recipe)
        else:
            failed.append(outcome)
            reporter.notice(f"{TITLES[contestant]} takes no part: {outcome.why}", "warning")
    if not made:
        raise QuantStudioError("None of the ways gave a model.", why=failed[0].why if failed else "None was asked for.")
    reporter.phase("compare", "Comparing on held-out text", len(contestants), len(contestants) + 1)
    contest = compare(job.recipe, made, failed, reporter)
    for each in made:
        write_atomically(each.folder / CONTEST_FILE, contest.model_dump_json(indent=1) + "\n")
    return contest


def compare(recipe: Recipe, made: Sequence[Made], failed: Sequence[Failed], reporter: Reporter) -> Contest:
    """Score the original and every contestant on the recipe's evaluation text, and conclude.

    Contestants run as the recipe's machine section says: on its kernel, and with its key-value cache. The original
    keeps what it has read as it comes.
    """
    import torch

    from quantstudio.engine.load import load_model
    from quantstudio.engine.measure.environment import thread_count
    from quantstudio.engine.measure.quality import block_sums, quality_windows, score
    from quantstudio.engine.measure.text import read_text

    machine = recipe.machine
    torch.set_num_threads(thread_count(machine))
    info = read_model_info(resolve_model(recipe.model))
    text = read_text(recipe.measure.text, recipe.measure.quality_tokens)
    original = load_model(info.path, machine.device, reporter)
    windows = quality_windows(original, text, recipe.measure, machine.seed, reporter)
    scored = []
    for each in made:
        reporter.check_cancel()
        loaded = load_model(each.folder / run_store.MODEL, machine.device, reporter, machine.kernel)
        scores = score(original.model, loaded.model, windows, reporter, kv_cache=machine.kv_cache)
        scored.append(Scored(each.contestant, block_sums(scores)))
        del loaded
        gc.collect()
    figures = conclude(scored, machine.seed)
    rows = [_original_row(figures, made[0].result), *(_row(each, figures) for each in made)]
    best, words = recommend(tuple(rows), figures.pairs, figures.gap, contest_steps(recipe))
    return Contest(
        model_name=info.name,
        scheme=made[0].result.recipe.scheme.weight_spec().label,
        recipe=recipe,
        text=text.name,
        tokens=int(windows.scored.sum()),
        windows=len(windows.ids),
        rows=tuple(rows),
        failed=tuple(failed),
        pairs=figures.pairs,
        gap=figures.gap,
        gap_is_noise=figures.gap_is_noise,
        best=best,
        recommendation=words,
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that the scores tell, by contestant."""

    perplexity: dict[Contestant, Interval]
    change: dict[Contestant, Interval]
    kl: dict[Contestant, Interval]
    recovered: dict[Contestant, Interval]
    pairs: tuple[Pair, ...]
    gap: Interval
    gap_is_noise: bool


def conclude(scored: Sequence[Scored], seed: int) -> Figures:
    """Intervals of all contestants and of all differences, from blocks that are drawn again for all of them together.

    Without round to nearest there is no gap to recover: it counts as noise.
    """
    first = scored[0].sums
    columns = [first.tokens, first.nll_original]
    for each in scored:
        columns += [each.sums.nll, each.sums.kl]
    totals = draw_totals(np.stack(columns, axis=1), seed).T
    tokens, blocks = totals[0], len(first.tokens)
    loss = {Contestant.ORIGINAL: totals[1] / tokens}
    kl = {Contestant.ORIGINAL: np.zeros_like(tokens)}
    for place, each in enumerate(scored):
        loss[each.contestant] = totals[2 + 2 * place] / tokens
        kl[each.contestant] = totals[3 + 2 * place] / tokens

    def interval(values: Array) -> Interval:
        return percentile_interval(values, blocks)

    perplexity = {contestant: np.exp(values) for contestant, values in loss.items()}
    gaps = perplexity.get(Contestant.RTN, perplexity[Contestant.ORIGINAL]) - perplexity[Contestant.ORIGINAL]
    gap = interval(gaps)
    noise = gap.low <= 0 <= gap.high
    return Figures(
        perplexity={contestant: interval(values) for contestant, values in perplexity.items()},
        change={
            contestant: interval(np.expm1(values - loss[Contestant.ORIGINAL])) for contestant, values in loss.items()
        },
        kl={contestant: interval(values) for contestant, values in kl.items()},
        recovered={} if noise else _recovered(perplexity, gaps, interval),
        pairs=tuple(_pair(a, b, interval(np.expm1(loss[a] - loss[b]))) for a, b in combinations(loss, 2)),
        gap=gap,
        gap_is_noise=noise,
    )


def _recovered(
    perplexity: dict[Contestant, Array], gaps: Array, interval: Callable[[Array], Interval]
) -> dict[Contestant, Interval]:
    tried = [contestant for contestant in perplexity if contestant not in (Contestant.ORIGINAL, Contestant.RTN)]
    # A drawn gap can come near zero though the interval's ends do not; its share then says nothing, only its sign.
    usable = np.where(np.abs(gaps) < 1e-9, 1e-9, gaps)
    rounded = perplexity[Contestant.RTN]
    return {contestant: interval((rounded - perplexity[contestant]) / usable) for contestant in tried}


def _pair(first: Contestant, second: Contestant, difference: Interval) -> Pair:
    return Pair(first=first, second=second, difference=difference, verdict=verdict_of(difference))


def _make(contestant: Contestant, recipe: Recipe, home: Path, reporter: Reporter, conduct: Conduct) -> Made | Failed:
    folder = run_store.create_run(home, recipe)
    started = time.monotonic()

    def pass_on(message: protocol.Message) -> None:
        if isinstance(message, ANNOUNCED):
            reporter.emit(message)

    ending = conduct(RunJob(recipe=recipe, run_folder=str(folder)), pass_on, reporter.cancel)
    if isinstance(ending, protocol.Result):
        result = RunResult.model_validate(ending.data)
        return Made(contestant, folder, result, time.monotonic() - started)
    if isinstance(ending, protocol.Error):
        return Failed(contestant=contestant, why=f"{ending.what} {ending.why}".strip())
    raise Cancelled


def _recipe_for(recipe: Recipe, contestant: Contestant) -> Recipe:
    """The recipe with the contestant's method; fields that methods share are taken from the recipe's own."""
    name = f"{recipe.output.name} {TITLES[contestant]}" if recipe.output.name else ""
    return recipe.model_copy(
        update={
            "method": _method(contestant, recipe.method),
            "output": recipe.output.model_copy(update={"name": name}),
        }
    )


def _method(contestant: Contestant, mine: AnyMethod) -> AnyMethod:
    if mine.kind == contestant:
        return mine
    training = mine.model_dump(include=set(_TRAINING_FIELDS)) if isinstance(mine, Qat | FineTune) else {}
    match contestant:
        case Contestant.HQQ:
            return Hqq()
        case Contestant.GPTQ:
            return Gptq()
        case Contestant.AWQ:
            return Awq()
        case Contestant.FINE_TUNE:
            return FineTune(**training)
        case Contestant.QAT:
            return Qat(**training)
        case _:
            return RoundToNearest()


def _with_the_same_bits(recipe: Recipe, done: Recipe) -> Recipe:
    """Bits per layer that the first contestant's run has found from a target: all others get the very same."""
    return recipe.model_copy(update={"precision": done.precision})


def _original_row(figures: Figures, result: RunResult) -> Row:
    sizes = result.quantization.original_sizes
    original = Contestant.ORIGINAL
    return Row(
        contestant=original,
        title=TITLES[original],
        nbytes=sizes.total,
        bits_per_weight=16.0,
        seconds=0.0,
        perplexity=figures.perplexity[original],
        perplexity_change=figures.change[original],
        kl=figures.kl[original],
    )


def _row(made: Made, figures: Figures) -> Row:
    contestant, quantization = made.contestant, made.result.quantization
    return Row(
        contestant=contestant,
        title=TITLES[contestant],
        run_folder=str(made.folder),
        nbytes=quantization.sizes.total,
        bits_per_weight=quantization.layer_bits_per_weight,
        seconds=made.seconds,
        perplexity=figures.perplexity[contestant],
        perplexity_change=figures.change[contestant],
        kl=figures.kl[contestant],
        recovered=figures.recovered.get(contestant),
    )
