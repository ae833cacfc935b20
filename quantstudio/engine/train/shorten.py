"""A student with fewer layers than its teacher: the first ones stay, the others go before training begins.

The student is cut out of the loaded teacher, while transformers will build the saved model from its config.json. Both
are the same model only where a layer is made alike whatever comes after it; that is looked at before anything trains.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.first_layers import FIELD, shortened_config
from quantstudio.core.model_info import ModelInfo
from quantstudio.engine.architecture import build_empty
from quantstudio.engine.sensitivity.restart import decoder_blocks


def shorten(model: PreTrainedModel, count: int) -> None:
    """Take all decoder layers but the first `count` out of a model, and say so in its configuration."""
    _, blocks = _decoder(model)
    del blocks[count:]
    for name, value in shortened_config(model.config.to_dict(), count).items():
        setattr(model.config, name, value)


def require_same_layers(info: ModelInfo) -> None:
    """Raise ModelUnsupported when transformers would build the first layers otherwise than in the whole model.

    `info`: as `core.first_layers.first_layers` gives it. Examples are layers that take keys and values from later ones,
    and models with several stacks of layers.
    """
    whole = build_empty(info.path)
    try:
        cut = build_empty(info.path, info.layers)
    except ModelUnsupported as error:  # a configuration with more in it for each layer than is known here
        raise _refused(error.why) from error
    (name, before), (other, after) = _decoder(whole), _decoder(cut)
    alike = name == other and len(before) == info.layers + info.removed_layers and len(after) == info.layers
    # zip ends with the shorter list: the layers that stay.
    if not (alike and all(_alike(one, two) for one, two in zip(before, after, strict=False))):
        raise _refused("The layers that stay would be built differently without the others.")
    if _outside(whole, name) != _outside(cut, name):
        raise _refused("What lies around the layers would be built differently without some of them.")


def _refused(why: str) -> ModelUnsupported:
    return ModelUnsupported(
        "Layers of this kind of model cannot be removed.", why=why, hint="Set it to 0 to keep all layers.", field=FIELD
    )


def _decoder(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    blocks = decoder_blocks(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is blocks[0]:
            return name, module
    raise ModelUnsupported("No list of layers was found in this model.", field=FIELD)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    first, second = dict(one.named_modules()), dict(other.named_modules())
    return first.keys() == second.keys() and all(_traits(first[name]) == _traits(second[name]) for name in first)


def _traits(module: nn.Module) -> dict[str, object]:
    """The class, the shapes of the parameters, and every plain value that the module was built with."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters(recurse=False)}
    return plain | {"": type(module), "shapes": shapes}


def _outside(model: PreTrainedModel, blocks: str) -> dict[str, tuple[int, ...]]:
    """Every parameter outside the layers, with its shape."""
    named = model.named_parameters()
    return {name: tuple(value.shape) for name, value in named if not name.startswith(f"{blocks}.")}
