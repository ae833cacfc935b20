"""Stopping in the middle of a forward pass.

A piece of a prompt can take a model seconds, and a person who presses Stop should not wait for them. So while a prompt
is read every layer looks first whether it should go on; an answer's tokens are short enough to be looked at between.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Interrupted(Exception):
    """The pass was left before its end; caches hold more positions in the layers that it had reached."""


@contextmanager
def interrupted_by(cancel: threading.Event | None, model: nn.Module) -> Iterator[None]:
    """Raise `Interrupted` from any pass of the model in the body once `cancel` is set, before its next layer."""
    if cancel is None:
        yield
        return

    def look(module: nn.Module, inputs: object) -> None:
        if cancel.is_set():
            raise Interrupted

    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    hooks = [layer.register_forward_pre_hook(look) for stack in stacks for layer in stack]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
