"""What is decided for a training that leaves everything open."""

import pytest

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import FineTune, Qat
from quantstudio.core.recipe_precision import PerLayer
from quantstudio.core.schemes import W2A16, W3A16, W4A16, W8A16
from quantstudio.engine.train.settings import automatic_rate, settle


def _settled(folder, recipe, method=None):
    info = read_model_info(folder)
    return settle(method or Qat(), info, make_plan(info, recipe), 512, seed=0)


def test_fewer_bits_take_larger_steps(tiny_folder):
    schemes = (W8A16(), W4A16(group_size=32), W3A16(group_size=32), W2A16(group_size=32))
    rates = [_settled(tiny_folder, Recipe(scheme=scheme)).rate for scheme in schemes]
    assert rates == sorted(rates)
    assert len(set(rates)) == 4
    mixed = Recipe(scheme=W4A16(group_size=32), precision=PerLayer(bits=("*.mlp.*=2",)))
    assert rates[1] < _settled(tiny_folder, mixed).rate < rates[3]


def test_larger_models_take_smaller_steps_and_lora_larger_ones():
    assert automatic_rate(500_000_000, 4, lora=0) < 0.2 * automatic_rate(8_400_000, 4, lora=0)
    assert automatic_rate(8_400_000, 4, lora=16) > automatic_rate(8_400_000, 4, lora=0)


@pytest.mark.parametrize(("preset", "steps"), [("quick", 50), ("better", 200), ("best", 800)])
def test_presets_are_steps_of_8192_tokens(tiny_folder, preset, steps):
    settings = _settled(tiny_folder, Recipe(scheme=W4A16(group_size=32)), Qat(preset=preset))
    assert (settings.steps, settings.batch) == (steps, 16)
    assert settings.warmup == min(20, steps // 5)


def test_a_fine_tune_learns_from_the_text(tiny_folder):
    settings = _settled(tiny_folder, Recipe(scheme=W2A16(group_size=32)), FineTune())
    assert (settings.objective.distil, settings.objective.cross_entropy) == (0.0, 1.0)
    assert not settings.rounds


def test_what_the_recipe_says_is_done(tiny_folder):
    method = Qat(steps=7, batch_sequences=3, learning_rate=1e-3, warmup_steps=0, evaluations=7)
    settings = _settled(tiny_folder, Recipe(scheme=W4A16(group_size=32)), method)
    assert (settings.steps, settings.batch, settings.rate) == (7, 3, 1e-3)
    assert (settings.warmup, settings.evaluate_every) == (0, 1)
