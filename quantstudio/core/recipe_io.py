"""Recipes as TOML and JSON, read as hostile input, with errors that name the field and the fix."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantstudio.core.errors import RecipeError, RecipeTooNew
from quantstudio.core.fieldspec import field_specs
from quantstudio.core.recipe import RECIPE_VERSION, Recipe

MAX_RECIPE_BYTES = 1 << 20


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file. Raises RecipeError (unreadable, unknown keys, bad values) or RecipeTooNew."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path.name} is too large to be a recipe.", hint="A recipe is a short TOML file.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"The recipe {path} cannot be read.",
            why=f"{getattr(error, 'strerror', None) or error}.",
            hint="Check the path; a recipe is a TOML file.",
        ) from error
    return parse_recipe(text)


def parse_recipe(text: str) -> Recipe:
    """Parse a recipe from TOML text."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError("The recipe is not valid TOML.", why=f"{error}.", hint="Fix that line.") from error
    return recipe_from_dict(data)


def recipe_from_dict(data: dict[str, Any]) -> Recipe:
    """Check plain data against the recipe's types."""
    version = data.get("version", RECIPE_VERSION)
    if isinstance(version, int) and version > RECIPE_VERSION:
        raise RecipeTooNew(
            f"This recipe is of version {version}; this program reads up to version {RECIPE_VERSION}.",
            hint="Update QuantStudio, or make the recipe again here.",
            field="version",
        )
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _as_recipe_error(error) from error


def field_problems(data: dict[str, Any]) -> dict[str, str]:
    """What is wrong with each field, by dotted path; empty when the data is a valid recipe."""
    try:
        Recipe.model_validate(data)
    except ValidationError as error:
        return {_path(item["loc"]): _words(item) for item in error.errors()}
    return {}


def recipe_to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML: every field that differs from its default, the tags of unions, and the version."""
    lines = [f"version = {recipe.version}"]
    for name, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            lines += _table(name, value, _default_table(name, value))
    return "\n".join(lines) + "\n"


def recipe_to_json(recipe: Recipe) -> str:
    """Write a recipe with every default spelled out, sorted, for a run's record."""
    return json.dumps(recipe.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def _default_table(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Defaults of a section, for the same member of a union as `value`."""
    data = {name: {"kind": value["kind"]} if "kind" in value else {}}
    dumped: dict[str, Any] = Recipe.model_validate(data).model_dump(mode="json")[name]
    return dumped


def _table(name: str, value: dict[str, Any], default: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    nested: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict):
            if item != default.get(key):
                nested += _table(f"{name}.{key}", item, {})
        elif key == "kind" or item != default.get(key):
            lines.append(f"{key} = {json.dumps(item, ensure_ascii=False)}")
    return (["", f"[{name}]", *lines] if lines else []) + nested


def _as_recipe_error(error: ValidationError) -> RecipeError:
    first = error.errors()[0]
    path = _path(first["loc"])
    more = error.error_count() - 1
    why = _words(first) + (f" ({more} more problem{'s' if more > 1 else ''})" if more else "")
    return RecipeError(
        f"The recipe's {path or 'contents'} cannot be used:", why=why, hint=_hint(first, path), field=path
    )


def _path(location: tuple[int | str, ...]) -> str:
    """Pydantic's location without list indices and without the names it gives to union members."""
    unions = {spec.path.removesuffix(".kind") for spec in field_specs() if spec.path.endswith(".kind")}
    names: list[str] = []
    tag_follows = False
    for part in location:
        if tag_follows:
            tag_follows = False
        elif isinstance(part, str) and part.isidentifier() and part not in ("constrained", "int"):
            names.append(part)
            tag_follows = ".".join(names) in unions
    return ".".join(names)


def _words(item: Any) -> str:
    match item["type"]:
        case "extra_forbidden":
            return "there is no such field."
        case "union_tag_invalid":
            return f"{item['ctx']['tag']!r} is not one of {item['ctx']['expected_tags']}."
        case "greater_than_equal":
            return f"it must be at least {item['ctx']['ge']}; it is {_shown(item['input'])}."
        case "less_than_equal":
            return f"it must be at most {item['ctx']['le']}; it is {_shown(item['input'])}."
        case "union_tag_not_found":
            return "it does not say which kind it is."
        case _:
            return str(item["msg"]).removeprefix("Value error, ").rstrip(".") + f"; it is {_shown(item['input'])}."


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _hint(item: Any, path: str) -> str:
    if item["type"] != "extra_forbidden":
        return ""
    near = difflib.get_close_matches(path, [spec.path for spec in field_specs()], n=1)
    return f"Did you mean {near[0]}?" if near else "Remove it, or see the recipe's reference in the docs."
