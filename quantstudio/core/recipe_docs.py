"""The reference of the recipe as Markdown, made from the same fields as the form.

`python -m quantstudio.core.recipe_docs > resources/docs/recipe.md` writes it; a test compares.
"""

from __future__ import annotations

import sys

from quantstudio.core.fieldspec import FieldKind, FieldSpec, field_specs
from quantstudio.core.presets import PRESET_TEXTS
from quantstudio.core.recipe import Recipe

_HEAD = """# The recipe

Everything that decides what a run produces, as a TOML file. Each field below is a key of the file, a flag of
`quantstudio quantize` and `quantstudio run` (`--layers.head int8`), and a control in the window.
Fields that are left out have the default. This page is generated: `python -m quantstudio.core.recipe_docs`.

```toml
version = 1

[model]
id = "starter"

[scheme]
kind = "w4a16"
group_size = 128

[layers]
head = "int8"
embedding = "int8"
keep = ["model.layers.0.*"]
```
"""


def recipe_reference() -> str:
    """The whole page."""
    parts = [_HEAD, "## Presets\n"]
    parts += [f"- **{title}** (`{preset}`): {text}" for preset, (title, text) in PRESET_TEXTS.items()]
    for section, info in Recipe.model_fields.items():
        rows = [_row(spec) for spec in field_specs() if spec.section == section]
        if rows:
            parts += [f"\n## {info.title}\n\n{info.description}\n", "| field | default | values | meaning |"]
            parts += ["| --- | --- | --- | --- |", *rows]
    return "\n".join(parts) + "\n"


def _row(spec: FieldSpec) -> str:
    default = "empty" if spec.default in ("", []) else f"`{str(spec.default).lower()}`"
    only = f" Only with {spec.when[0]} = {' or '.join(spec.when[1])}." if spec.when else ""
    return f"| `{spec.path}` | {default} | {_values(spec)} | **{spec.title}.** {spec.help}{only} |".replace("\n", " ")


def _values(spec: FieldSpec) -> str:
    if spec.choices:
        return ", ".join(f"`{choice}`" for choice in spec.choices) + (" or another" if spec.open_choices else "")
    if spec.kind is FieldKind.BOOL:
        return "`true`, `false`"
    if spec.minimum is not None and spec.maximum is not None:
        return f"{spec.minimum:g} to {spec.maximum:.10g}"
    return "list of texts" if spec.kind is FieldKind.LINES else "text"


if __name__ == "__main__":
    sys.stdout.write(recipe_reference())
