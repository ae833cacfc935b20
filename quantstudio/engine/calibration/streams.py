"""What the text looks like between two blocks, in the original model and in the model quantized so far.

Activations wait in bf16 on the CPU, batch by batch, and pass the device one batch at a time. The text passes blocks
whose earlier blocks are quantized already (as in GPTQ), so each block can make up for the ones before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.calibration.blocks import BlockModel, StopForward
from quantstudio.engine.kernels.activations import fake_quantize_per_token

Batches = list[torch.Tensor]
"""bf16 `[sequences, length, width]` each, on the CPU."""
Inputs = dict[str, torch.Tensor]
"""Module name → its input in one batch, `[tokens, features]` on the device."""

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}


def in_batches(ids: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """Ids `[sequences, length]` in as many sequences at once as are worth it on this device."""
    return list(ids.split(max(1, TOKENS_AT_ONCE[device.type] // ids.shape[1])))


def advance(model: BlockModel, number: int, batches: Batches, check: Callable[[], None]) -> None:
    """Replace each batch by the block's output for it."""
    for place, hidden in enumerate(batches):
        check()
        batches[place] = model.run(number, hidden, place).to("cpu", torch.bfloat16)


def stages(model: BlockModel, number: int, hidden: torch.Tensor, modules: Sequence[str]) -> list[list[str]]:
    """The modules of a block in the order in which they run; those that are given the very same input together."""
    order: list[tuple[str, torch.Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _module, inputs: order.append((name, inputs[0]))

    with ExitStack() as stack:
        for name in modules:
            handle = model.model.get_submodule(name).register_forward_pre_hook(note(name))
            stack.callback(handle.remove)
        model.run(number, hidden)
    found: list[list[str]] = []
    last = None
    for name, value in order:
        if any(name in stage for stage in found):
            continue
        if value is last:
            found[-1].append(name)
        else:
            found.append([name])
        last = value
    return found


def inputs_of(
    model: BlockModel, number: int, batches: Batches, module: str, check: Callable[[], None]
) -> Iterator[torch.Tensor]:
    """The input of one module of the block for each batch, fp32 `[tokens, features]`; the block runs no further."""
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise StopForward

    handle = model.model.get_submodule(module).register_forward_pre_hook(stop)
    try:
        for place, hidden in enumerate(batches):
            check()
            try:
                model.run(number, hidden, place)
            except StopForward:
                yield seen.pop().flatten(0, -2).float()
    finally:
        handle.remove()


@contextmanager
def rounded_activations(model: BlockModel, specs: Mapping[str, WeightSpec]) -> Iterator[None]:
    """Round the inputs of these modules to int8 where their specs say so, as they will be when the model runs."""

    def rounded(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (fake_quantize_per_token(inputs[0]), *inputs[1:])

    with ExitStack() as stack:
        for name, spec in specs.items():
            if spec.activations is ActivationKind.INT8_TOKEN:
                handle = model.model.get_submodule(name).register_forward_pre_hook(rounded)
                stack.callback(handle.remove)
        yield
