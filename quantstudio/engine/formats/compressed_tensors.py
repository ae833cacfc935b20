"""Quantized weights as compressed-tensors stores them, so that transformers reads the folder without this program.

Two encodings of a `[rows, columns]` weight:

- `pack-quantized`: codes, made unsigned by adding half their range, packed along each row into int32, lowest bits
  first (`weight_packed`); bf16 `weight_scale`; int64 `weight_shape`; when asymmetric, zero points packed the same way
  along the rows (`weight_zero_point`).
- `int-quantized`: codes as they are, one to a byte (`weight`, int8), `weight_scale`, and unpacked zero points.

4-bit weights are packed: nothing else makes the file small. 8-bit layers with bf16 activations are packed too, four to
an int32, because vLLM runs W8A16 only in that encoding; it costs no byte. 8-bit layers with int8 activations, heads
and embeddings are not, which is what readers expect, and what lets a tied head and embedding share one table:
transformers ties `lm_head.weight` to the embedding's int8 codes, and the head only adds scales of its own.

Packed zero points are followed by zeros up to one row per output row. transformers 5 with compressed-tensors 0.20
allocates them at that shape and refuses the short tensor that compressed-tensors itself would write; unpacking reads
only the front, so both shapes decode alike, and we read both. The price is 28 bits a group.

Targets in config.json name every module exactly, so nothing is quantized by accident of a pattern. When reading,
patterns ("re:…") are refused: they come from strangers, and a regular expression can run for years.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from quantstudio.core.errors import ModelDamaged, ModelUnsupported
from quantstudio.core.model_files import CONFIG, MAX_CONFIG_BYTES, StoredTensor, read_json_object
from quantstudio.core.model_parts import Part
from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.safetensors_io import CheckpointReader, NewTensor
from quantstudio.engine.scratch import Scratch

QUANT_METHOD = "compressed-tensors"
WORD_BITS = 32
SUFFIXES = (".weight", ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point")


class Encoding(StrEnum):
    """How one module's weight is stored; the values are those of config.json."""

    PACKED = "pack-quantized"
    PLAIN = "int-quantized"


@dataclass(frozen=True, slots=True)
class StoredModule:
    """A quantized module on its way to disk."""

    module: str
    rows: int
    columns: int
    spec: WeightSpec
    encoding: Encoding
    shares_codes: bool = False
    """A tied head: its codes are the embedding's, so only its scales are stored."""


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """What config.json and the tensors' names say of a folder's quantization."""

    specs: dict[str, WeightSpec]
    """Grid of each quantized module, by its name; empty for a model that is not quantized."""
    shared: dict[str, str]
    """Tied modules: head → embedding whose codes it uses."""


def encoding_for(spec: WeightSpec, part: Part) -> Encoding:
    """How a weight of this part of the model is stored."""
    if spec.bits < 8 or (part is Part.LAYER and spec.activations is ActivationKind.NONE):
        return Encoding.PACKED
    return Encoding.PLAIN


def layout(stored: StoredModule) -> list[NewTensor]:
    """Names, dtypes and shapes of the tensors that a module becomes: known before a single weight is read."""
    rows, columns, spec = stored.rows, stored.columns, stored.spec
    groups = columns // spec.group_size if spec.group_size else 1
    scales = NewTensor(f"{stored.module}.weight_scale", "BF16", (rows, groups))
    if stored.shares_codes:
        return [scales]
    if stored.encoding is Encoding.PLAIN:
        tensors = [NewTensor(f"{stored.module}.weight", "I8", (rows, columns)), scales]
        zero_points = NewTensor(f"{stored.module}.weight_zero_point", "I8", (rows, groups))
    else:
        words = math.ceil(columns * spec.bits / WORD_BITS)
        tensors = [
            NewTensor(f"{stored.module}.weight_packed", "I32", (rows, words)),
            scales,
            NewTensor(f"{stored.module}.weight_shape", "I64", (2,)),
        ]
        zero_points = NewTensor(f"{stored.module}.weight_zero_point", "I32", (rows, groups))
    return tensors if spec.symmetric else [*tensors, zero_points]


def encode_rows(weight: QuantizedWeight, stored: StoredModule) -> dict[str, torch.Tensor]:
    """The tensors, by full name, that hold one row for each row of the weight: a block of rows may be written alone."""
    tensors = {f"{stored.module}.weight_scale": weight.scales}
    if stored.shares_codes:
        return tensors
    if stored.encoding is Encoding.PLAIN:
        return tensors | {f"{stored.module}.weight": weight.codes}
    return tensors | {f"{stored.module}.weight_packed": pack(weight.codes, weight.spec.bits)}


