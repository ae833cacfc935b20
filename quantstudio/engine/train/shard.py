"""A student spread over the processes that train it: PyTorch's FSDP2, and the way back to whole tensors.

The blocks are sharded one by one, and what is left (embedding, head, last norm) with the root, so that head and
embedding of a tied model stay one parameter. Everything that a block trains is gathered in fp32 just before the block
runs and dropped after it, because its grid is computed from fp32 weights; gradients are averaged in fp32.

This is done here and not by the Trainer's `fsdp` option, because accelerate's way does not suit a student:
- Under LoRA the frozen weights are the teacher's own and are there anyway. accelerate can leave out modules, not single
  parameters, so each process would hold them whole and a share of them once more.
- Its root would be the module with the loss around the student, and FSDP lets only roots be run; evaluations and
  samples run the student by itself.
- Its checkpoints hold the weights twice, and every frozen one. Ours are those of a training on one GPU.
- It does not work on CPUs, where the tests are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quantstudio.engine.sensitivity.restart import decoder_blocks
from quantstudio.engine.train import group


def shard(student: nn.Module, device: str) -> None:
    """Leave this process its share of everything that trains, in place. Every process must call this."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (group.count(),))
    frozen = {value for value in student.parameters() if not value.requires_grad}
    for block in decoder_blocks(student):
        fully_shard(block, mesh=mesh, ignored_params=frozen)
    fully_shard(student, mesh=mesh, ignored_params=frozen)


def reshard(student: nn.Module) -> None:
    """Drop what a forward pass without gradients has left gathered, so that all parameters are shares."""
    if group.together():
        from torch.distributed.fsdp import FSDPModule

        for module in student.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def whole(value: torch.Tensor) -> torch.Tensor:
    """The tensor of which `value` is a share, on the CPU; one that is no share as it is.

    Every process must call this, for the same tensors in the same order.
    """
    full = getattr(value, "full_tensor", None)
    return value if full is None else full().cpu()


def own(value: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor: its share, or all of it."""
    local = getattr(value, "to_local", None)
    return value if local is None else local()


def put(value: torch.Tensor, full: torch.Tensor) -> None:
    """Overwrite `value` with its share of `full`, or with all of it."""
    own(value).copy_(own(_share(full, value)))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What the optimizer has gathered of each parameter, whole, by number and name; empty but in the first process.

    Every process must call this.
    """
    found: dict[str, torch.Tensor] = {}
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensor = whole(value)
            if group.is_first():
                found[f"{number}.{name}"] = tensor.contiguous()
    group.meet()
    return found


def load_whole_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The opposite of `whole_state`, in every process from the same tensors."""
    places = [value for part in optimizer.param_groups for value in part["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        share = _share(value, places[int(number)]) if value.dim() else value  # the count of steps is no share
        state.setdefault(int(number), {})[name] = share
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _share(full: torch.Tensor, like: Any) -> Any:
    """This process's part of a tensor that every process has, without a word between them."""
    from torch.distributed.tensor import distribute_tensor

    if not hasattr(like, "device_mesh"):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
