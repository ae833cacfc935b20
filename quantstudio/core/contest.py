"""The honest comparison: several ways to the same size, measured on the same held-out text, and what to conclude.

The engine makes the models and scores them; here are the values it fills in, and the rules by which numbers become
words. All differences are paired: two models are compared on the very same windows of text. A difference whose 95 %
interval contains zero decides nothing, and then the cheaper way is recommended.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from quantstudio.core.humanize import plural
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import PRESET_STEPS, FineTune, Qat
from quantstudio.core.result import Interval

CONTEST_VERSION = 1
CONTEST_FILE = "contest.json"


class Contestant(StrEnum):
    """The ways to a smaller model, cheapest first: the ids of their methods, and the original."""

    ORIGINAL = "original"
    RTN = "rtn"
    HQQ = "hqq"
    GPTQ = "gptq"
    AWQ = "awq"
    FINE_TUNE = "finetune_gptq"
    QAT = "qat"


TITLES = {
    Contestant.ORIGINAL: "Original",
    Contestant.RTN: "Round to nearest",
    Contestant.HQQ: "HQQ",
    Contestant.GPTQ: "GPTQ",
    Contestant.AWQ: "AWQ",
    Contestant.FINE_TUNE: "Fine-tune, then GPTQ",
    Contestant.QAT: "QAT",
}
_IN_SENTENCES = {Contestant.RTN: "round to nearest", Contestant.FINE_TUNE: "the fine-tune followed by GPTQ"}
CALIBRATED = (Contestant.HQQ, Contestant.GPTQ, Contestant.AWQ)
TRAINED = (Contestant.FINE_TUNE, Contestant.QAT)
QUANTIZED = tuple(contestant for contestant in Contestant if contestant is not Contestant.ORIGINAL)


class Verdict(StrEnum):
    """What the interval of a paired difference says of the first of two."""

    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot_tell"


VERDICT_WORDS = {Verdict.BETTER: "better", Verdict.WORSE: "worse", Verdict.CANNOT_TELL: "cannot tell"}


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Row(_Plain):
    """One contestant and what was measured of it on the held-out text."""

    contestant: Contestant
    title: str
    run_folder: str = ""
    """Absolute path of its run folder, whose `model` can be used; empty for the original."""
    nbytes: int
    """Bytes of all weights."""
    bits_per_weight: float
    """Stored bits per weight of the layers, scales counted; 16 for the original."""
    seconds: float
    """What it took to make, without measuring."""
    perplexity: Interval
    perplexity_change: Interval
    """Relative to the original, paired: 0.05 is 5 % higher (worse)."""
    kl: Interval
    """Mean KL divergence from the original, nats; all 0 for the original."""
    recovered: Interval | None = None
    """Share of round-to-nearest's perplexity gap that is closed, paired. None for the original and round-to-nearest,
    and withheld when the gap itself is within noise (`Contest.gap_is_noise`)."""


class Failed(_Plain):
    """A contestant that could not be made, with what its run said. The others are compared all the same."""

    contestant: Contestant
    why: str


class Pair(_Plain):
    """Two contestants compared on the same windows."""

    first: Contestant
    second: Contestant
    difference: Interval
    """Relative difference of perplexity, first against second: −0.02 is 2 % lower (better)."""
    verdict: Verdict


class Contest(_Plain):
    """Result of a `ContestJob`, and `contest.json` in its folder."""

    version: int = CONTEST_VERSION
    model_name: str
    scheme: str
    recipe: Recipe
    text: str
    tokens: int
    windows: int
    rows: tuple[Row, ...]
    """The original first, then in the order of `Contestant`."""
    failed: tuple[Failed, ...] = ()
    pairs: tuple[Pair, ...]
    """Every two contestants, in the order of the rows."""
    gap: Interval
    """Perplexity of round-to-nearest minus the original's, paired."""
    gap_is_noise: bool
    best: Contestant
    """The one that is recommended."""
    recommendation: str
    """One or two sentences for a person."""

    def row(self, contestant: Contestant) -> Row | None:
        """The row of a contestant; None when it failed or did not take part."""
        return next((row for row in self.rows if row.contestant is contestant), None)

    def pair(self, first: Contestant, second: Contestant) -> Pair | None:
        """The comparison of `first` with `second`, turned around where it is kept the other way."""
        return find_pair(self.pairs, first, second)


