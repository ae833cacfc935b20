"""The recipe as TOML, as flat fields, and as something a stranger wrote."""

import pytest

from quantstudio.core.errors import RecipeError, RecipeTooNew
from quantstudio.core.fieldspec import FieldKind, defaults, field_specs, flat, is_shown, nested
from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import field_problems, load_recipe, parse_recipe, recipe_from_dict, recipe_to_toml

RICH = """
version = 1
[model]
id = "some/model"
[scheme]
kind = "w4a8"
group_size = "channel"
symmetric = false
[layers]
head = "same"
embedding = "keep"
keep = ["model.layers.0.*", "*.down_proj"]
on_misfit = "smaller"
[measure]
trials = 9
[measure.text]
kind = "file"
path = "my \\"own\\" text.txt"
[output]
name = "A run"
"""


@pytest.mark.parametrize("recipe", [Recipe(), parse_recipe(RICH), *(preset_recipe(preset) for preset in Preset)])
def test_toml_round_trip_keeps_every_value(recipe):
    assert parse_recipe(recipe_to_toml(recipe)) == recipe


@pytest.mark.parametrize("recipe", [Recipe(), parse_recipe(RICH), *(preset_recipe(preset) for preset in Preset)])
def test_flat_fields_round_trip_keeps_every_value(recipe):
    assert recipe_from_dict(nested(flat(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize("spec", field_specs(), ids=lambda spec: spec.path)
def test_every_field_has_words_for_a_person(spec):
    assert spec.title.strip()
    assert len(spec.help.split()) >= 4
    assert spec.section
    assert len(spec.labels) == len(spec.choices)
    if spec.kind is FieldKind.CHOICE and not spec.open_choices:
        assert str(spec.default) in spec.choices


def test_every_model_field_becomes_a_field_spec():
    """Nothing in the recipe is out of a form's reach except its version."""
    values = flat(Recipe().model_dump(mode="json"))
    assert set(values) - {"version"} <= set(defaults())


def test_a_field_of_two_union_members_is_one_field_shown_for_both():
    (group,) = [spec for spec in field_specs() if spec.path == "scheme.group_size"]
    assert is_shown(group, {"scheme.kind": "w4a8"})
    assert is_shown(group, {})
    assert not is_shown(group, {"scheme.kind": "w8a8"})
    assert nested({"scheme.kind": "w8a8", "scheme.group_size": 64}) == {"scheme": {"kind": "w8a8"}}


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("nonsense = 1", "nonsense", "no such field"),
        ("[layers]\nhed = 'int8'", "layers.hed", "Did you mean layers.head?"),
        ("[scheme]\nkind = 'w5a16'", "scheme", "'w5a16' is not one of"),
        ("[scheme]\nkind = 'w4a16'\ngroup_size = 0", "scheme.group_size", "at least 8"),
        ("[scheme]\nkind = 'w4a16'\ngroup_size = 12.5", "scheme.group_size", "12.5"),
        ("[layers]\nkeep = ['rm -rf /']", "layers.keep", "not a layer name"),
        ("[output]\nname = '../../etc'", "output.name", "letters, digits"),
        ("[measure]\ntrials = 'many'", "measure.trials", "many"),
        ("[scheme]\nkind = 'w8a16'\ngroup_size = 64", "scheme.group_size", "no such field"),
    ],
)
def test_a_wrong_recipe_names_the_field_and_the_fix(text, field, words):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_a_recipe_from_a_newer_version_says_so():
    with pytest.raises(RecipeTooNew, match="version 2"):
        parse_recipe("version = 2\nfuture = true")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"= [", b"a" * (2 << 20), b"x = " + b"[" * 5000])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "absent.toml")


def test_problems_are_told_by_field():
    problems = field_problems({"scheme": {"kind": "w4a16", "group_size": 0}, "measure": {"trials": 1}})
    assert set(problems) == {"scheme.group_size", "measure.trials"}
    assert field_problems({}) == {}