def encode_whole(stored: StoredModule, zero_points: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The tensors that belong to the whole matrix. `zero_points`: int8 `[rows, groups]`, or None when symmetric."""
    tensors: dict[str, torch.Tensor] = {}
    if stored.encoding is Encoding.PACKED:
        tensors[f"{stored.module}.weight_shape"] = torch.tensor((stored.rows, stored.columns), dtype=torch.int64)
    if zero_points is not None:
        name = f"{stored.module}.weight_zero_point"
        tensors[name] = zero_points if stored.encoding is Encoding.PLAIN else _pack_zero_points(zero_points, stored)
    return tensors


def encode(weight: QuantizedWeight, stored: StoredModule) -> dict[str, torch.Tensor]:
    """All tensors of a module by full name, as `layout` promises them."""
    whole = {} if stored.shares_codes else encode_whole(stored, weight.zero_points)
    return encode_rows(weight, stored) | whole


def quantization_config(modules: Iterable[StoredModule], ignore: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config` of config.json: one group for each kind of weight, naming its modules.

    `ignore`: linear modules that stay unquantized; other readers insist on hearing of them.
    """
    groups: dict[tuple[WeightSpec, Encoding], list[str]] = {}
    for stored in modules:
        groups.setdefault((stored.spec, stored.encoding), []).append(stored.module)
    formats = {encoding for _, encoding in groups}
    return {
        "quant_method": QUANT_METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "config_groups": {
            f"group_{number}": _group(spec, encoding, targets)
            for number, ((spec, encoding), targets) in enumerate(groups.items())
        },
    }


def read_config(folder: Path) -> StoredScheme:
    """How the modules of a model folder are quantized.

    Raises ModelUnsupported for quantization that this program cannot run, ModelNotFound, ModelDamaged or ModelUnsafe
    for a bad folder.
    """
    with CheckpointReader(folder) as reader:
        return _read_scheme(folder, reader)


def read_weights(folder: Path, scratch: Scratch | None = None) -> Iterator[tuple[str, QuantizedWeight | torch.Tensor]]:
    """Every weight of a folder, one at a time, in the order of the files, but the largest first.

    Those are the embedding and the head. As read and as a kernel wants them they take the most memory, which should not
    come on top of all the layers; and reading them leaves the lock of Python for long to the tokenizer, which needs it.
    A quantized module comes as (module name, QuantizedWeight), any other tensor as (its full name, Tensor). A tied head
    follows the embedding whose codes it uses, as a QuantizedWeight with the very same `codes` tensor.
    With `scratch`, the codes of weights of fewer than 8 bits are valid only until the next weight is asked for.
    Raises what `read_config` raises; ModelDamaged when tensors contradict each other.
    """
    with CheckpointReader(folder) as reader:
        scheme = _read_scheme(folder, reader)
    return _weights(reader, scheme, scratch)


def _weights(
    reader: CheckpointReader, scheme: StoredScheme, scratch: Scratch | None
) -> Iterator[tuple[str, QuantizedWeight | torch.Tensor]]:
    with reader:
        done: set[str] = set()
        for name in _largest_first(reader.tensors):
            module = _module_of(name, scheme.specs)
            if module is None:
                yield name, reader.read(name)
            elif module not in done and module not in scheme.shared:
                done.add(module)
                weight = _decode(reader, module, scheme.specs[module], scratch)
                yield module, weight
                for head in [head for head, table in scheme.shared.items() if table == module]:
                    scales = reader.read(f"{head}.weight_scale").to(torch.bfloat16)
                    yield head, QuantizedWeight(weight.codes, scales, None, scheme.specs[head])


def _largest_first(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Names in the order of the files, save that those of at least half the largest tensor's bytes come first."""
    large = max((tensor.nbytes for tensor in tensors.values()), default=0) / 2
    return sorted(tensors, key=lambda name: tensors[name].nbytes < large)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes `[rows, columns]` → int32 `[rows, ceil(columns * bits / 32)]`, lowest bits first, no bit unused."""
    padding = -codes.shape[1] % WORD_BITS
    unsigned = torch.nn.functional.pad(codes.view(torch.uint8) + (1 << (bits - 1)), (0, padding))
    if bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    elif bits < 8:
        unsigned = _pack_bytes(unsigned, bits)
    words = math.ceil(codes.shape[1] * bits / WORD_BITS)
    # Flattened first: a single row counts as contiguous whatever its strides, and then cannot be viewed as int32.
    return unsigned.reshape(-1).view(torch.int32).view(codes.shape[0], -1)[:, :words].contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int, scratch: Scratch | None = None) -> torch.Tensor:
    """The opposite of `pack`: int8 `[rows, columns]`, which of 4 bits lie in `scratch` if there is one."""
    unsigned = packed.reshape(-1).view(torch.uint8).view(packed.shape[0], -1)
    if bits == 8:
        return (unsigned[:, :columns] - 128).view(torch.int8)
    unsigned = _unpack_nibbles(unsigned, scratch or Scratch()) if bits == 4 else _unpack_bytes(unsigned, bits)
    return unsigned.sub_(1 << (bits - 1)).view(torch.int8)[:, :columns].contiguous()


def _unpack_nibbles(packed: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Both halves of each byte as bytes, the lower first: by whole int16s, a third of the time of stacking them."""
    wide, shifted = (scratch.empty(name, tuple(packed.shape), torch.int16) for name in ("codes", "shifted"))
    torch.bitwise_left_shift(wide.copy_(packed), 4, out=shifted)
    return wide.bitwise_or_(shifted).bitwise_and_(0x0F0F).view(torch.uint8)


def _pack_bytes(unsigned: torch.Tensor, bits: int) -> torch.Tensor:
    """Eight codes fill `bits` bytes, for any number of bits. uint8 `[rows, columns]`, columns a multiple of 32."""
    eights = unsigned.view(unsigned.shape[0], -1, 8)
    out = torch.zeros(*eights.shape[:2], bits, dtype=torch.uint8, device=unsigned.device)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        out[..., byte] |= eights[..., place] << shift
        if shift + bits > 8:
            out[..., byte + 1] |= eights[..., place] >> (8 - shift)
    return out.view(unsigned.shape[0], -1)


def _unpack_bytes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    padding = -packed.shape[1] % bits  # rows whose last word is not full
    groups = torch.nn.functional.pad(packed, (0, padding)).view(packed.shape[0], -1, bits)
    out = torch.empty(*groups.shape[:2], 8, dtype=torch.uint8, device=packed.device)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        out[..., place] = groups[..., byte] >> shift
        if shift + bits > 8:
            out[..., place] |= groups[..., byte + 1] << (8 - shift)
    return out.view(packed.shape[0], -1) & ((1 << bits) - 1)


def _pack_zero_points(zero_points: torch.Tensor, stored: StoredModule) -> torch.Tensor:
    packed = pack(zero_points.t(), stored.spec.bits).t()
    padded = torch.zeros(stored.rows, zero_points.shape[1], dtype=torch.int32)
    padded[: packed.shape[0]] = packed
    return padded


def _group(spec: WeightSpec, encoding: Encoding, targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": spec.bits,
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": "group" if spec.group_size else "channel",
        "group_size": spec.group_size,
        "dynamic": False,
    }
    activations = None
    if spec.activations is ActivationKind.INT8_TOKEN:
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": encoding,
    }


def _read_scheme(folder: Path, reader: CheckpointReader) -> StoredScheme:
    config = read_json_object(folder / CONFIG, MAX_CONFIG_BYTES)
    settings = config.get("quantization_config")
    if settings is None:
        return StoredScheme({}, {})
    if not isinstance(settings, dict) or settings.get("quant_method") != QUANT_METHOD:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise _unsupported(f"it was quantized with {str(method)[:40]!r}; only {QUANT_METHOD} is understood")
    targets = _targets(settings)
    modules = [name.removesuffix(".weight_scale") for name in reader.tensors if name.endswith(".weight_scale")]
    specs = {module: _spec_of(module, targets) for module in modules}
    shared = {module: _table_of(module, specs, reader) for module in modules if not _has_codes(module, reader)}
    return StoredScheme(specs, shared)


def _targets(settings: Mapping[str, Any]) -> dict[str, WeightSpec]:
    groups = settings.get("config_groups")
    if not isinstance(groups, dict):
        raise _unsupported("its config.json does not list the quantized layers")
    targets: dict[str, WeightSpec] = {}
    for group in groups.values():
        names = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _unsupported("its config.json does not list the quantized layers")
        if any(name.startswith("re:") for name in names):
            raise _unsupported("its config.json names layers by regular expressions, which are not run here")
        targets |= dict.fromkeys(names, _spec(group))
    return targets


def _spec(group: Mapping[str, Any]) -> WeightSpec:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict) or weights.get("type") != "int" or weights.get("num_bits") not in (2, 3, 4, 8):
        raise _unsupported("its weights are not integers of 2, 3, 4 or 8 bits")
    size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy == "group" and type(size) is int and size > 0:
        group_size = size
    elif strategy == "channel":
        group_size = None
    else:
        raise _unsupported(f"its weights share scales by {str(strategy)[:40]!r}, not by group or channel")
    return WeightSpec(weights["num_bits"], group_size, weights.get("symmetric", True) is True, _activations(inputs))


