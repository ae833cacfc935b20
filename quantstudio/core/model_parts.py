"""Which part of a language model a tensor belongs to, told from its name, its shape and the model's type.

Names suffice to plan and to price a recipe without torch. They can be wrong about an architecture that nobody has
tried, so before anything is written the engine compares them with the real modules on the meta device.

Names are those of the files. Where transformers renames while loading (GPT-NeoX's `embed_out` becomes `lm_head` from
transformers 5 on), the engine knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """The four parts in which sizes are reported."""

    EMBEDDING = "embedding"
    LAYER = "layer"
    HEAD = "head"
    REST = "rest"
    """Norms, biases, position tables, buffers."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in the model's files. `dtype` as safetensors writes it ("BF16"); `file` is a file name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    nbytes: int
    part: Part


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """A weight matrix `[rows, columns]` (output × input features) that could be quantized, or the reason why not.

    `module` is the tensor's name without ".weight". In a tied model the head has a slot too, `lm_head`, whose `tensor`
    is the embedding's.
    """

    module: str
    tensor: str
    rows: int
    columns: int
    part: Part
    quantizable: bool
    why_not: str = ""


FLOAT_DTYPES = frozenset({"BF16", "F16", "F32", "F64"})
TIED_HEAD = "lm_head"

_EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings", "tokens_embed"})
_HEADS = frozenset({"lm_head", "embed_out", "output_projection"})
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|positions_embed|rotary_emb)(\.|$)")
_EXPERTS = re.compile(r"\.experts(\.|$)")
_ROUTER = re.compile(r"(^|\.)(gate|router|router\.\w+|wg|shared_expert_gate)$")
_OTHER_TOWERS = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|audio_tower|audio_model|multi_modal_projector|mm_projector|embed_vision)\."
)
IN_ANOTHER_TOWER = "part of the encoder for images or sound"
_CONVOLUTION = re.compile(r"(^|\.)conv\w*$")
_INSIDE_LAYERS = re.compile(r"(^|\.)(layers?|h|blocks?)\.\d+\.")

CONV1D_TYPES = frozenset({"gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose layers are transformers' `Conv1D`, which stores its weight transposed."""

# fmt: off
TIED_BY_DEFAULT = frozenset({
    "biogpt", "bloom", "cohere", "cohere2", "cohere2_moe", "ctrl", "ernie4_5", "ernie4_5_moe", "falcon",
    "falcon_mamba", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4",
    "gemma4_text", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "granite_swa", "jetmoe",
    "lfm2", "lfm2_moe", "mamba", "minicpm3", "modernbert-decoder", "mpt", "openai-gpt", "opt",
    "recurrent_gemma", "smollm3", "starcoder2", "vaultgemma", "xglm", "youtu", "zamba", "zamba2",
})
# fmt: on
"""Model types whose configuration class in transformers 5 ties head and embedding when config.json does not say."""


QUANTIZED_COMPANIONS = frozenset({"weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale"})
"""What compressed-tensors stores beside the codes of a weight, under the same module."""
PACKED, SCALE = "weight_packed", "weight_scale"


def part_of(name: str, shape: tuple[int, ...]) -> Part:
    """The part that the tensor called `name` belongs to."""
    module, _, leaf = name.rpartition(".")
    last = module.rpartition(".")[2]
    if leaf in QUANTIZED_COMPANIONS:
        return part_of(f"{module}.weight", (1, 1))
    if leaf in ("bias", "masked_bias"):  # old checkpoints also call their square attention masks so
        return Part.REST
    if last in _HEADS:
        return Part.HEAD if len(shape) == 2 else Part.REST
    if last in _EMBEDDINGS and len(shape) == 2 and not _INSIDE_LAYERS.search(name):
        return Part.EMBEDDING
    if len(shape) < 2 or _POSITIONS.search(module) or _OTHER_TOWERS.search(name):
        return Part.REST
    return Part.LAYER


def is_position_table(name: str, shape: tuple[int, ...]) -> bool:
    """Whether this is a learned table with a row for each position."""
    return len(shape) == 2 and _POSITIONS.search(name) is not None


def slot_of(tensor: TensorInfo, model_type: str) -> WeightSlot | None:
    """The weight matrix that a tensor is, or None where nobody would look for one (norms, biases, position tables)."""
    module, _, leaf = tensor.name.rpartition(".")
    if tensor.part is Part.REST and _OTHER_TOWERS.search(tensor.name) and leaf == "weight" and len(tensor.shape) == 2:
        return WeightSlot(module, tensor.name, *tensor.shape, Part.REST, quantizable=False, why_not=IN_ANOTHER_TOWER)
    if tensor.part is Part.REST or leaf in QUANTIZED_COMPANIONS:
        return None
    module = module if leaf in ("weight", PACKED) else tensor.name
    rows, columns = tensor.shape[-2:]
    why_not = _why_not(tensor, module, model_type)
    return WeightSlot(module, tensor.name, rows, columns, tensor.part, not why_not, why_not)


def _why_not(tensor: TensorInfo, module: str, model_type: str) -> str:
    inner = tensor.part is Part.LAYER
    if inner and (_EXPERTS.search(module) or (len(tensor.shape) > 2 and "expert" in module)):
        return "expert of a mixture-of-experts layer (stored fused)"
    if inner and _ROUTER.search(module):
        return "router of a mixture-of-experts layer"
    if len(tensor.shape) != 2 or _CONVOLUTION.search(module):
        return "not a linear layer"
    if inner and model_type in CONV1D_TYPES:
        return "Conv1D layer"
    if tensor.name.endswith(PACKED):
        return "already quantized"
    if not tensor.name.endswith(".weight"):
        return "not the weight of a linear layer"
    if tensor.dtype not in FLOAT_DTYPES:
        return f"stored as {tensor.dtype}, not as floating point"
    if 0 in tensor.shape:
        return "empty"
    return ""
