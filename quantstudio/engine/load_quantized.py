"""A model built empty and filled from a quantized folder, each quantized layer as the kernel that runs it.

Weights are read one at a time and become their kernel's own layout at once, so the model is in memory once. The empty
model costs nothing: its weights are allocated but never written, and such memory exists on paper only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from quantstudio.core.errors import ModelDamaged, ModelUnsupported
from quantstudio.engine.attention import ATTENTION, register_attention
from quantstudio.engine.kernels.cpu_int8_bags import CpuInt8Bags
from quantstudio.engine.kernels.dequantized import Dequantized
from quantstudio.engine.kernels.embedding import Int8Embedding
from quantstudio.engine.kernels.registry import Chooser
from quantstudio.engine.memory import trim_freed_memory
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import Reporter

_TRIM_BYTES = 128 << 20
"""Codes, one byte each, after which what kernels left behind goes back to the system."""


def fill(
    model: PreTrainedModel,
    weights: Iterable[tuple[str, QuantizedWeight | torch.Tensor]],
    chooser: Chooser,
    reporter: Reporter,
) -> dict[str, int]:
    """Fill an empty model with the weights of a folder; how many layers run on each kernel.

    Raises ModelDamaged when weights are missing or do not fit, `Cancelled` when asked to stop, and what reading them
    raises.
    """
    filler = _Filler(model, chooser)
    untrimmed = 0
    for name, value in weights:
        reporter.check_cancel()
        if isinstance(value, QuantizedWeight):
            filler.put_module(name, value)
            untrimmed += value.codes.nbytes
        else:
            filler.put_tensor(name, value)
        if untrimmed > _TRIM_BYTES:
            trim_freed_memory()
            untrimmed = 0
    filler.require_whole()
    model.to(chooser.device)
    return filler.counts()


_NO_CODES = (torch.empty(0), torch.empty(0))


class _Filler:
    def __init__(self, model: PreTrainedModel, chooser: Chooser) -> None:
        self._model = model
        self._chooser = chooser
        self._kernels: Counter[str] = Counter()
        self._filled: set[int] = set()
        self._last_codes = _NO_CODES
        self._table: tuple[torch.Tensor, Int8Embedding] | None = None

    def put_module(self, name: str, weight: QuantizedWeight) -> None:
        old = self._module(name)
        shape = tuple(old.weight.shape) if isinstance(old, nn.Linear | nn.Embedding) else None
        if shape != weight.shape:
            raise ModelDamaged(f"The quantized weights of {name} do not fit the model that config.json describes.")
        new = self._embedding(old, weight) if isinstance(old, nn.Embedding) else self._linear(old, weight)
        if new is not None:
            self._model.set_submodule(name, new)

    def put_tensor(self, name: str, value: torch.Tensor) -> None:
        """Fill a parameter or buffer. Names that the model does not have are left alone, as transformers does."""
        module_name, _, leaf = name.rpartition(".")
        try:
            module = self._model.get_submodule(module_name)
        except AttributeError:
            return
        slot = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        if leaf not in slot:
            return
        self._fill(name, slot[leaf], value)

    def require_whole(self) -> None:
        """Raise ModelDamaged when a parameter was never filled."""
        missing = [name for name, value in self._model.named_parameters() if id(value) not in self._filled]
        if missing:
            raise ModelDamaged(
                f"The model lacks {len(missing)} of its weights, such as {missing[0]}.",
                hint="Download or copy the model again, or quantize the original again.",
            )

    def counts(self) -> dict[str, int]:
        plain = sum(isinstance(module, nn.Linear) for module in self._model.modules())
        return dict(self._kernels) | ({"bf16": plain} if plain else {})

    def _embedding(self, old: nn.Embedding, weight: QuantizedWeight) -> nn.Module | None:
        factor = getattr(old, "embed_scale", None)
        if self._chooser.wants_reference or weight.spec.bits != 8 or not _is_known(old):
            self._fill("embedding", old.weight, weight.dequantize())
            self._kernels[Dequantized.name] += 1
            return None
        self._kernels[Int8Embedding.name] += 1
        self._table = weight.codes, Int8Embedding(self._on_device(weight), 1.0 if factor is None else float(factor))
        return self._table[1]

    def _linear(self, old: nn.Module, weight: QuantizedWeight) -> nn.Module:
        kernel = self._chooser.choose(weight.spec, *weight.shape)
        self._kernels[kernel.name] += 1
        bias = old.bias if isinstance(old, nn.Linear) else None
        module = kernel(self._on_device(weight), bias)
        if isinstance(module, CpuInt8Bags) and self._table and self._table[0] is weight.codes:
            self._table[1].share(module.look_up)
            # Now the codes as they were read can go, before the other layers take memory.
            self._table, self._last_codes = None, _NO_CODES
        return module

    def _on_device(self, weight: QuantizedWeight) -> QuantizedWeight:
        device = self._chooser.device
        zeros = None if weight.zero_points is None else weight.zero_points.to(device)
        # A tied head comes right after its embedding, with the same codes: they stay one table there too.
        if self._last_codes[0] is not weight.codes:
            self._last_codes = (weight.codes, weight.codes.to(device))
        return QuantizedWeight(self._last_codes[1], weight.scales.to(device), zeros, weight.spec)

    def _fill(self, name: str, slot: torch.Tensor, value: torch.Tensor) -> None:
        if slot.shape != value.shape:
            raise ModelDamaged(f"{name} has the shape {tuple(value.shape)}; the model wants {tuple(slot.shape)}.")
        slot.data = value.to(slot.dtype)
        self._filled.add(id(slot))

    def _module(self, name: str) -> nn.Module:
        try:
            return self._model.get_submodule(name)
        except AttributeError as error:
            raise ModelDamaged(f"config.json describes a model without the layer {name}.") from error


def _is_known(embedding: nn.Embedding) -> bool:
    """A plain table, or one that multiplies by a constant; other kinds keep their own code."""
    return type(embedding) is nn.Embedding or hasattr(embedding, "embed_scale")


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model that config.json describes, its weights allocated and never written. Raises ModelUnsupported."""
    register_attention()
    # Without this transformers would quantize the empty model itself.
    del config.quantization_config
    try:
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, dtype=torch.bfloat16, attn_implementation=ATTENTION
            )
    except (ValueError, KeyError) as error:
        raise ModelUnsupported("This model is of a kind that cannot be loaded.", why=str(error)) from error
    model.requires_grad_(requires_grad=False)
    model.tie_weights()
    return model
