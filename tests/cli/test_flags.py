"""Every field is a flag, and a copied command makes the recipe that it was copied from."""

import argparse

import pytest

from quantstudio.cli.flags import add_recipe_flags, given_values, with_flags
from quantstudio.cli.main import build_parser
from quantstudio.core.command_line import command_arguments
from quantstudio.core.errors import RecipeError
from quantstudio.core.fieldspec import field_specs
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.recipe_io import parse_recipe

RECIPES = [
    Recipe(),
    *(preset_recipe(preset) for preset in Preset),
    parse_recipe(
        '[model]\nid = "some folder/x"\n[scheme]\nkind = "w4a8"\ngroup_size = 224\nsymmetric = false\n'
        '[layers]\nkeep = ["*.down_proj", "model.layers.0.*"]\n'
        '[measure]\nenabled = false\n[measure.text]\nkind = "file"\npath = "a b.txt"\n[machine]\nseed = 7\n'
    ),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copied_command_makes_the_same_recipe(recipe):
    options = build_parser().parse_args(command_arguments(recipe))
    made = with_flags(preset_recipe(Preset(options.preset), ModelSection(id=options.model)), given_values(options))
    assert made == recipe


def test_every_field_but_the_model_is_a_flag():
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    flags = set(parser._option_string_actions)
    assert {f"--{spec.path}" for spec in field_specs() if spec.path != "model.id"} <= flags


def test_help_of_every_command_renders(capsys):
    for command in ("quantize", "run", "validate", "runs", "measure", "chat", "demo"):
        with pytest.raises(SystemExit) as left:
            build_parser().parse_args([command, "--help"])
        assert left.value.code == 0
    assert "--scheme.group_size" in capsys.readouterr().out


def test_a_flag_of_another_scheme_is_refused_not_ignored():
    options = build_parser().parse_args(["quantize", "starter", "--scheme.kind", "w8a8", "--scheme.group_size", "64"])
    with pytest.raises(RecipeError, match=r"belongs to scheme\.kind w4a16, w4a8, .* or w2a8, and scheme\.kind is w8a8"):
        with_flags(Recipe(), given_values(options))


def test_flags_replace_the_fields_of_a_recipe():
    options = build_parser().parse_args(["run", "x.toml", "--layers.head", "keep", "--measure.enabled", "no"])
    recipe = with_flags(preset_recipe(Preset.FASTEST), given_values(options))
    assert (recipe.layers.head, recipe.measure.enabled) == ("keep", False)
    assert recipe.scheme == preset_recipe(Preset.FASTEST).scheme


@pytest.mark.parametrize("arguments", [["quantize", "--measure.enabled", "perhaps"], ["fly"], ["run"]])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args(arguments)
    assert left.value.code == 2
    assert "usage: quantstudio" in capsys.readouterr().err
