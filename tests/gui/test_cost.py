"""What is said of a recipe before it starts."""

import pytest

from quantstudio.core.fieldspec import defaults
from quantstudio.gui.cost import work_out


@pytest.fixture
def ask(home):
    return lambda **values: work_out(defaults() | {path.replace("__", "."): v for path, v in values.items()}, home)


def test_a_good_recipe_has_a_price_and_may_start(ask):
    cost = ask()
    assert cost.startable
    assert cost.recipe is not None
    assert 0 < cost.estimate.output_bytes < cost.info.nbytes / 2


def test_a_wrong_value_is_named_at_its_field(ask):
    cost = ask(scheme__group_size=0)
    assert not cost.startable
    text, level = cost.problems["scheme.group_size"]
    assert level == "error"
    assert text.startswith("A group size is a whole number")


def test_a_missing_model_is_said_at_the_model(ask, tmp_path):
    cost = ask(model__id=str(tmp_path / "nowhere"))
    assert cost.recipe is not None, "the recipe itself can still be saved and copied"
    assert not cost.startable
    assert "nowhere" in cost.problems["model.id"][0]


def test_a_group_size_that_does_not_fit_is_said_at_the_group_size(ask):
    cost = ask(scheme__group_size=96)
    assert not cost.startable
    assert "96 does not divide" in cost.problems["scheme.group_size"][0]
    assert "‘When a group size does not fit’" in cost.problems["scheme.group_size"][0], "by its title, not its path"
    assert cost.problems["layers.on_misfit"][1] == "info"
    assert ask(scheme__group_size=96, layers__on_misfit="smaller").startable


def test_several_problems_of_one_field_stand_together_and_the_worst_counts(ask, tmp_path):
    cost = ask(measure__text__kind="file", measure__text__path=str(tmp_path / "no.txt"), layers__keep=["a.*", "b.*"])
    assert cost.problems["measure.text.path"][1] == "error"
    text, level = cost.problems["layers.keep"]
    assert level == "warning"
    assert "a.*" in text
    assert "b.*" in text
