"""A model that is never in memory as a whole: its shell (embedding, norms), and one block at a time.

transformers' own code runs the blocks. What a block is given besides its input (masks, rotary tables) is recorded once,
by running the model with blocks that only note their arguments; this works for every family whose blocks are called
one after another, once each, with the same extras whatever the text. Other models are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from quantstudio.core.errors import ModelDamaged, ModelUnsupported
from quantstudio.core.model_info import ModelInfo
from quantstudio.engine.architecture import Architecture, quiet_transformers
from quantstudio.engine.attention import ATTENTION, register_attention
from quantstudio.engine.calibration.settled import Settled

Read = Callable[[str], torch.Tensor]
"""Gives a tensor of the source by its name there."""
Extras = tuple[tuple[Any, ...], dict[str, Any]]


class StopForward(Exception):
    """Ends a forward pass as soon as what was wanted has been seen."""


class BlockModel:
    """The blocks of a causal language model by number, loaded and dropped one by one; the rest when it is needed."""

    def __init__(
        self,
        info: ModelInfo,
        architecture: Architecture,
        quantized: Collection[str],
        read: Read,
        device: torch.device,
    ) -> None:
        """`quantized`: names in transformers of the modules that are quantized; the blocks are found by them.

        Raises ModelUnsupported when the model cannot be built or has no list of blocks.
        """
        self.model = _build(info.path, device)
        self.device = device
        self._read = read
        self._sources = architecture.file_names
        self._fusions = {fusion.target: fusion for fusion in architecture.fusions}
        self._list = _find_blocks(self.model, quantized)
        self.names = [f"{self._list}.{number}" for number in range(len(self.model.get_submodule(self._list)))]  # type: ignore[arg-type]
        self._extras: dict[int, list[Extras]] = {}
        self._settled = Settled()

    def load(self, prefix: str) -> nn.Module:
        """Fill the module of this name from the source. Raises ModelDamaged when weights are missing or do not fit."""
        module = self.model.get_submodule(prefix)
        self._fill(key for key in (*self._sources, *self._fusions) if key.startswith(f"{prefix}."))
        missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
        if missing:
            raise ModelDamaged(
                f"The model lacks weights of {prefix}, such as {missing[0]}.", hint="Download or copy it again."
            )
        return module

    def load_shell(self) -> None:
        """Fill everything outside the blocks, but for the head."""
        head = self.head_name
        outside = (key for key in (*self._sources, *self._fusions) if not key.startswith(f"{self._list}."))
        self._fill(key for key in outside if not head or not key.startswith(f"{head}."))

    def drop(self, prefix: str = "") -> None:
        """Forget the parameters under this name; everything when it is empty. What was settled is so no more."""
        self._settled.forget()
        for module in self.model.get_submodule(prefix).modules():
            _forget_parameters(module)

    @property
    def head_name(self) -> str:
        """The head's name in the model; empty when it has none."""
        head = self.model.get_output_embeddings()
        return next((name for name, module in self.model.named_modules() if module is head), "") if head else ""

    def first_inputs(self, ids: torch.Tensor) -> torch.Tensor:
        """The first block's input, bf16 on the CPU `[sequences, length, width]`, for ids `[sequences, length]`.

        The shell must be loaded. Notes what else each block is given for a batch of this size.
        Raises ModelUnsupported for models whose blocks are not simply called one after another.
        """
        first, calls = self._trace(ids)
        known = self._extras.setdefault(len(ids), calls)
        if len(calls) != len(self.names) or not _same(known, calls):
            raise ModelUnsupported(
                "This kind of model cannot be calibrated block by block.",
                why="Its blocks share work with each other, or are given more than the text's own states.",
                hint="Use round to nearest or HQQ, which need no text, or QAT.",
                field="method",
            )
        return first

    def settle(self, module: str) -> None:
        """This module will not change before `drop`: `run` asks it once for each place, and keeps its answers."""
        self._settled.settle(self.model.get_submodule(module))

    def run(self, number: int, hidden: torch.Tensor, place: int | None = None) -> torch.Tensor:
        """Block `number` on its input `[sequences, length, width]` (on any device): the output on the device.

        `place`: the number of this piece of text; with it, settled modules answer from memory the second time.
        """
        self._settled.start(place)
        args, kwargs = self._extras[len(hidden)][number]
        output = self.model.get_submodule(self.names[number])(hidden.to(self.device), *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def head_inputs(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What the head is given when the last block's output is `hidden`; the shell must be loaded."""
        seen: list[torch.Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(inputs[0])
            raise StopForward

        head = self.model.get_submodule(self.head_name)
        with ExitStack() as stack:
            for block in self._modules():
                stack.enter_context(_instead(block, lambda *_args, **_kwargs: hidden.to(self.device)))
            handle = head.register_forward_pre_hook(stop)
            stack.callback(handle.remove)
            self._forward(ids)
        return seen[0]

    def _trace(self, ids: torch.Tensor) -> tuple[torch.Tensor, list[Extras]]:
        calls: list[Extras] = []
        inputs: list[torch.Tensor] = []

        def note(*args: Any, **kwargs: Any) -> torch.Tensor:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            inputs.append(hidden)
            calls.append((args[1:], kwargs))
            if len(calls) == len(self.names):
                raise StopForward
            return hidden

        with ExitStack() as stack:
            for block in self._modules():
                stack.enter_context(_instead(block, note))
            self._forward(ids)
        return inputs[0].to("cpu", torch.bfloat16), calls

    def _forward(self, ids: torch.Tensor) -> None:
        try:
            self.model(input_ids=ids.to(self.device), use_cache=False)
        except StopForward:
            return

    def _modules(self) -> list[nn.Module]:
        return [self.model.get_submodule(name) for name in self.names]

    def _fill(self, keys: Iterator[str]) -> None:
        for key in keys:
            if key in self._sources:
                self.put(key, self._read(self._sources[key]))
            else:
                for name, tensor in self._fusions[key].fuse(self._read).items():
                    self.put(name, tensor)

    def is_stored(self, key: str) -> bool:
        """Whether the source holds this tensor as it is, so that another value of it can be written."""
        return key in self._sources

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Give a parameter or buffer a value. Names that the model does not have are passed over."""
        module_name, _, leaf = key.rpartition(".")
        module = self.model.get_submodule(module_name)
        old = module._parameters.get(leaf)
        old = module._buffers.get(leaf) if old is None else old
        if old is None:
            return
        if old.shape != tensor.shape:
            raise ModelDamaged(f"{key} has the shape {tuple(tensor.shape)}; the model wants {tuple(old.shape)}.")
        value = tensor.to(self.device, old.dtype)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[leaf] = value


def _build(folder: Path, device: torch.device) -> PreTrainedModel:
    """The model without weights, but with the buffers that no file holds (rotary tables), which a meta build lacks."""
    register_attention()
    with quiet_transformers(), no_init_weights():
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=False, dtype=torch.bfloat16, attn_implementation=ATTENTION
        )
    for module in model.modules():
        _forget_parameters(module)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model.eval()


def _forget_parameters(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def _find_blocks(model: PreTrainedModel, quantized: Collection[str]) -> str:
    """The list of modules that holds most of what is quantized; the outer one where such lists are nested."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    held = {name: sum(module.startswith(f"{name}.") for module in quantized) for name in lists}
    best = max(lists, key=lambda name: (held[name], -len(name)), default="")
    if not best or not held[best]:
        raise ModelUnsupported(
            "This kind of model cannot be calibrated block by block.",
            why="No list of blocks that hold linear layers was found in it.",
            hint="Use round to nearest or HQQ.",
            field="method",
        )
    return best


def _same(one: Any, other: Any) -> bool:
    """Whether two nests of arguments hold equal tensors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return True


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let a module do something else for a while."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
