"""The graph of a decoder of the Llama family, written operator by operator.

One graph serves prompts and single tokens: `hidden` goes in, `[1, tokens, features]` in fp32, and the logits of those
tokens come out whose places `wanted` lists. Keys and values lie in buffers that are input and output at once, so the
attention operator writes what is new in place. Weights go to a file beside the graph, one after the other as they come:
the library maps that file, and lets go of each weight once it has its own form of it, so the model is in memory once.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from quantstudio.engine.onnx.blocks import Blocks, joined

Array = npt.NDArray[Any]

OPSET, CONTRIBUTED = 21, "com.microsoft"
IR_VERSION = 10
INT8_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: activations rounded to int8, several times as fast as without."""
_WEIGHTS = "weights.bin"
_INLINE_BYTES = 128
"""Smaller constants stand in the graph, where its optimizer can see them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that a decoder's operators are told."""

    layers: int
    features: int
    heads: int
    shared_heads: int
    """Of keys and values."""
    head_size: int
    vocabulary: int
    epsilon: float
    scale: float
    """What scores of attention are multiplied by."""


@dataclass(slots=True)
class Layer:
    """One decoder layer's weights; norms and biases are vectors in fp32."""

    qkv: Sequence[tuple[Blocks, torch.Tensor | None]]
    output: tuple[Blocks, torch.Tensor | None]
    gate: tuple[Blocks, torch.Tensor | None]
    up: tuple[Blocks, torch.Tensor | None]
    down: tuple[Blocks, torch.Tensor | None]
    input_norm: torch.Tensor
    inner_norm: torch.Tensor
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """A written graph: its file, and how many bytes the weights beside it have."""

    path: Path
    nbytes: int


def key_name(layer: int) -> str:
    """Name of a layer's buffer of keys; its output has `new_` before it."""
    return f"keys_{layer}"


def value_name(layer: int) -> str:
    """Name of a layer's buffer of values; its output has `new_` before it."""
    return f"values_{layer}"