def _activations(inputs: object) -> ActivationKind:
    if inputs is None:
        return ActivationKind.NONE
    wanted = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    if isinstance(inputs, dict) and all(inputs.get(key) == value for key, value in wanted.items()):
        return ActivationKind.INT8_TOKEN
    raise _unsupported("its activations are not quantized to int8 per token")


def _spec_of(module: str, targets: Mapping[str, WeightSpec]) -> WeightSpec:
    spec = targets.get(module) or targets.get("Linear")
    if spec is None:
        raise ModelDamaged(
            f"{module} holds quantized weights, but config.json does not say how they are stored.",
            hint="Download or copy the model again.",
        )
    return spec


def _has_codes(module: str, reader: CheckpointReader) -> bool:
    return f"{module}.weight" in reader.tensors or f"{module}.weight_packed" in reader.tensors


def _table_of(head: str, specs: Mapping[str, WeightSpec], reader: CheckpointReader) -> str:
    """The embedding whose codes a tied head uses: the one int8 table whose scales are the head's."""
    scales = reader.read(f"{head}.weight_scale")
    for module in specs:
        plain = specs[module].bits == 8 and f"{module}.weight" in reader.tensors
        name = f"{module}.weight_scale"
        if plain and reader.tensors[name].shape == tuple(scales.shape) and torch.equal(reader.read(name), scales):
            return module
    raise ModelDamaged(f"The quantized weights of {head} are missing.", hint="Download or copy the model again.")


