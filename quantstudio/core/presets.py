"""Starting points of the form: recipes with a name."""

from __future__ import annotations

from enum import StrEnum

from quantstudio.core.recipe import EmbeddingChoice, HeadChoice, LayersSection, ModelSection, Recipe
from quantstudio.core.recipe_method import Gptq, Qat
from quantstudio.core.schemes import W3A16, W4A16, W8A16


class Preset(StrEnum):
    """Starting points of the form. Stable ids; `PRESET_TEXTS` holds the words."""

    RECOMMENDED = "recommended"
    SMALLEST = "smallest"
    FASTEST = "fastest"
    CLOSEST = "closest"
    BEST_INT4 = "best-int4"
    TRAINED_INT4 = "trained-int4"
    SMALLEST_USABLE = "smallest-usable"


PRESET_TEXTS: dict[Preset, tuple[str, str]] = {
    Preset.RECOMMENDED: (
        "Recommended",
        "int4 layers with groups of 128, int8 head and embedding: small, fast, close.",
    ),
    Preset.SMALLEST: (
        "Smallest int4",
        "int4 layers with one scale per row, int8 embedding: the fewest bytes at int4, larger loss.",
    ),
    Preset.FASTEST: ("Fastest", "int4 layers and int4 head in groups of 128: fewest bytes read per token."),
    Preset.CLOSEST: ("Closest to the original", "int8 throughout: half the size, hardly any loss."),
    Preset.BEST_INT4: (
        "Best int4 quality",
        "The size of 'Recommended' with less loss: GPTQ looks at text before it rounds. Takes minutes.",
    ),
    Preset.TRAINED_INT4: (
        "Trained int4",
        "The size of 'Recommended', trained for a short while to live with its rounding (QAT). Takes longer.",
    ),
    Preset.SMALLEST_USABLE: (
        "Smallest usable",
        "int3 layers in groups of 32, trained for a short while (QAT): about a seventh smaller than int4.",
    ),
}


def preset_recipe(preset: Preset, model: ModelSection | None = None) -> Recipe:
    """The recipe that a preset stands for."""
    model = model or ModelSection()
    match preset:
        case Preset.RECOMMENDED:
            return Recipe(model=model)
        case Preset.SMALLEST:
            same = LayersSection(head=HeadChoice.INT8, embedding=EmbeddingChoice.INT8)
            return Recipe(model=model, scheme=W4A16(group_size="channel"), layers=same)
        case Preset.FASTEST:
            return Recipe(
                model=model,
                scheme=W4A16(group_size=128),
                layers=LayersSection(head=HeadChoice.SAME, embedding=EmbeddingChoice.INT8),
            )
        case Preset.CLOSEST:
            return Recipe(model=model, scheme=W8A16())
        case Preset.BEST_INT4:
            return Recipe(model=model, method=Gptq())
        case Preset.TRAINED_INT4:
            return Recipe(model=model, method=Qat())
        case Preset.SMALLEST_USABLE:
            return Recipe(model=model, scheme=W3A16(group_size=32), method=Qat())
