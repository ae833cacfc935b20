"""A recipe as the command that does the same: what "Copy as command" puts on the clipboard.

Only fields that differ from their defaults become flags, so the command says what the person chose and nothing else.
"""

from __future__ import annotations

import shlex
from typing import Any

from quantstudio.core.fieldspec import FieldSpec, field_specs, flat, is_shown
from quantstudio.core.recipe import Recipe

_MODEL_FIELD = "model.id"


def command_arguments(recipe: Recipe) -> list[str]:
    """Arguments of `quantstudio` that make this very recipe: `["quantize", MODEL, "--scheme.kind", "w8a16", …]`."""
    values = flat(recipe.model_dump(mode="json"))
    arguments = ["quantize", str(values[_MODEL_FIELD])]
    for spec in field_specs():
        if spec.path != _MODEL_FIELD and is_shown(spec, values) and not _is_default(spec, values[spec.path]):
            arguments += _flags(spec, values[spec.path])
    return arguments


def command_line(recipe: Recipe) -> str:
    """The command as one line for a POSIX shell, quoted where needed."""
    return shlex.join(["quantstudio", *command_arguments(recipe)])


def _is_default(spec: FieldSpec, value: Any) -> bool:
    return str(value) == str(spec.default)


def _flags(spec: FieldSpec, value: Any) -> list[str]:
    # "--flag=value" where the value itself starts with a dash, or a parser takes it for a flag.
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _flags(spec, item)]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return [f"--{spec.path}={text}"] if text.startswith("-") else [f"--{spec.path}", text]
