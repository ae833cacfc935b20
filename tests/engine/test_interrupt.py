"""A pass can be left before any layer, and while gradients flow back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from quantstudio.core.errors import Cancelled
from quantstudio.engine.interrupt import checked


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_is_left_at_any_layer_forwards_and_backwards(
    tiny_model: Callable[..., PreTrainedModel], *, recompute: bool
) -> None:
    model = tiny_model("llama").train()
    if recompute and hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    elif recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.arange(24).view(2, 12)
    layers, before = len(model.model.layers), _hooks(model)
    asked = 0
    patience = 10**9

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked > patience:
            raise Cancelled

    def one_pass() -> None:
        with checked(model, check):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    one_pass()
    whole = asked
    assert whole >= 2 * layers
    for patience in range(whole):
        asked = 0
        with pytest.raises(Cancelled):
            one_pass()
        assert asked == patience + 1
    assert _hooks(model) == before


def _hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
