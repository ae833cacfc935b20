"""Allotting bits: against exhaustive search, and the words for people."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from quantstudio.core.model_info import read_model_info
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import Gptq
from quantstudio.core.recipe_precision import AverageBits, FileSize, LargestLoss, PerLayer, Uniform
from quantstudio.core.schemes import W2A16, W4A16
from quantstudio.core.sensitivity import (
    KNEE_KL,
    LayerSensitivity,
    Option,
    Sensitivity,
    UniformLoss,
    advice,
    allot,
    as_precision,
    below_knee,
    bits_of,
    knee,
    may_lie_below_knee,
    predict,
    spearman,
    uniform,
)

BITS = (2, 3, 4, 8)


def make(layers: int = 5, seed: int = 0, scale: float = 0.02, whole: tuple[UniformLoss, ...] = ()) -> Sensitivity:
    """Losses fall about four times a bit, from layer to layer ten times apart."""
    rng = random.Random(seed)  # noqa: S311 - a toy model, no secret
    made = []
    for number in range(layers):
        weights = 256 * rng.choice((256, 512, 1024))
        worst = scale * 10 ** rng.uniform(-1, 1)
        options = tuple(
            Option(bits=bits, nbytes=weights * bits // 8 + weights // 16, kl=worst * 4.0 ** (2 - bits)) for bits in BITS
        )
        made.append(LayerSensitivity(name=f"model.layers.{number}.mlp.up_proj", weights=weights, options=options))
    return Sensitivity(
        model_name="toy",
        scheme="W4A16 g32",
        method="rtn",
        measured_as="each",
        tokens=4096,
        layers=tuple(made),
        other_bytes=1000,
        uniform=whole,
    )


def every_choice(sensitivity: Sensitivity) -> list[dict[str, int]]:
    names = [layer.name for layer in sensitivity.layers]
    return [dict(zip(names, bits, strict=True)) for bits in itertools.product(BITS, repeat=len(names))]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("average", [2.5, 3.25, 3.5, 4.0, 6.0])
def test_the_average_is_kept_and_nearly_nothing_is_left_to_gain(seed: int, average: float) -> None:
    sensitivity = make(seed=seed)
    chosen = allot(sensitivity, AverageBits(average_bits=average))
    assert chosen.reached
    assert chosen.average_bits <= average + 1e-6
    possible = [predict(sensitivity, bits) for bits in every_choice(sensitivity)]
    best = min(each.kl for each in possible if each.average_bits <= average + 1e-6)
    # Greedy along the hulls is within one step of the optimum; with five layers one step is much, hence the factor.
    assert best <= chosen.kl <= 1.6 * best


def test_with_many_layers_the_choice_is_the_lagrangian_optimum() -> None:
    """With hundreds of layers one step is little: no choice can beat the line between hull solutions by more."""
    sensitivity = make(layers=300, seed=3)
    chosen = allot(sensitivity, AverageBits(average_bits=3.5))
    assert 3.49 < chosen.average_bits <= 3.5 + 1e-6
    # Lagrangian bound: minimise kl + price × bits freely; for any price this bounds every choice with that average.
    budget = 3.5 * sensitivity.weights
    bound = max(
        sum(
            min(option.kl + price * option.bits * layer.weights for option in layer.options)
            for layer in sensitivity.layers
        )
        - price * budget
        for price in (10.0**power for power in [x / 10 for x in range(-120, -40)])
    )
    assert bound <= chosen.kl <= 1.03 * bound


@pytest.mark.parametrize("seed", range(4))
def test_a_size_is_kept(seed: int) -> None:
    sensitivity = make(seed=seed)
    wanted = uniform(sensitivity, 4).nbytes
    chosen = allot(sensitivity, FileSize(file_size_mb=wanted / 1e6))
    assert chosen.nbytes <= wanted
    assert chosen.kl <= uniform(sensitivity, 4).kl


@pytest.mark.parametrize("seed", range(4))
def test_a_loss_is_kept_with_few_bytes(seed: int) -> None:
    sensitivity = make(layers=40, seed=seed)
    chosen = allot(sensitivity, LargestLoss(largest_kl=0.2))
    assert chosen.kl <= 0.2
    assert chosen.reached
    alike = next(uniform(sensitivity, bits) for bits in BITS if uniform(sensitivity, bits).kl <= 0.2)
    assert chosen.nbytes <= alike.nbytes


def test_a_target_out_of_reach_gives_the_nearest_and_says_so() -> None:
    sensitivity = make()
    small = allot(sensitivity, FileSize(file_size_mb=0.1))
    assert not small.reached
    assert set(small.bits.values()) == {2}
    close = allot(sensitivity, LargestLoss(largest_kl=1e-9))
    assert not close.reached
    assert set(close.bits.values()) == {8}


def test_more_bits_that_do_not_help_are_not_paid_for() -> None:
    """Measured losses are noisy: 8 bits can come out worse than 4."""
    layer = make(layers=1).layers[0]
    options = (*layer.options[:3], layer.options[3].model_copy(update={"kl": layer.options[2].kl * 1.1}))
    sensitivity = make().model_copy(update={"layers": (layer.model_copy(update={"options": options}),)})
    assert set(allot(sensitivity, AverageBits(average_bits=8.0)).bits.values()) == {4}


def with_wholes(plain: Sensitivity, factor: float) -> Sensitivity:
    """As if whole models at 3 and 4 bits had lost so many times what their layers lose by themselves."""
    whole = (
        UniformLoss(bits=bits, group_size=32, nbytes=uniform(plain, bits).nbytes, kl=factor * uniform(plain, bits).kl)
        for bits in (3, 4)
    )
    return plain.model_copy(update={"uniform": tuple(whole)})


@pytest.mark.parametrize(("factor", "steady"), [(1.0, False), (1.02, False), (3.0, True)])
def test_bits_are_moved_only_for_a_gain_beyond_the_error_of_the_losses(factor: float, *, steady: bool) -> None:
    sensitivity = with_wholes(make(layers=12, scale=0.005), factor)
    alike = uniform(sensitivity, 4)
    chosen = allot(sensitivity, FileSize(file_size_mb=alike.nbytes / 1e6))
    assert (chosen == alike) is steady
    assert chosen.kl <= alike.kl
    assert chosen.reached
    # Bytes beyond those of equal bits are spent all the same, and then no layer has fewer.
    more = allot(sensitivity, FileSize(file_size_mb=alike.nbytes * 1.2 / 1e6))
    assert more.kl < alike.kl
    assert more.nbytes > 1.05 * alike.nbytes
    assert not steady or min(more.bits.values()) == 4


def test_the_prediction_follows_whole_models_that_were_measured() -> None:
    plain = make()
    whole = tuple(
        UniformLoss(bits=bits, group_size=32, nbytes=uniform(plain, bits).nbytes, kl=factor * uniform(plain, bits).kl)
        for bits, factor in ((2, 0.5), (3, 0.8), (4, 1.0))
    )
    corrected = plain.model_copy(update={"uniform": whole})
    for bits, factor in ((2, 0.5), (3, 0.8), (4, 1.0), (8, 1.0)):
        assert uniform(corrected, bits).kl == pytest.approx(factor * uniform(plain, bits).kl)
    between = {layer.name: 2 + number % 2 for number, layer in enumerate(plain.layers)}
    assert 0.5 * predict(plain, between).kl < predict(corrected, between).kl < 0.8 * predict(plain, between).kl


def test_the_recipe_carries_the_bits_by_exact_names() -> None:
    sensitivity = make()
    chosen = allot(sensitivity, AverageBits(average_bits=3.5))
    lines = as_precision(chosen)
    assert isinstance(lines, PerLayer)
    assert bits_of(sensitivity, lines, 4) == predict(sensitivity, chosen.bits)
    assert bits_of(sensitivity, Uniform(), 3) == uniform(sensitivity, 3)
    assert bits_of(sensitivity, AverageBits(average_bits=3.5), 4) == chosen


def test_below_the_knee_the_person_is_told_what_measures_better() -> None:
    plain = make(layers=20, scale=0.05)
    bend = knee(plain)
    assert bend is not None
    assert allot(plain, AverageBits(average_bits=bend)).kl <= KNEE_KL * 1.05
    asked = uniform(plain, 2)
    better = UniformLoss(bits=3, group_size=None, nbytes=asked.nbytes - 1, kl=asked.kl / 2)
    said = advice(plain.model_copy(update={"uniform": (better,)}), asked)
    assert any("fewer than this model bears" in sentence for sentence in said)
    assert any("3 bits in every layer with one scale per row" in sentence for sentence in said)
    assert advice(plain, uniform(plain, 8)) == []


def test_before_a_run_only_what_may_lose_too_much_is_looked_at(make_model: Callable[..., Path]) -> None:
    info = read_model_info(make_model())
    few = Recipe(scheme=W2A16(group_size=32))
    assert may_lie_below_knee(info, few)
    assert not may_lie_below_knee(info, Recipe(scheme=W4A16()))
    assert not may_lie_below_knee(info, few.model_copy(update={"method": Gptq()}))
    assert not may_lie_below_knee(info, few.model_copy(update={"precision": AverageBits(average_bits=2.5)}))


def test_what_is_offered_below_the_knee_is_what_measured_better() -> None:
    asked = UniformLoss(bits=2, group_size=32, nbytes=1_000_000, kl=0.8)
    better = UniformLoss(bits=3, group_size=None, nbytes=990_000, kl=0.5)
    first, *offers = below_knee(asked, better, 0.2)
    assert "2 bits with groups of 32 are fewer than this model bears" in first
    assert "GPTQ measures better: 0.2 instead of 0.8" in offers[0]
    assert "3 bits in every layer with one scale per row measure better: 0.5 instead of 0.8" in offers[1]
    hardly = better.model_copy(update={"kl": 0.79})
    assert below_knee(asked, hardly, 0.78) == [first]


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Worked by hand: ranks 1, 2.5, 2.5, 4 and 2, 1, 4, 3; products of deviations add to 1.5, squares to 4.5 and 5.
    assert spearman([1, 2, 2, 4], [2, 1, 4, 3]) == pytest.approx(1.5 / (4.5 * 5) ** 0.5)
