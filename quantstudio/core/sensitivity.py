"""Which layers suffer most from few bits, and how to spend a budget of bits on them: plain data and arithmetic.

The engine measures once what each layer alone costs at each number of bits. Everything after that is here and takes
milliseconds, so a form can follow every edit: predict what a choice of bits costs, and find the choice that costs
least for a size, an average of bits, or the smallest one whose loss stays below a bound.

The losses of single layers nearly add up while they are small. Where they do not, whole models measured at one number
of bits each say how far the sum is off, and the prediction follows them.

Finding the best choice is a knapsack in which every layer takes exactly one of its options. Options that lie above the
lower convex hull of a layer's (cost, loss) points are never taken, and the steps along all hulls are taken in the order
of loss saved per cost: the Lagrangian solution (Shoham & Gersho, "Efficient bit allocation for an arbitrary set of
quantizers", IEEE Trans. ASSP 36, 1988). What is then left of the budget is filled with the next steps that still fit.

Losses are measured, so they are known only so well, and a choice that looks best by a hair is not. The measured whole
models tell how well: by as much as single layers' losses miss them. Where equal bits in all layers fit the budget, bits
are taken from a layer to be given to another only when that wins more than such an error of everything it changes;
otherwise every layer keeps the equal bits, and some get more from what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from quantstudio.core.humanize import human_bytes
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_precision import AverageBits, FileSize, LargestLoss, PerLayer, Precision, Uniform

SENSITIVITY_VERSION = 1
SENSITIVITY_FILE = "sensitivity.json"
"""In the folder of a run whose bits were allotted: what was measured for it."""
KNEE_KL = 0.25
"""Nats. Here the model is lost on about a quarter more words than before (perplexity × 1.28): more than a model of the
same family with half the weights usually loses, so fewer bits are then no longer the cheapest way to a smaller file."""
_FEW_BITS = 3
_SMALL_MODEL = 50_000_000
"""Weights of the layers of a model that is loaded before a run, only to see whether it bears few bits."""
_MB = 1_000_000

Target = AverageBits | FileSize | LargestLoss


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Option(_Plain):
    """One number of bits for one layer."""

    bits: int
    nbytes: int
    """Bytes of the layer in the result: codes, scales, zero points."""
    kl: float
    """Mean KL divergence in nats from the original's next-token distribution when only this layer is quantized."""


class LayerSensitivity(_Plain):
    """One layer with all its options, fewest bits first."""

    name: str
    """The module's name in the model's files, as in `WeightSlot.module`."""
    weights: int
    options: tuple[Option, ...]

    def option(self, bits: int) -> Option:
        """The option with these bits, or with the nearest more, or with the most there are."""
        return next((option for option in self.options if option.bits >= bits), self.options[-1])


class UniformLoss(_Plain):
    """A whole model quantized alike, measured on the same text as the layers."""

    bits: int
    group_size: int | None
    """None: one scale per row."""
    nbytes: int
    """Bytes of all weights, head and embedding included."""
    kl: float


