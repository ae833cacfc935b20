"""Finished runs side by side: the one table behind the window, the terminal, the CSV file and the HTML report.

Runs are grouped by the model they started from, because a ratio against another model's original would mean nothing.
Within a group each run is held against the original *as measured in that same run*, before and after it, so a
machine that was busy on Tuesday does not make Tuesday's run look slow. The row of the original pools all of them.

A difference counts only when the spreads (timings) or the 95 % intervals (quality) stay apart; otherwise the cell is
marked uncertain. Overlapping ranges are a stricter test than a paired one; that is the side to err on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from quantstudio.core.humanize import human_bytes, human_count, human_rate, human_seconds, plural
from quantstudio.core.result import Interval, Performance, Quality, RunResult, Sizes, Spread


class Better(StrEnum):
    """Which end of a column is the good one."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class Column:
    """One measured quantity. `id` is stable (it heads the CSV column); the other texts are for people."""

    id: str
    title: str
    help: str
    better: Better
    words: tuple[str, str] = ("", "")
    """What a value `n×` better or worse than the original is called: `("smaller", "larger")`. Empty: no ratio."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of the table. `value`, `low` and `high` are in the unit of `RunResult`; None: not measured."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    text: str = "–"
    detail: str = ""
    """Second line: the ratio to the original or the 95 % interval."""
    ratio: float | None = None
    """Value divided by the original's, as measured in the same run."""
    uncertain: bool = False
    """The difference to the original is within the noise."""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """The original (`run_id` empty) or one run."""

    run_id: str
    name: str
    label: str
    cells: dict[str, Cell]
    sizes: Sizes
    verdict: tuple[str, ...] = ()

    @property
    def is_original(self) -> bool:
        return not self.run_id