def _module_of(name: str, specs: Mapping[str, WeightSpec]) -> str | None:
    module, _, leaf = name.rpartition(".")
    return module if module in specs and f".{leaf}" in SUFFIXES else None


def _decode(reader: CheckpointReader, module: str, spec: WeightSpec, scratch: Scratch | None = None) -> QuantizedWeight:
    scales = reader.read(f"{module}.weight_scale").to(torch.bfloat16)
    if f"{module}.weight_packed" in reader.tensors:
        rows, columns = _packed_shape(reader, module)
        packed = reader.read(f"{module}.weight_packed", scratch)
        _require(module, packed.dtype == torch.int32 and packed.shape == (rows, math.ceil(columns * spec.bits / 32)))
        codes = unpack(packed, spec.bits, columns, scratch)
    else:
        codes = reader.read(f"{module}.weight")
        _require(module, codes.dtype == torch.int8 and codes.dim() == 2)
        rows, columns = codes.shape
    groups = columns // spec.group_size if spec.group_size else 1
    _require(module, scales.shape == (rows, groups) and spec.fits(columns))
    return QuantizedWeight(codes, scales, _decode_zero_points(reader, module, spec, (rows, groups)), spec)


def _packed_shape(reader: CheckpointReader, module: str) -> tuple[int, int]:
    name = f"{module}.weight_shape"
    _require(module, name in reader.tensors and reader.tensors[name].shape == (2,))
    rows, columns = (int(size) for size in reader.read(name))
    _require(module, rows > 0 and columns > 0)
    return rows, columns


def _decode_zero_points(
    reader: CheckpointReader, module: str, spec: WeightSpec, shape: tuple[int, int]
) -> torch.Tensor | None:
    if spec.symmetric:
        return None
    _require(module, f"{module}.weight_zero_point" in reader.tensors)
    stored = reader.read(f"{module}.weight_zero_point")
    rows, groups = shape
    if stored.dtype == torch.int32 and stored.dim() == 2:
        _require(module, math.ceil(rows * spec.bits / WORD_BITS) <= stored.shape[0])
        stored = unpack(stored.t(), spec.bits, rows).t().contiguous()
    _require(module, stored.dtype == torch.int8 and stored.shape == (rows, groups))
    return stored


def _require(module: str, condition: bool) -> None:  # noqa: FBT001 - reads as "require that"
    if not condition:
        raise ModelDamaged(
            f"The quantized weights of {module} contradict config.json in shape or dtype.",
            hint="Download or copy the model again.",
        )


def _unsupported(why: str) -> ModelUnsupported:
    return ModelUnsupported(
        "This quantized model cannot be run here.",
        why=f"{why[0].upper()}{why[1:]}.",
        hint="Start from the original model and quantize it here.",
        field="model.id",
    )