def verdict_of(difference: Interval) -> Verdict:
    """Better when the whole interval of (first − second) / second lies below zero: lower perplexity."""
    if difference.high < 0:
        return Verdict.BETTER
    return Verdict.WORSE if difference.low > 0 else Verdict.CANNOT_TELL


def find_pair(pairs: Iterable[Pair], first: Contestant, second: Contestant) -> Pair | None:
    """The pair of two contestants, seen from the first."""
    for pair in pairs:
        if (pair.first, pair.second) == (first, second):
            return pair
        if (pair.first, pair.second) == (second, first):
            return _turned(pair)
    return None


def choose_best(rows: Iterable[Row], pairs: Iterable[Pair]) -> Contestant:
    """The cheapest quantized contestant to which no other is better beyond doubt, by the order of `Contestant`.

    Raises ValueError without a quantized contestant.
    """
    pairs = tuple(pairs)
    quantized = [row for row in rows if row.contestant is not Contestant.ORIGINAL]
    leader = min(quantized, key=lambda row: row.perplexity.value).contestant
    for contestant in QUANTIZED:
        if contestant == leader:
            break
        pair = find_pair(pairs, contestant, leader)
        if pair is not None and pair.verdict is not Verdict.WORSE:
            return contestant
    return leader


def contest_steps(recipe: Recipe) -> int:
    """Steps that each trained contestant of a contest with this recipe takes."""
    method = recipe.method
    return method.all_steps if isinstance(method, Qat | FineTune) else Qat().all_steps


def recommend(rows: tuple[Row, ...], pairs: tuple[Pair, ...], gap: Interval, steps: int) -> tuple[Contestant, str]:
    """What to take, and why, in words. `steps`: of each training."""
    best = choose_best(rows, pairs)
    by_id = {row.contestant: row for row in rows}
    if gap.low <= 0 <= gap.high and best is Contestant.RTN:
        return best, (
            "Take round to nearest: at this size its loss against the original is within noise, so there is nothing "
            "to win back."
        )
    return best, f"{_lead(best, by_id, pairs, steps)} {_reason(best, by_id)}".strip()


def _lead(best: Contestant, rows: dict[Contestant, Row], pairs: tuple[Pair, ...], steps: int) -> str:
    take = f"take {_name(best)}"
    if Contestant.QAT in rows and best is not Contestant.QAT:
        pair = find_pair(pairs, Contestant.QAT, best)
        how = "worse than" if pair and pair.verdict is Verdict.WORSE else "no better than"
        if pair and pair.verdict is Verdict.BETTER:  # only possible when something else beats them both
            how = "worse than another way and better than"
        longer = min((count for count in PRESET_STEPS.values() if count > steps), default=0)
        more = f" A longer training may be worth it: the next preset takes {longer:,} steps." if longer else ""
        after = f"after {plural(steps, 'step')} of training it is {how} {_name(best)}"
        return f"QAT is not worth it here, {take}: {after}.{more}"
    return f"{take[0].upper()}{take[1:]}."


def _reason(best: Contestant, rows: dict[Contestant, Row]) -> str:
    row = rows[best]
    change = row.perplexity_change
    parts = [f"Perplexity {row.perplexity.value:.2f}, {_signed_percent(change.value)} against the original"]
    if row.recovered is not None:
        parts.append(f"{row.recovered.value * 100:.0f} % of what rounding loses is won back")
    return "; ".join(parts) + "."


def _name(contestant: Contestant) -> str:
    return _IN_SENTENCES.get(contestant, TITLES[contestant])


def _signed_percent(share: float) -> str:
    return f"{share * 100:+.1f} %".replace("-", "−")


def _turned(pair: Pair) -> Pair:
    """1/(1 + d) − 1 turns a relative difference around, and with it the ends of its interval."""

    def turn(value: float) -> float:
        return 1 / (1 + value) - 1

    difference = pair.difference
    around = Interval(value=turn(difference.value), low=turn(difference.high), high=turn(difference.low))
    return Pair(first=pair.second, second=pair.first, difference=around, verdict=verdict_of(around))