class Sensitivity(_Plain):
    """What each layer's bits cost, as measured. Result of a `SensitivityJob`."""

    version: int = SENSITIVITY_VERSION
    model_name: str
    scheme: str
    """Label of the scheme whose groups, symmetry and activations all options share: `W4A16 g128`."""
    method: str
    """How the layers were quantized while measuring: the id of a method, such as rtn or gptq."""
    measured_as: str
    """`each`: every layer quantized by itself and the model run; `gradients`: predicted from gradients."""
    tokens: int
    """Tokens of calibration text that the losses are means over."""
    layers: tuple[LayerSensitivity, ...]
    other_bytes: int
    """Bytes of everything whose bits are not chosen here: head, embedding, norms, kept layers."""
    uniform: tuple[UniformLoss, ...] = ()
    seconds: float = 0.0

    @property
    def weights(self) -> int:
        """Weights of the layers together."""
        return sum(layer.weights for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Allotment:
    """Bits for every layer, and what they are predicted to cost."""

    bits: dict[str, int]
    """Layer name → bits, in the model's order."""
    average_bits: float
    """Bits per weight of the layers, scales not counted."""
    nbytes: int
    """Predicted bytes of all weights, head and embedding included."""
    kl: float
    """Predicted KL divergence of the whole model, nats."""
    reached: bool = True
    """Whether the target can be met; if not, this is the nearest to it."""


def predict(sensitivity: Sensitivity, bits: Mapping[str, int], default: int = 4) -> Allotment:
    """What giving layers these bits costs; layers that `bits` does not name get `default`. Microseconds a layer."""
    chosen = {layer.name: layer.option(bits.get(layer.name, default)) for layer in sensitivity.layers}
    return _allotment(sensitivity, chosen)


def uniform(sensitivity: Sensitivity, bits: int) -> Allotment:
    """The prediction for the same bits in every layer."""
    return predict(sensitivity, {}, bits)


def allot(sensitivity: Sensitivity, target: Target) -> Allotment:
    """The bits per layer with the least predicted loss within the target, or with the fewest bytes for a loss.

    A target out of reach gives what is nearest to it, with `reached` False. Same input, same answer.
    """
    if isinstance(target, LargestLoss):
        return _smallest_within(sensitivity, target.largest_kl)
    if isinstance(target, AverageBits):
        weights = {layer.name: layer.weights for layer in sensitivity.layers}
        budget = target.average_bits * sensitivity.weights
        return _beyond_doubt(sensitivity, budget, lambda layer, option: option.bits * weights[layer.name])
    budget = target.file_size_mb * _MB - sensitivity.other_bytes
    return _beyond_doubt(sensitivity, budget, lambda _layer, option: option.nbytes)


def as_precision(allotment: Allotment) -> PerLayer:
    """The recipe section that carries the bits: one line for each layer, by its exact name."""
    return PerLayer(bits=tuple(f"{name}={bits}" for name, bits in allotment.bits.items()))


def bits_of(sensitivity: Sensitivity, precision: Precision, scheme_bits: int) -> Allotment:
    """What a recipe's precision section comes to: targets allotted, lists read as the plan reads them."""
    if isinstance(precision, AverageBits | FileSize | LargestLoss):
        return allot(sensitivity, precision)
    if isinstance(precision, PerLayer):
        from quantstudio.core.plan import listed_bits

        names = [layer.name for layer in sensitivity.layers]
        return predict(sensitivity, {name: listed_bits(name, precision) or scheme_bits for name in names})
    return uniform(sensitivity, scheme_bits)


def is_target(precision: Precision) -> bool:
    """Whether bits per layer have yet to be found for this section, by measuring the model."""
    return isinstance(precision, AverageBits | FileSize | LargestLoss)


def knee(sensitivity: Sensitivity) -> float | None:
    """Average bits below which even the best choice is predicted to lose more than `KNEE_KL`; None: never."""
    allotment = _smallest_within(sensitivity, KNEE_KL)
    lowest = _allotment(sensitivity, {layer.name: layer.options[0] for layer in sensitivity.layers})
    return None if lowest.kl <= KNEE_KL else allotment.average_bits


def advice(sensitivity: Sensitivity, asked: Allotment) -> list[str]:
    """Sentences for a person who asks for fewer bits than the model bears, with what measures better at this size."""
    sentences = []
    bend = knee(sensitivity)
    if bend is not None and asked.kl > KNEE_KL and asked.average_bits < bend - 0.005:
        sentences.append(
            f"{asked.average_bits:.2f} bits are fewer than this model bears: its predicted KL divergence is "
            f"{asked.kl:.2g} nats, and below about {bend:.1f} bits it rises steeply. Training (QAT) can win much of "
            "it back; a smaller model with more bits may be the better choice."
        )
    better = better_at(sensitivity, asked.nbytes)
    return sentences + _offer(better, asked.kl)


def may_lie_below_knee(info: ModelInfo, recipe: Recipe) -> bool:
    """Whether it is worth a look, before a run: few bits in all layers of a small model, with nothing to win them back.

    Calibrated and trained methods win much of the loss back; what they come to, the run measures at its end.
    """
    few = isinstance(recipe.precision, Uniform) and recipe.scheme.weight_spec().bits <= _FEW_BITS
    weights = sum(slot.rows * slot.columns for slot in info.slots if slot.part is Part.LAYER)
    return few and recipe.method.kind in ("rtn", "hqq") and weights <= _SMALL_MODEL


def below_knee(asked: UniformLoss, better: UniformLoss | None, with_gptq: float | None) -> list[str]:
    """Sentences for a person who asks for the same few bits everywhere, when the whole model was measured so.

    `better`: another whole model of no more bytes. `with_gptq`: what the asked grid loses when GPTQ chooses the codes.
    """
    groups = f"groups of {asked.group_size}" if asked.group_size else "one scale per row"
    sentences = [
        f"{asked.bits} bits with {groups} are fewer than this model bears: measured on a little text, the KL "
        f"divergence is {asked.kl:.2g} nats (more than {KNEE_KL:g} is much). A smaller model with more bits may be the "
        "better choice."
    ]
    if with_gptq is not None and with_gptq < 0.9 * asked.kl:
        sentences.append(
            f"At the same size GPTQ measures better: {with_gptq:.2g} instead of {asked.kl:.2g} nats. Training (QAT) "
            "can win back more."
        )
    return sentences + _offer(better, asked.kl)


def _offer(better: UniformLoss | None, kl: float) -> list[str]:
    if better is None or better.kl >= 0.9 * kl:
        return []
    groups = f"groups of {better.group_size}" if better.group_size else "one scale per row"
    return [
        f"At no more bytes ({human_bytes(better.nbytes)}), {better.bits} bits in every layer with {groups} measure "
        f"better: {better.kl:.2g} instead of {kl:.2g} nats."
    ]


def better_at(sensitivity: Sensitivity, nbytes: int) -> UniformLoss | None:
    """The measured whole model of at most this size that loses least; None when there is none."""
    fitting = [whole for whole in sensitivity.uniform if whole.nbytes <= nbytes]
    return min(fitting, key=lambda whole: whole.kl, default=None)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, −1 … 1; ties share their mean rank. Spearman, Am. J. Psychol. 15 (1904)."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) - 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    norm = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return covariance / norm if norm else 0.0


_Cost = Callable[[LayerSensitivity, Option], float]


@dataclass(frozen=True, slots=True)
class _Step:
    """From one option of a layer's hull to the next: more cost, less loss."""

    layer: LayerSensitivity
    place: int
    option: Option
    cost: float
    saved: float


def _beyond_doubt(sensitivity: Sensitivity, budget: float, cost: _Cost) -> Allotment:
    """The best within the budget, unless it takes bits from layers for a gain that may be an error of measurement."""
    best = _within_budget(sensitivity, budget, cost)
    fitting = [bits for bits in _common_bits(sensitivity) if _alike(sensitivity, bits, cost) <= budget * (1 + 1e-9)]
    if not best.reached or not fitting:
        return best
    steady = predict(sensitivity, _within_budget(_at_least(sensitivity, max(fitting)), budget, cost).bits)
    changed = gain = 0.0
    for layer in sensitivity.layers:
        saved = layer.option(steady.bits[layer.name]).kl - layer.option(best.bits[layer.name]).kl
        gain, changed = gain + saved, changed + abs(saved)
    return best if gain > _error(sensitivity) * changed else steady


def _common_bits(sensitivity: Sensitivity) -> set[int]:
    each = [{option.bits for option in layer.options} for layer in sensitivity.layers]
    return set.intersection(*each) if each else set()


def _alike(sensitivity: Sensitivity, bits: int, cost: _Cost) -> float:
    return sum(cost(layer, layer.option(bits)) for layer in sensitivity.layers)


def _at_least(sensitivity: Sensitivity, bits: int) -> Sensitivity:
    layers = (
        layer.model_copy(update={"options": tuple(option for option in layer.options if option.bits >= bits)})
        for layer in sensitivity.layers
    )
    return sensitivity.model_copy(update={"layers": tuple(layers)})


def _error(sensitivity: Sensitivity) -> float:
    """By what share single layers' losses are off: the most that their sum misses a measured whole model's by.

    Beyond the knee losses do not add up, and nobody should go there: those models do not count.
    """
    misses = [0.0]
    for whole in _same_groups(sensitivity):
        added = sum(layer.option(whole.bits).kl for layer in sensitivity.layers)
        if added > 0 and 0 < whole.kl <= KNEE_KL:
            misses.append(abs(whole.kl / added - 1))
    return max(misses)


def _within_budget(sensitivity: Sensitivity, budget: float, cost: _Cost) -> Allotment:
    chosen, steps = _start(sensitivity, cost)
    taken = dict.fromkeys(chosen, 0)
    left = budget * (1 + 1e-9) - sum(cost(layer, chosen[layer.name]) for layer in sensitivity.layers)
    reached = left >= 0
    for step in steps:
        # A step can only be taken from the one before it; after a step that did not fit, its layer stays where it is.
        if step.cost <= left and taken[step.layer.name] == step.place:
            left -= step.cost
            taken[step.layer.name] += 1
            chosen[step.layer.name] = step.option
    return _allotment(sensitivity, chosen, reached=reached)


def _smallest_within(sensitivity: Sensitivity, largest: float) -> Allotment:
    chosen, steps = _start(sensitivity, lambda _layer, option: option.nbytes)
    correct = _correction(sensitivity)
    added = sum(option.kl for option in chosen.values())
    for step in steps:
        if correct(added) <= largest:
            break
        chosen[step.layer.name] = step.option
        added -= step.saved
    allotment = _allotment(sensitivity, chosen)
    return _allotment(sensitivity, chosen, reached=allotment.kl <= largest * (1 + 1e-9))


def _start(sensitivity: Sensitivity, cost: _Cost) -> tuple[dict[str, Option], list[_Step]]:
    """The cheapest option of each layer, and all steps from there, those that save most per cost first."""
    chosen: dict[str, Option] = {}
    steps: list[_Step] = []
    for layer in sensitivity.layers:
        hull = _hull([(cost(layer, option), option.kl, option) for option in layer.options])
        chosen[layer.name] = hull[0][2]
        for place, ((before, loss, _), (after, less, option)) in enumerate(pairwise(hull)):
            steps.append(_Step(layer, place, option, after - before, loss - less))
    order = {layer.name: number for number, layer in enumerate(sensitivity.layers)}
    steps.sort(key=lambda step: (-step.saved / step.cost, order[step.layer.name], step.place))
    return chosen, steps


def _hull(points: list[tuple[float, float, Option]]) -> list[tuple[float, float, Option]]:
    """The lower convex hull of (cost, loss): each further point costs more, loses less, and saves less per cost."""
    hull: list[tuple[float, float, Option]] = []
    for point in sorted(points, key=lambda point: (point[0], point[1])):
        if hull and (point[0] <= hull[-1][0] or point[1] >= hull[-1][1]):
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(first: tuple[float, float, Option], second: tuple[float, float, Option]) -> float:
    """Loss saved per cost."""
    return (first[1] - second[1]) / (second[0] - first[0])


def _allotment(sensitivity: Sensitivity, chosen: Mapping[str, Option], *, reached: bool = True) -> Allotment:
    bits = {layer.name: chosen[layer.name].bits for layer in sensitivity.layers}
    total = sum(layer.weights * bits[layer.name] for layer in sensitivity.layers)
    return Allotment(
        bits=bits,
        average_bits=total / max(1, sensitivity.weights),
        nbytes=sensitivity.other_bytes + sum(option.nbytes for option in chosen.values()),
        kl=_correction(sensitivity)(sum(option.kl for option in chosen.values())),
        reached=reached,
    )


def _correction(sensitivity: Sensitivity) -> Callable[[float], float]:
    """From the sum of single layers' losses to a whole model's: through the whole models that were measured.

    In between, the logarithm of the factor is interpolated over the logarithm of the sum; beyond, it stays.
    """
    points = []
    for whole in _same_groups(sensitivity):
        added = sum(layer.option(whole.bits).kl for layer in sensitivity.layers)
        if added > 0 and whole.kl > 0:
            points.append((math.log(added), math.log(whole.kl / added)))
    points.sort()

    def correct(added: float) -> float:
        return added * math.exp(_interpolated(points, math.log(added))) if added > 0 and points else max(0.0, added)

    return correct


def _same_groups(sensitivity: Sensitivity) -> list[UniformLoss]:
    """The measured whole models that are made of the layers' own options."""
    layers_bytes = {
        bits: sensitivity.other_bytes + sum(layer.option(bits).nbytes for layer in sensitivity.layers)
        for bits in {whole.bits for whole in sensitivity.uniform}
    }
    return [whole for whole in sensitivity.uniform if whole.nbytes == layers_bytes[whole.bits]]


def _interpolated(points: list[tuple[float, float]], x: float) -> float:
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return points[-1][1]


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for index in order[start:stop]:
            ranks[index] = (start + stop - 1) / 2
        start = stop
    return ranks
