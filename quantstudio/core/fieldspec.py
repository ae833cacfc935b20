"""The recipe flattened: one `FieldSpec` for each thing that a person can set.

Forms, flags and the reference table are made from this list, so that they cannot drift apart. Unions (scheme,
method, evaluation text) become one choice field, `scheme.kind`, and the fields of every member, each shown when
its member is chosen.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from functools import cache
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from quantstudio.core.recipe import Recipe


class FieldKind(StrEnum):
    """Which editor a field wants."""

    CHOICE = "choice"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    TEXT = "text"
    LINES = "lines"
    """A list of short texts."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of the recipe as forms, flags and docs need it."""

    path: str
    """Dotted: `layers.head`. Also the flag (`--layers.head`) and the TOML key."""
    section: str
    title: str
    help: str
    kind: FieldKind
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Words for `choices`, in the same order."""
    notes: tuple[str, ...] = ()
    """What each of `choices` means, in the same order; empty where the labels say it all."""
    open_choices: bool = False
    """Whether a value outside `choices` may be typed."""
    advanced: bool = False
    zero: str = ""
    """Words for a 0 that stands for something else, such as every core."""
    editor: str = ""
    """A special editor: `model` or `file`."""
    when: tuple[str, tuple[str, ...]] | None = None
    """(`scheme.kind`, members) under which the field exists; None: always."""


@cache
def field_specs() -> tuple[FieldSpec, ...]:
    """Every field of the recipe, in the order of its declaration."""
    found: dict[str, FieldSpec] = {}
    for name, info in Recipe.model_fields.items():
        if not _extra(info).get("hidden"):
            for spec in _specs(name, info, section=name, when=None):
                found[spec.path] = _merged(found.get(spec.path), spec)
    return tuple(found.values())


def model_specs(model: type[BaseModel]) -> tuple[FieldSpec, ...]:
    """The fields of another model that is declared like the recipe's sections, such as the settings."""
    fields = model.model_fields.items()
    return tuple(_leaf(name, info, name, when=None) for name, info in fields if not _extra(info).get("hidden"))


def defaults() -> dict[str, Any]:
    """Default value of every field by path."""
    return {spec.path: spec.default for spec in field_specs()}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"scheme.kind": "w8a8"}` → `{"scheme": {"kind": "w8a8"}}`, leaving out fields whose member is not chosen."""
    data: dict[str, Any] = {}
    for spec in field_specs():
        if spec.path in values and is_shown(spec, values):
            *parents, leaf = spec.path.split(".")
            target = data
            for parent in parents:
                target = target.setdefault(parent, {})
            target[leaf] = values[spec.path]
    return data


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The opposite of `nested`, for `recipe.model_dump(mode="json")`."""
    values: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        values |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return values


def is_shown(spec: FieldSpec, values: dict[str, Any]) -> bool:
    """Whether the field exists under the union members chosen in `values` (defaults for those not given)."""
    if spec.when is None:
        return True
    path, members = spec.when
    return values.get(path, defaults()[path]) in members


def _specs(path: str, info: FieldInfo, section: str, when: Any) -> list[FieldSpec]:
    members = _models(info.annotation)
    if not members:
        return [_leaf(path, info, section, when)]
    tagged = [member for member in members if "kind" in member.model_fields]
    specs = [_tag(path, info, tagged, section)] if tagged else []
    for member in members:
        inner = (f"{path}.kind", (_kind_of(member),)) if member in tagged else when
        for name, field in member.model_fields.items():
            if name != "kind":
                specs += _specs(f"{path}.{name}", field, section, inner)
    return specs


def _tag(path: str, info: FieldInfo, members: list[type[BaseModel]], section: str) -> FieldSpec:
    choices = tuple(_kind_of(member) for member in members)
    labels = _extra(info).get("labels", {})
    summary = " ".join(f"{_kind_of(member)}: {(member.__doc__ or '').strip()}" for member in members)
    return FieldSpec(
        path=f"{path}.kind",
        section=section,
        title=info.title or "",
        help=f"{info.description} {summary}",
        kind=FieldKind.CHOICE,
        default=info.default.kind,
        choices=choices,
        labels=tuple(labels.get(choice, choice) for choice in choices),
        notes=tuple(" ".join((member.__doc__ or "").split()) for member in members),
    )


def _leaf(path: str, info: FieldInfo, section: str, when: Any) -> FieldSpec:
    extra = _extra(info)
    kind, choices = _kind(info.annotation)
    choices = tuple(extra.get("choices", choices))
    labels = extra.get("labels", {})
    minimum, maximum = _limits(info)
    return FieldSpec(
        path=path,
        section=section,
        title=info.title or "",
        help=info.description or "",
        kind=FieldKind.CHOICE if choices else kind,
        default=_plain(info.default),
        minimum=minimum,
        maximum=maximum,
        choices=choices,
        labels=tuple(labels.get(choice, choice) for choice in choices),
        open_choices=bool(extra.get("open_choices")),
        advanced=bool(extra.get("advanced")),
        zero=str(extra.get("zero", "")),
        editor=str(extra.get("editor", "")),
        when=when,
    )


def _merged(first: FieldSpec | None, second: FieldSpec) -> FieldSpec:
    """The same field of two union members (a group size in W4A16 and in W4A8) is one field shown for both."""
    if first is None or first.when is None or second.when is None:
        return second
    return replace(first, when=(first.when[0], first.when[1] + second.when[1]))


def _kind(annotation: Any) -> tuple[FieldKind, tuple[str, ...]]:
    annotation = _bare(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return FieldKind.CHOICE, tuple(str(value) for value in typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return FieldKind.CHOICE, tuple(str(member.value) for member in annotation)
    if typing.get_origin(annotation) is tuple:
        return FieldKind.LINES, ()
    plain = {bool: FieldKind.BOOL, int: FieldKind.INT, float: FieldKind.FLOAT}
    return plain.get(annotation, FieldKind.TEXT), ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    annotation = _bare(annotation)
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _bare(annotation: Any) -> Any:
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _kind_of(member: type[BaseModel]) -> str:
    return str(member.model_fields["kind"].default)


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _limits(info: FieldInfo) -> tuple[float | None, float | None]:
    low = next((float(str(m.ge)) for m in info.metadata if isinstance(m, annotated_types.Ge)), None)
    high = next((float(str(m.le)) for m in info.metadata if isinstance(m, annotated_types.Le)), None)
    return low, high


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
