"""Recipe fields as command-line flags: `--scheme.kind w8a16`, one flag for each field of the form."""

from __future__ import annotations

import argparse
from typing import Any

from quantstudio.core.errors import RecipeError
from quantstudio.core.fieldspec import FieldKind, FieldSpec, field_specs, flat, is_shown, nested
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_io import recipe_from_dict

_MODEL_FIELD = "model.id"


def add_recipe_flags(
    parser: argparse.ArgumentParser, sections: tuple[str, ...] | None = None, without: tuple[str, ...] = ()
) -> None:
    """One flag for each recipe field, all optional; `sections` limits them (None: every section), as does `without`."""
    groups: dict[str, Any] = {}
    for spec in field_specs():
        if spec.path in (_MODEL_FIELD, *without) or (sections is not None and spec.section not in sections):
            continue
        if spec.section not in groups:
            info = Recipe.model_fields[spec.section]
            groups[spec.section] = parser.add_argument_group((info.title or spec.section).lower(), info.description)
        groups[spec.section].add_argument(f"--{spec.path}", **_argument(spec))


def given_values(namespace: argparse.Namespace) -> dict[str, Any]:
    """The recipe fields that the person gave, by path."""
    given = vars(namespace)
    return {spec.path: given[spec.path] for spec in field_specs() if given.get(spec.path) is not None}


def with_flags(base: Recipe, given: dict[str, Any]) -> Recipe:
    """`base` with the given fields in place of its own. Raises RecipeError for a field that does not apply."""
    values = flat(base.model_dump(mode="json"))
    values.pop("version", None)
    values |= given
    data = nested(values)
    for spec in field_specs():
        if spec.path in given and not is_shown(spec, values):
            raise _does_not_apply(spec, values)
    return recipe_from_dict(data)


def _argument(spec: FieldSpec) -> dict[str, Any]:
    # argparse formats help with %, so a literal one is doubled.
    text = f"{spec.help} {_usual(spec)}".strip().replace("%", "%%")
    arguments: dict[str, Any] = {"help": text, "default": None, "dest": spec.path}
    match spec.kind:
        case FieldKind.BOOL:
            return arguments | {"type": _truth, "metavar": "true|false"}
        case FieldKind.LINES:
            return arguments | {"action": "append", "metavar": "PATTERN"}
        case FieldKind.INT:
            return arguments | {"type": int, "metavar": "N"}
        case FieldKind.FLOAT:
            return arguments | {"type": float, "metavar": "X"}
        case FieldKind.CHOICE if not spec.open_choices:
            return arguments | {"choices": spec.choices}
        case FieldKind.CHOICE:
            return arguments | {"metavar": "|".join(spec.choices)}
        case _:
            return arguments | {"metavar": "TEXT"}


def _usual(spec: FieldSpec) -> str:
    if spec.default in ("", None) or isinstance(spec.default, (list, tuple)):
        return ""
    return f"[{str(spec.default).lower() if isinstance(spec.default, bool) else spec.default}]"


def _does_not_apply(spec: FieldSpec, values: dict[str, Any]) -> RecipeError:
    chooser, members = spec.when or ("", ())
    *first, last = members
    fitting = f"{', '.join(first)} or {last}" if first else last
    return RecipeError(
        f"--{spec.path} does not apply here.",
        why=f"It belongs to {chooser} {fitting}, and {chooser} is {values[chooser]}.",
        hint=f"Leave it out, or add: --{chooser} {members[0]}",
        field=spec.path,
    )


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]
