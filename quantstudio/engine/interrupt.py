"""Stopping in the middle of a forward pass, or of what libraries do for long without asking.

A piece of a prompt can take a model seconds, and a person who presses Stop should not wait for them. So while a prompt
is read every layer looks first whether it should go on; an answer's tokens are short enough to be looked at between.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_LOOK_S = 0.2


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

    hooks = [layer.register_forward_pre_hook(look) for layer in _layers(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def checked(model: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Call `check`, which may raise, before each layer of every pass in the body, and before each layer's gradients.

    Lists of layers inside a compiled layer are left out: what a program does not compute is no part of it.
    """

    def before(_module: nn.Module, _inputs: object) -> None:
        if not torch.compiler.is_compiling():
            check()

    def after(_module: nn.Module, _inputs: object, output: object) -> None:
        if torch.compiler.is_compiling():
            return
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.requires_grad:
            first.register_hook(lambda _gradient: check())

    layers = _layers(model)
    # Before other hooks: those of a sharded model wait for other processes.
    hooks = [layer.register_forward_pre_hook(before, prepend=True) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Ask(BaseException):
    """Raised into a thread from another one: `check` would raise now. Libraries that catch errors let it pass."""


@contextmanager
def checked_meanwhile(check: Callable[[], None]) -> Iterator[None]:
    """Raise what `check` raises out of Python code in the body that never calls it: torch compiles for many seconds.

    `check` is called in another thread, and once more in this one. Calls into C are finished first.
    """
    over, lock, here = threading.Event(), threading.Lock(), threading.get_ident()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            try:
                check()
            except Exception:
                with lock:  # nothing may be raised into what comes after the body
                    if not over.is_set():
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(here), ctypes.py_object(_Ask))
                return

    thread = threading.Thread(target=watch, name="checks", daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            with lock:
                over.set()
            thread.join()
    except _Ask:
        check()
        raise AssertionError("a check that raised has changed its mind") from None


def _layers(model: nn.Module) -> list[nn.Module]:
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [layer for stack in stacks for layer in stack]
