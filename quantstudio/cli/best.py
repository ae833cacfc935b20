"""`best` and `sensitivity`: what to do at a size, found out by measuring."""

from __future__ import annotations

import argparse
from pathlib import Path

from quantstudio.cli.flags import given_values, with_flags
from quantstudio.cli.run import FAILED, OK, conduct_here, ending, runs_folder
from quantstudio.core import protocol
from quantstudio.core.contest import QUANTIZED, TITLES, VERDICT_WORDS, Contest, Contestant, Row
from quantstudio.core.errors import RecipeError
from quantstudio.core.humanize import human_bytes, human_seconds
from quantstudio.core.jobs import ContestJob, SensitivityJob
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.recipe_io import recipe_to_toml
from quantstudio.core.recipe_precision import Uniform
from quantstudio.core.result import Interval
from quantstudio.core.sensitivity import Allotment, Sensitivity, advice, as_precision, bits_of, uniform


def best(options: argparse.Namespace) -> int:
    """Carry out a contest and print its table and its sentence."""
    recipe = _recipe(options)
    contestants = tuple(map(Contestant, options.only)) if options.only else QUANTIZED
    job = ContestJob(recipe=recipe, folder=str(runs_folder(options)), contestants=contestants)
    message = conduct_here(job)
    if not isinstance(message, protocol.Result):
        return ending(message)
    contest = Contest.model_validate(message.data)
    print(contest.model_dump_json(indent=2) if options.json else contest_text(contest))
    return OK


def sensitivity(options: argparse.Namespace) -> int:
    """Measure sensitivity and print the map; with a target, the bits that were allotted."""
    recipe = _recipe(options)
    if options.save and isinstance(recipe.precision, Uniform):
        raise RecipeError(
            "There is nothing to save: no target was given.",
            hint="Add one, for example --precision.kind average_bits --precision.average_bits 3.5.",
            field="precision.kind",
        )
    message = conduct_here(SensitivityJob(model=options.model, recipe=recipe))
    if not isinstance(message, protocol.Result):
        return ending(message)
    measured = Sensitivity.model_validate(message.data)
    allotted = bits_of(measured, recipe.precision, recipe.scheme.weight_spec().bits)
    print(measured.model_dump_json(indent=2) if options.json else sensitivity_text(measured, allotted))
    if options.save:
        saved = recipe.model_copy(update={"precision": as_precision(allotted)})
        options.save.write_text(recipe_to_toml(saved), encoding="utf-8")
        print(f"\nRecipe written to {options.save}")
    return OK if allotted.reached else FAILED


def contest_text(contest: Contest) -> str:
    """Table, pairwise verdicts and recommendation."""
    head = ("", "size", "bits/weight", "perplexity", "change", "KL divergence", "won back", "made in")
    lines = [head, *(_row_cells(row, contest) for row in contest.rows)]
    parts = [
        f"\n{contest.model_name} {contest.scheme}, {contest.tokens:,} tokens of {contest.text}",
        "",
        *_table(lines),
    ]
    parts += [f"{TITLES[each.contestant]}: not made. {each.why}" for each in contest.failed]
    if contest.gap_is_noise:
        parts.append("What rounding loses is within noise, so no share of it is given as won back.")
    parts += ["", "Perplexity, each against each (95 % intervals, same windows of text):"]
    for pair in contest.pairs:
        first, second = TITLES[pair.first], TITLES[pair.second]
        parts.append(f"  {first} against {second}: {VERDICT_WORDS[pair.verdict]} ({_percents(pair.difference)})")
    winner = contest.row(contest.best)
    parts += ["", contest.recommendation]
    if winner:
        parts.append(f"Model: {Path(winner.run_folder) / 'model'}")
    return "\n".join(parts)


def sensitivity_text(measured: Sensitivity, allotted: Allotment) -> str:
    """The map: one line for each layer, with its bits and what each number of bits would cost it."""
    bits = sorted({option.bits for layer in measured.layers for option in layer.options})
    lines = [("layer", "bits", *(f"KL at {each}" for each in bits))]
    for layer in measured.layers:
        losses = {option.bits: f"{option.kl:.5f}" for option in layer.options}
        lines.append((layer.name, str(allotted.bits[layer.name]), *(losses.get(each, "–") for each in bits)))
    how = "each layer by itself" if measured.measured_as == "each" else "from gradients"
    parts = [f"\n{measured.model_name} {measured.scheme}: {how}, {measured.tokens:,} tokens of calibration text, nats"]
    parts += ["", *_table(lines), ""]
    for each in bits:
        alike = uniform(measured, each)
        parts.append(f"  {each} bits in every layer: {human_bytes(alike.nbytes)}, predicted KL {alike.kl:.4f}")
    parts.append(
        f"  as in the column 'bits' ({allotted.average_bits:.2f} on average): {human_bytes(allotted.nbytes)}, "
        f"predicted KL {allotted.kl:.4f}"
    )
    if not allotted.reached:
        parts.append("The target cannot be met; this is the nearest.")
    return "\n".join([*parts, *advice(measured, allotted)])


def _recipe(options: argparse.Namespace) -> Recipe:
    return with_flags(preset_recipe(Preset.RECOMMENDED, ModelSection(id=options.model)), given_values(options))


def _row_cells(row: Row, contest: Contest) -> tuple[str, ...]:
    original = row.contestant is Contestant.ORIGINAL
    recovered = "–"
    if row.recovered is not None:
        low, high = (f"{end * 100:.0f}" for end in (row.recovered.low, row.recovered.high))
        recovered = f"{row.recovered.value * 100:.0f} % ({low} to {high})"
    elif contest.gap_is_noise and row.contestant not in (Contestant.ORIGINAL, Contestant.RTN):
        recovered = "withheld"
    return (
        row.title,
        human_bytes(row.nbytes),
        f"{row.bits_per_weight:.2f}",
        _numbers(row.perplexity),
        "–" if original else _percents(row.perplexity_change),
        "–" if original else _numbers(row.kl),
        recovered,
        "–" if original else human_seconds(row.seconds),
    )


def _numbers(interval: Interval) -> str:
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def _percents(interval: Interval) -> str:
    value, low, high = (f"{share * 100:+.2f}" for share in (interval.value, interval.low, interval.high))
    return f"{value} % ({low} to {high})"


def _table(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return [
        "  ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