class GraphWriter:
    """Writes a decoder into a folder: `layer` for each in order, then `finish`. What was written need not be kept.

    Raises OSError when the disk fails.
    """

    def __init__(self, shape: Shape, folder: Path) -> None:
        from onnx import TensorProto, helper

        self._helper, self._types = helper, TensorProto
        self._shape = shape
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._folder, self._end = folder, 0
        self._inputs = [
            self._value("hidden", [1, "tokens", shape.features]),
            self._value("last_position", [1], TensorProto.INT32),
            self._value("length", [], TensorProto.INT32),
            self._value("wanted", ["rows"], TensorProto.INT64),
            *(self._value(name, ["capacity", shape.head_size // 2]) for name in ("cosines", "sines")),
        ]
        self._outputs: list[Any] = []
        self._hidden, self._residual = "hidden", ""
        self._layer = 0

    def layer(self, weights: Layer) -> None:
        """Append the next layer."""
        at = f"layer_{self._layer}"
        normed = self._norm(f"{at}.input_norm", weights.input_norm)
        seen = self._attention(at, weights, normed)
        self._hidden = self._product(f"{at}.output", seen, *weights.output)
        normed = self._norm(f"{at}.inner_norm", weights.inner_norm)
        gate, up = self._gate_and_up(at, weights, normed)
        sigmoid = self._node("Sigmoid", [gate], f"{at}.sigmoid")
        active = self._node("Mul", [gate, sigmoid], f"{at}.active")
        inner = self._node("Mul", [active, up], f"{at}.inner")
        self._hidden = self._product(f"{at}.down", inner, *weights.down)
        self._layer += 1

    def finish(self, norm: torch.Tensor, head: tuple[Blocks, torch.Tensor | None]) -> Graph:
        """Append the last norm and the head, and write the graph down."""
        normed = self._norm("norm", norm)
        rows = self._node("Gather", [normed, "wanted"], "rows", axis=1)
        self._product("logits", rows, *head)
        self._outputs.append(self._value("logits", [1, "rows", self._shape.vocabulary]))
        graph = self._helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, self._initializers)
        opsets = [self._helper.make_opsetid("", OPSET), self._helper.make_opsetid(CONTRIBUTED, 1)]
        model = self._helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        path = self._folder / "decoder.onnx"
        path.write_bytes(model.SerializeToString())
        return Graph(path, self._end)

    def _norm(self, name: str, weight: torch.Tensor) -> str:
        """Norm of the stream, to which the last product is added on the way."""
        scale, epsilon = self._constant(f"{name}.weight", weight), self._shape.epsilon
        if not self._residual:
            self._residual = self._hidden
            return self._node("SimplifiedLayerNormalization", [self._hidden, scale], name, axis=-1, epsilon=epsilon)
        inputs, total = [self._hidden, self._residual, scale], f"{name}.sum"
        self._add("SkipSimplifiedLayerNormalization", inputs, [name, "", "", total], CONTRIBUTED, epsilon=epsilon)
        self._residual = total
        return name

    def _attention(self, at: str, weights: Layer, normed: str) -> str:
        shape, layer = self._shape, self._layer
        states = self._side_by_side(f"{at}.qkv", normed, weights.qkv)
        query, key, value = states, "", ""
        if weights.query_norm is not None and weights.key_norm is not None:
            sizes = torch.tensor([shape.heads, shape.shared_heads, shape.shared_heads]) * shape.head_size
            names = [f"{at}.query", f"{at}.key", f"{at}.value"]
            self._add("Split", [states, self._constant(f"{at}.sizes", sizes)], names, axis=-1)
            query = self._head_norm(f"{at}.query_norm", names[0], weights.query_norm)
            key, value = self._head_norm(f"{at}.key_norm", names[1], weights.key_norm), names[2]
        buffers = [key_name(layer), value_name(layer)]
        for name in buffers:
            size: list[int | str] = [1, shape.shared_heads, "capacity", shape.head_size]
            self._inputs.append(self._value(name, size))
            self._outputs.append(self._value(f"new_{name}", size))
        self._add(
            "GroupQueryAttention",
            [query, key, value, *buffers, "last_position", "length", "cosines", "sines"],
            [f"{at}.seen", *(f"new_{name}" for name in buffers)],
            CONTRIBUTED,
            num_heads=shape.heads,
            kv_num_heads=shape.shared_heads,
            scale=shape.scale,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return f"{at}.seen"

    def _head_norm(self, name: str, states: str, weight: torch.Tensor) -> str:
        """Norm of every head by itself."""
        apart = self._constant(f"{name}.apart", torch.tensor([1, -1, weight.shape[0]]))
        together = self._constant(f"{name}.together", torch.tensor([1, -1, self._width(name)]))
        heads = self._node("Reshape", [states, apart], f"{name}.heads")
        scale = self._constant(f"{name}.weight", weight)
        epsilon = self._shape.epsilon
        normed = self._node("SimplifiedLayerNormalization", [heads, scale], f"{name}.normed", axis=-1, epsilon=epsilon)
        return self._node("Reshape", [normed, together], name)

    def _width(self, name: str) -> int:
        heads = self._shape.heads if name.endswith("query_norm") else self._shape.shared_heads
        return heads * self._shape.head_size

    def _gate_and_up(self, at: str, weights: Layer, normed: str) -> tuple[str, str]:
        both = self._side_by_side(f"{at}.gate_up", normed, [weights.gate, weights.up])
        sizes = torch.tensor([weights.gate[0].rows, weights.up[0].rows])
        names = [f"{at}.gate", f"{at}.up"]
        self._add("Split", [both, self._constant(f"{at}.gate_up.sizes", sizes)], names, axis=-1)
        return names[0], names[1]

    def _side_by_side(self, name: str, row: str, parts: Sequence[tuple[Blocks, torch.Tensor | None]]) -> str:
        """What the parts make of one input, side by side; as one product where their grids are alike."""
        one = joined([weight for weight, _ in parts])
        if one is None:
            outputs = [self._product(f"{name}.{number}", row, *part) for number, part in enumerate(parts)]
            return self._node("Concat", outputs, name, axis=-1)
        bias = None
        if any(bias is not None for _, bias in parts):
            bias = torch.cat([torch.zeros(w.rows) if b is None else b.float() for w, b in parts])
        return self._product(name, row, one, bias)

    def _product(self, name: str, row: str, weight: Blocks, bias: torch.Tensor | None) -> str:
        zeros = "" if weight.zero_points is None else self._constant(f"{name}.zeros", weight.zero_points)
        inputs = [row, self._constant(f"{name}.codes", weight.codes), self._constant(f"{name}.scales", weight.scales)]
        if bias is not None:
            inputs += [zeros, "", self._constant(f"{name}.bias", bias.float())]
        elif zeros:
            inputs.append(zeros)
        sizes = {"K": weight.columns, "N": weight.rows, "bits": weight.bits, "block_size": weight.block}
        self._add("MatMulNBits", inputs, [name], CONTRIBUTED, **sizes, accuracy_level=INT8_ACTIVATIONS)
        return name

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: float) -> str:
        self._add(operator, inputs, [output], "", **attributes)
        return output

    def _add(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: float
    ) -> None:
        node = self._helper.make_node(operator, inputs, outputs, name=outputs[0], domain=domain)
        node.attribute.extend(self._helper.make_attribute(name, value) for name, value in attributes.items())
        self._nodes.append(node)

    def _constant(self, name: str, value: torch.Tensor) -> str:
        array = np.ascontiguousarray(value.numpy())
        proto = self._types(name=name, data_type=self._helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        if array.nbytes < _INLINE_BYTES:
            proto.raw_data = array.tobytes()
        else:
            proto.data_location = self._types.EXTERNAL
            place = {"location": _WEIGHTS, "offset": self._write(array), "length": array.nbytes}
            for key, text in place.items():
                proto.external_data.add(key=key, value=str(text))
        self._initializers.append(proto)
        return name

    def _write(self, array: Array) -> int:
        """Append to the file of weights, where a page of memory begins. Returns the place."""
        place = -(-self._end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with (self._folder / _WEIGHTS).open("r+b" if self._end else "wb") as file:
            file.seek(place)
            file.write(array.data)
        self._end = place + array.nbytes
        return place

    def _value(self, name: str, shape: Sequence[int | str], kind: int | None = None) -> Any:
        return self._helper.make_tensor_value_info(name, self._types.FLOAT if kind is None else kind, shape)
