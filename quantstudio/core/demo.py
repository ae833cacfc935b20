"""The recipes of the demo, the same in the window and in the terminal."""

from __future__ import annotations

from quantstudio.core.presets import Preset, preset_recipe
from quantstudio.core.recipe import OutputSection, Recipe


def demo_recipes() -> tuple[Recipe, ...]:
    """int4 and int8 of the starter model, with everything else as the presets have it."""
    int4 = preset_recipe(Preset.RECOMMENDED)
    int8 = preset_recipe(Preset.CLOSEST)
    return tuple(
        recipe.model_copy(update={"output": OutputSection(name=f"Demo {recipe.label}")}) for recipe in (int4, int8)
    )