@dataclass(frozen=True, slots=True)
class Comparison:
    """The runs of one original model, the original first."""

    model_name: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    conditions: str
    """How it was measured, in one line."""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know before comparing (other machine, other text …)."""

    @property
    def runs(self) -> tuple[Row, ...]:
        """The rows without the original."""
        return self.rows[1:]


_SMALL, _FAST, _QUICK = ("smaller", "larger"), ("faster", "slower"), ("less", "more")
COLUMNS: tuple[Column, ...] = (
    Column("size", "Size", "Bytes of the weight files.", Better.LOWER, _SMALL),
    Column("weights", "Weights", "Number of weights; shown where a run has removed layers.", Better.LOWER, _SMALL),
    Column(
        "bits",
        "Bits per weight",
        "Stored bits per weight of the quantized layers, scales included, read off the files.",
        Better.LOWER,
    ),
    Column(
        "memory", "Peak memory", "Peak memory of a fresh process that loads and runs the model.", Better.LOWER, _QUICK
    ),
    Column("gpu_memory", "GPU memory", "Peak memory on the GPU.", Better.LOWER, _QUICK),
    Column("load", "Load time", "Time until the model is ready to answer.", Better.LOWER, _FAST),
    Column("ttft", "First token", "Time to first token: from the prompt to the first word.", Better.LOWER, _FAST),
    Column("prompt_tps", "Prompt speed", "Tokens of the prompt read per second.", Better.HIGHER, _FAST),
    Column("decode_tps", "Answer speed", "Tokens of the answer written per second.", Better.HIGHER, _FAST),
    Column(
        "perplexity",
        "Perplexity",
        "How surprised the model is by the evaluation text; lower is better. With its 95 % interval.",
        Better.LOWER,
    ),
    Column(
        "change",
        "Change",
        "Perplexity against the original on the same text, with the paired 95 % interval.",
        Better.LOWER,
    ),
    Column("bits_per_byte", "Bits per byte", "Loss per byte of text; comparable across tokenizers.", Better.LOWER),
    Column(
        "kl",
        "KL divergence",
        "How far the predicted probabilities moved from the original's, in nats; 0 is identical.",
        Better.LOWER,
    ),
    Column("top1", "Same top word", "How often both models pick the same likeliest next token.", Better.HIGHER),
)
NEAR = 0.12
"""Medians that lie closer than this and whose ranges overlap are called equal; farther apart, nothing can be said."""
SAME = 0.03
"""Medians closer than this are called the same even when their ranges stay apart or were not measured."""
_COUNTED = frozenset({"size", "weights", "bits"})
"""Columns that are exact: any difference in them is one."""
_PERCENT = " %"
_UNSTEADY = 0.1
"""From this relative difference between the originals of two runs on, their times are not comparable."""
QUALITY_COLUMNS = frozenset({"perplexity", "change", "bits_per_byte", "kl", "top1"})


def compare(results: Sequence[RunResult]) -> tuple[Comparison, ...]:
    """Group finished runs by their original model (name and size), in the order given; one table for each group."""
    groups: dict[tuple[str, int], list[RunResult]] = {}
    for result in results:
        key = (result.model_name, result.quantization.original_sizes.total)
        groups.setdefault(key, []).append(result)
    return tuple(_comparison(group) for group in groups.values())


def baseline(result: RunResult) -> Performance | None:
    """The original as measured before and after the quantized model, as one; None when it was not measured."""
    measured = [part for part in (result.original_first, result.original_last) if part is not None]
    return pool(measured) if measured else None


def pool(parts: Sequence[Performance]) -> Performance:
    """Several measurements of one model as one: trials pooled, the highest peak, the mean load time."""
    return parts[0].model_copy(
        update={
            "load_s": statistics.fmean(part.load_s for part in parts),
            "peak_rss": max(part.peak_rss for part in parts),
            "peak_cuda": max(part.peak_cuda for part in parts),
            "ttft_s": _pool_spreads([part.ttft_s for part in parts]),
            "prompt_tps": _pool_spreads([part.prompt_tps for part in parts]),
            "decode_tps": _pool_spreads([part.decode_tps for part in parts]),
        }
    )


def _pool_spreads(spreads: Sequence[Spread]) -> Spread:
    trials = tuple(value for spread in spreads for value in spread.trials)
    if len(trials) < 2:
        return Spread(
            median=statistics.median(spread.median for spread in spreads),
            low=min(spread.low for spread in spreads),
            high=max(spread.high for spread in spreads),
            trials=trials,
        )
    low, median, high = statistics.quantiles(trials, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high, trials=trials)


def _comparison(results: Sequence[RunResult]) -> Comparison:
    rows = [_original_row(results), *(_run_row(result) for result in results)]
    if any(result.quantization.removed_layers for result in results):
        rows = _with_weights(rows, results)
    columns = tuple(column for column in COLUMNS if any(row.cells[column.id].value is not None for row in rows))
    for column in columns:
        _mark_best(rows, column)
    return Comparison(
        model_name=results[0].model_name,
        rows=tuple(rows),
        columns=columns,
        conditions=_conditions(results[0]),
        notes=_notes(results),
    )


def _with_weights(rows: Sequence[Row], results: Sequence[RunResult]) -> list[Row]:
    """The rows with the numbers of their weights, which are all the same unless a run removes layers."""
    before = next(made.original_parameters for result in results if (made := result.quantization).removed_layers)
    counts = [before, *(result.quantization.parameters or before for result in results)]
    cells = [Cell(count, text=human_count(count)) for count in counts]
    weights = [cells[0], *(_versus(cell, cells[0], "weights") for cell in cells[1:])]
    return [replace(row, cells=row.cells | {"weights": cell}) for row, cell in zip(rows, weights, strict=True)]


def _original_row(results: Sequence[RunResult]) -> Row:
    measured = [part for result in results if (part := baseline(result)) is not None]
    sizes = results[0].quantization.original_sizes
    bits = _original_bits(results)
    cells = _performance_cells(pool(measured) if measured else None, None)
    cells |= _original_quality([result.quality for result in results if result.quality is not None])
    cells |= {"size": _bytes(sizes.total), "bits": Cell() if bits is None else Cell(bits, text=f"{bits:g}")}
    return Row("", results[0].model_name, "Original", _complete(cells), sizes)


def _run_row(result: RunResult) -> Row:
    made = result.quantization
    bits = made.layer_bits_per_weight
    cells = _performance_cells(result.quantized, baseline(result)) | _quality_cells(result.quality)
    cells |= {
        "size": _versus(_bytes(made.sizes.total), _bytes(made.original_sizes.total), "size"),
        "bits": Cell(bits, text=f"{bits:.2f}"),
    }
    return Row(result.run_id, _name_beside_original(result), made.label, _complete(cells), made.sizes, result.verdict)


def _name_beside_original(result: RunResult) -> str:
    """The run's name without its model's, which stands over the original: what differs must not be cut off."""
    return result.name.removeprefix(f"{result.model_name} ") or result.name


def _complete(cells: dict[str, Cell]) -> dict[str, Cell]:
    return {column.id: cells.get(column.id, Cell()) for column in COLUMNS}


def _performance_cells(performance: Performance | None, original: Performance | None) -> dict[str, Cell]:
    if performance is None:
        return {}
    cells = _plain_performance(performance)
    if original is None:
        return cells
    against = _plain_performance(original)
    return {name: _versus(cell, against.get(name, Cell()), name) for name, cell in cells.items()}


def _plain_performance(performance: Performance) -> dict[str, Cell]:
    cells = {
        "memory": _bytes(performance.peak_rss),
        "load": Cell(performance.load_s, text=human_seconds(performance.load_s)),
        "ttft": _spread(performance.ttft_s, human_seconds),
        "prompt_tps": _spread(performance.prompt_tps, human_rate),
        "decode_tps": _spread(performance.decode_tps, human_rate),
    }
    return cells | ({"gpu_memory": _bytes(performance.peak_cuda)} if performance.peak_cuda else {})


def _quality_cells(quality: Quality | None) -> dict[str, Cell]:
    if quality is None:
        return {}
    change = quality.perplexity_change
    uncertain = change.low <= 0.0 <= change.high
    return {
        "perplexity": replace(_interval(quality.perplexity, _plain_number), uncertain=uncertain),
        "change": replace(_interval(change, signed_percent), uncertain=uncertain),
        "bits_per_byte": replace(_interval(quality.bits_per_byte, _three_digits), uncertain=uncertain),
        "kl": _interval(quality.kl, _three_digits),
        "top1": _interval(quality.top1, _percent),
    }


def _original_quality(qualities: Sequence[Quality]) -> dict[str, Cell]:
    if not qualities:
        return {}
    return {
        "perplexity": _interval(qualities[0].original_perplexity, _plain_number),
        "bits_per_byte": _interval(qualities[0].original_bits_per_byte, _three_digits),
    }


def _versus(cell: Cell, original: Cell, name: str) -> Cell:
    """The cell with its ratio to the original; uncertain when the ranges of the two overlap."""
    if cell.value is None or not original.value or not cell.value:
        return cell
    column = next(column for column in COLUMNS if column.id == name)
    ratio = cell.value / original.value
    uncertain = cell.low is not None and _overlap(cell, original)
    return replace(cell, ratio=ratio, uncertain=uncertain, detail=ratio_words(ratio, column))


def ratio_words(ratio: float, column: Column) -> str:
    """`2.6× faster`, `8 % less`, `same`: a ratio to the original, said so that bigger always means more of it."""
    improved = ratio < 1 if column.better is Better.LOWER else ratio > 1
    times = max(ratio, 1 / ratio)
    if times < 1.005:
        return "same"
    word = column.words[0 if improved else 1]
    if times < 1.195:
        return f"{max(1, round(abs(ratio - 1) * 100))} % {word}"
    return f"{times:.{2 if times < 1.995 else 1}f}× {word}"


def _mark_best(rows: list[Row], column: Column) -> None:
    """Mark the best of a column and all that equal it; nobody when that is everybody, or when noise hides who it is."""
    # Quality is a matter of closeness to the original, which would always win against itself. Perplexities share the
    # luck of the text, so they are judged by their paired change.
    judged = "change" if column.id in ("perplexity", "bits_per_byte") else column.id
    candidates = [
        (index, row.cells[judged])
        for index, row in enumerate(rows)
        if row.cells[column.id].value is not None and not (column.id in QUALITY_COLUMNS and row.is_original)
    ]
    if len(candidates) < 2:
        return
    pick = min if column.better is Better.LOWER else max
    best = pick((cell for _, cell in candidates), key=_value)
    winners = [(index, cell) for index, cell in candidates if _overlap(cell, best) or _same(cell, best, column)]
    hidden = column.id not in QUALITY_COLUMNS and any(_apart(cell, best) > NEAR for _, cell in winners)
    if hidden or len(winners) == len(candidates):
        return
    for index, _ in winners:
        marked = rows[index].cells | {column.id: replace(rows[index].cells[column.id], best=True)}
        rows[index] = replace(rows[index], cells=marked)


def _same(cell: Cell, best: Cell, column: Column) -> bool:
    return column.id not in _COUNTED | QUALITY_COLUMNS and _apart(cell, best) < SAME


def _apart(first: Cell, second: Cell) -> float:
    """How many times larger the larger value is, less one."""
    small, large = sorted((_value(first), _value(second)))
    return large / small - 1 if small > 0 else 0.0


def _value(cell: Cell) -> float:
    return cell.value if cell.value is not None else 0.0


def _overlap(first: Cell, second: Cell) -> bool:
    low, high = (first.low, first.high) if first.low is not None else (first.value, first.value)
    low2, high2 = (second.low, second.high) if second.low is not None else (second.value, second.value)
    if low is None or high is None or low2 is None or high2 is None:
        return False
    return low <= high2 and low2 <= high


def _original_bits(results: Sequence[RunResult]) -> float | None:
    """Bits per weight of the original's layers, from the bytes before and after; None when they do not tell."""
    for result in results:
        made = result.quantization
        if made.sizes.layers:
            bits = made.layer_bits_per_weight * made.original_sizes.layers / made.sizes.layers
            if made.removed_layers:  # decoder layers are of one size, or this comes to no whole dtype
                bits *= made.layers / (made.layers + made.removed_layers)
            # Off a whole dtype only when some layers were kept: then the ratio says nothing.
            for exact in (16.0, 32.0):
                if abs(bits / exact - 1) < 0.02:
                    return exact
    return None


