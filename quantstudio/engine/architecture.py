"""What a model is really made of, asked of transformers without reading a weight.

Plans are made from names in the files, without torch. Before anything is written, the model is built on the meta device
(shapes only, milliseconds) and every planned matrix is looked up in it: is it a linear layer or embedding of that shape
under the name that transformers will look for? Files and modules may disagree: transformers 5 renames while loading
(GPT-NeoX's `embed_out` becomes `lm_head`) and fuses the experts of mixture-of-experts models into one tensor. Fused
tensors must be written fused: in a quantized folder transformers would look for packed experts and find none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.first_layers import shortened_config
from quantstudio.core.model_files import CONFIG, MAX_CONFIG_BYTES, read_json_object
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.model_parts import Part, WeightSlot
from quantstudio.engine.failures import is_out_of_memory


@dataclass(frozen=True, slots=True)
class Fusion:
    """Several tensors of the files that transformers turns into other tensors when it loads them."""

    target: str
    sources: tuple[tuple[str, str], ...]
    """Tensor names in the files, in the order that transformers wants, each with the pattern that it matched."""
    converter: WeightConverter

    def fuse(self, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors as the model has them, by their names there; `read` gives the tensors of the files."""
        converter = deepcopy(self.converter)
        for name, pattern in self.sources:
            tensor = read(name)
            converter.add_tensor(self.target, name, pattern, lambda tensor=tensor: tensor)
        return dict(converter.convert(self.target))


@dataclass(frozen=True, slots=True)
class Architecture:
    """The modules of a model that matter here, by the names they have in transformers."""

    linears: dict[str, tuple[int, int]]
    """Every linear layer with its (output features, input features)."""
    embeddings: dict[str, tuple[int, int]]
    """Every embedding table with its (rows, columns)."""
    modules: dict[str, str]
    """Name in the files → name in transformers, for every weight slot that becomes one module's weight."""
    kinds: dict[str, str]
    """Class name of each of those modules."""
    fusions: tuple[Fusion, ...] = ()
    """Tensors that the output must hold as the model has them."""
    keys: dict[str, str] = field(default_factory=dict)
    """Name in the files → name in the model, for every tensor that is only renamed."""

    @property
    def file_names(self) -> dict[str, str]:
        """Name in the model → name in the files, for the same tensors as `keys`."""
        return {key: name for name, key in self.keys.items()}

    def why_not(self, slot: WeightSlot) -> str:
        """Why this matrix cannot be quantized after all; empty when it can."""
        module = self.modules.get(slot.module)
        if module is None:
            return "fused or reshaped with others when transformers loads it"
        known = self.embeddings if slot.part is Part.EMBEDDING else self.linears
        if module not in known:
            return f"{self.kinds[module]} layer"
        if known[module] != (slot.rows, slot.columns):
            return f"stored as {slot.rows} × {slot.columns}, but the model wants {' × '.join(map(str, known[module]))}"
        return ""


def inspect_architecture(info: ModelInfo) -> Architecture:
    """Build the model on the meta device and match the slots of its files with its modules.

    Raises ModelUnsupported when transformers cannot build the model. Runs no code from the folder.
    """
    model = build_empty(info.path, info.layers if info.removed_layers else 0)
    named = dict(model.named_modules())
    keys, fusions = _renamed(model, [tensor.name for tensor in info.tensors])
    names = _module_names(model, info, keys)
    return Architecture(
        linears=_shapes(named, nn.Linear),
        embeddings=_shapes(named, nn.Embedding),
        modules=names,
        kinds={name: type(named[name]).__name__ for name in names.values()},
        fusions=fusions,
        keys=keys,
    )


def build_empty(folder: Path, layers: int = 0) -> PreTrainedModel:
    """The causal language model of a folder with bf16 parameters on the meta device. Raises ModelUnsupported.

    `layers`: how many of its first decoder layers it shall have; 0: all.
    """
    try:
        with quiet_transformers(), torch.device("meta"):
            changed = shortened_config(read_json_object(folder / CONFIG, MAX_CONFIG_BYTES), layers) if layers else {}
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True, **changed)
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=False, attn_implementation="eager", dtype=torch.bfloat16
            )
    # Whatever a stranger's config.json makes transformers trip over, the answer is the same.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelUnsupported(
            f"The model in {folder.name} cannot be built by transformers.",
            why=f"{' '.join(str(error).split())[:300].rstrip('.')}.",
            hint="Choose a causal language model of a known architecture. Code that a model brings along is not run.",
            field="model.id",
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' hints about configurations away from people who cannot act on them."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)


def _shapes(named: dict[str, nn.Module], kind: type[nn.Linear] | type[nn.Embedding]) -> dict[str, tuple[int, int]]:
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in named.items()
        if isinstance(module, kind)
    }


def _renamed(model: PreTrainedModel, tensors: list[str]) -> tuple[dict[str, str], tuple[Fusion, ...]]:
    """Name in the model of every tensor that is only renamed, and the fusions that the others take part in."""
    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    keys: dict[str, str] = {}
    sources: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(tensors, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if pattern is not None:
            sources.setdefault(key, []).append((name, pattern))
        elif key in state:
            keys[name] = key
    fusions = tuple(Fusion(key, tuple(found), by_pattern[found[0][1]]) for key, found in sources.items())
    return keys, fusions


def _module_names(model: PreTrainedModel, info: ModelInfo, keys: dict[str, str]) -> dict[str, str]:
    named = {id(module): name for name, module in model.named_modules()}
    head = named.get(id(model.get_output_embeddings()))
    names: dict[str, str] = {}
    for slot in info.slots:
        if info.tied and slot.part is Part.HEAD:
            if head is not None:
                names[slot.module] = head
        elif keys.get(slot.tensor, "").endswith(".weight"):
            names[slot.module] = keys[slot.tensor].removesuffix(".weight")
    return names
