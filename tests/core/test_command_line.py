"""A recipe as the command that makes it again."""

import shlex

import pytest

from quantstudio.core.command_line import command_arguments, command_line
from quantstudio.core.fieldspec import FieldKind, defaults, field_specs, flat, nested
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.core.recipe_io import parse_recipe, recipe_from_dict

CHANGED = parse_recipe(
    """
    [model]
    id = "/models/my model's folder"
    [scheme]
    kind = "w4a8"
    group_size = "channel"
    symmetric = false
    [layers]
    keep = ["model.layers.0.*", "*.down_proj"]
    on_misfit = "smaller"
    [measure]
    enabled = false
    trials = 7
    text = { kind = "file", path = "-odd name.txt" }
    [output]
    name = "Mine 1"
    """
)


def read_back(line):
    """What a shell and a plain reading of `--path value` make of the line."""
    words = shlex.split(line)
    assert words[:2] == ["quantstudio", "quantize"]
    kinds = {spec.path: spec.kind for spec in field_specs()}
    values, rest = {"model.id": words[2]}, iter(words[3:])
    for word in rest:
        path, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else next(rest)
        if kinds[path] is FieldKind.LINES:
            values.setdefault(path, []).append(value)
        else:
            values[path] = value == "true" if kinds[path] is FieldKind.BOOL else value
    return recipe_from_dict(nested(defaults() | values))


@pytest.mark.parametrize("recipe", [Recipe(), CHANGED, *(preset_recipe(preset) for preset in Preset)])
def test_the_command_makes_the_same_recipe(recipe):
    assert read_back(command_line(recipe)) == recipe


def test_only_what_differs_from_the_defaults_is_said():
    assert command_line(Recipe()) == "quantstudio quantize starter"
    closest = preset_recipe(Preset.CLOSEST, ModelSection(id="owner/name"))
    assert command_arguments(closest) == ["quantize", "owner/name", "--scheme.kind", "w8a16"]


def test_the_command_says_every_changed_field():
    said = {word.removeprefix("--").partition("=")[0] for word in command_arguments(CHANGED) if word.startswith("--")}
    changed = {path for path, value in flat(CHANGED.model_dump(mode="json")).items() if path != "model.id"}
    unchanged = {
        path
        for path, value in flat(Recipe().model_dump(mode="json")).items()
        if flat(CHANGED.model_dump(mode="json")).get(path) == value
    }
    assert said == changed - unchanged