def _conditions(result: RunResult) -> str:
    parts = []
    if (speed := result.quantized) is not None:
        parts.append(f"Prompt of {speed.prompt_tokens:,} tokens, answer of {speed.decode_tokens:,}")
        on_cpu = speed.device == "cpu"
        parts.append(f"CPU, {plural(speed.threads, 'thread')}" if on_cpu else speed.device.upper())
    if (quality := result.quality) is not None:
        parts.append(f"quality on {quality.tokens:,} tokens of {quality.text}")
    parts.append(result.environment.gpu or result.environment.cpu)
    return "; ".join(part for part in parts if part) + "."


def _notes(results: Sequence[RunResult]) -> tuple[str, ...]:
    """What keeps the rows of one group from being strictly comparable."""
    machines = {(r.environment.machine, r.environment.cpu, r.environment.gpu) for r in results}
    speeds = [r.quantized for r in results if r.quantized is not None]
    lengths = {(speed.prompt_tokens, speed.decode_tokens) for speed in speeds}
    used = {(speed.device, speed.threads) for speed in speeds}
    texts = {(q.text, q.tokens, q.windows) for r in results if (q := r.quality) is not None}
    originals = [original.decode_tps.median for r in results if (original := baseline(r)) is not None]
    moved = bool(originals) and max(originals) > min(originals) * (1 + _UNSTEADY)
    unmeasured = [r.name for r in results if r.quantized is None and r.quality is None]
    found = (
        (len(machines) > 1, "These runs come from different machines: compare their ratios, not their times."),
        (len(lengths) > 1, "Prompt or answer lengths differ between these runs, so their speeds are not comparable."),
        (len(used) > 1, "These runs used different devices or numbers of threads."),
        (len(texts) > 1, "Quality was measured on different text: compare the changes, not the perplexities."),
        (moved and len(machines) == 1, "The machine was not equally fast in these runs: compare ratios, not times."),
        (bool(unmeasured), f"Not measured: {', '.join(unmeasured)}."),
    )
    return tuple(text for applies, text in found if applies)


def _bytes(count: int) -> Cell:
    return Cell(float(count), text=human_bytes(count))


def _spread(spread: Spread, words: Callable[[float], str]) -> Cell:
    return Cell(spread.median, spread.low, spread.high, text=words(spread.median))


def _interval(interval: Interval, words: Callable[[float], str]) -> Cell:
    text, low, high = words(interval.value), words(interval.low), words(interval.high)
    if high.endswith(_PERCENT):  # once is enough, and leaves room for another column
        low = low.removesuffix(_PERCENT)
    return Cell(interval.value, interval.low, interval.high, text=text, detail=f"{low} to {high}")


def signed_percent(share: float) -> str:
    """`+5.3 %`, `−0.02 %`, `+1,204 %`; two digits below one percent, none from a thousand on."""
    percent = share * 100
    digits = 2 if abs(percent) < 0.995 else 1 if abs(percent) < 999.95 else 0
    if round(abs(percent), digits) == 0:
        return "0 %"
    return f"{'+' if percent > 0 else '−'}{abs(percent):,.{digits}f} %"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _plain_number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0995 else f"{value:#.2g}" if value else "0"
