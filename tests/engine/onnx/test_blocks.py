"""Weights as blocks, multiplied by ONNX Runtime's own operator without rounding of activations."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.onnx.blocks import block_size, joined, to_blocks
from quantstudio.engine.quantized_weight import QuantizedWeight

IN_FP32 = 1


def weight_of(spec, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = spec.code_range
    groups = columns // spec.group_size if spec.group_size else 1
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator, dtype=torch.int8)
    scales = (torch.randn(rows, groups, generator=generator) * 0.02).to(torch.bfloat16)  # of either sign
    zeros = None
    if not spec.symmetric:
        zeros = torch.randint(low, high + 1, (rows, groups), generator=generator, dtype=torch.int8)
    return QuantizedWeight(codes, scales, zeros, spec)


def multiply(blocks, x):
    """x `[tokens, columns]` times the weight, by the operator that the engine uses."""
    inputs = {"codes": blocks.codes, "scales": blocks.scales}
    if blocks.zero_points is not None:
        inputs["zeros"] = blocks.zero_points
    initializers = [
        helper.make_tensor(n, helper.np_dtype_to_tensor_dtype(v.numpy().dtype), v.shape, v.numpy().tobytes(), raw=True)
        for n, v in inputs.items()
    ]
    sizes = {"K": blocks.columns, "N": blocks.rows, "bits": blocks.bits, "block_size": blocks.block}
    node = helper.make_node(
        "MatMulNBits", ["x", *inputs], ["y"], domain="com.microsoft", accuracy_level=IN_FP32, **sizes
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "product", values[:1], values[1:], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy().astype(np.float32)})[0])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("bits", "group", "columns"),
    [(4, 32, 96), (4, 128, 384), (3, 32, 96), (2, 64, 192), (8, None, 96), (8, 32, 96), (4, 48, 144), (4, 512, 1024)],
)
def test_the_product_is_that_of_the_dequantized_weight(bits, group, columns, symmetric):
    weight = weight_of(WeightSpec(bits, group, symmetric), 24, columns)
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(1))
    exact = (
        weight.codes.float()
        - (0 if symmetric else weight.zero_points.float().repeat_interleave(columns // weight.scales.shape[1], 1))
    ) * weight.scales.float().repeat_interleave(columns // weight.scales.shape[1], 1)
    expected = x @ exact.t()
    found = multiply(to_blocks(weight), x)
    # Both sum in fp32, in other orders: thousands of times less than one wrong zero point would make.
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_weights_of_one_kind_are_joined_and_others_are_not():
    spec = WeightSpec(4, 32)
    parts = [to_blocks(weight_of(spec, rows, 96, rows)) for rows in (8, 24)]
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(2))
    apart = torch.cat([multiply(part, x) for part in parts], dim=1)
    assert torch.allclose(multiply(joined(parts), x), apart, rtol=1e-5, atol=1e-6)
    assert joined([parts[0], to_blocks(weight_of(WeightSpec(8, 32), 8, 96))]) is None
    assert joined([parts[0], to_blocks(weight_of(WeightSpec(4, 32, symmetric=False), 8, 96))]) is None


@pytest.mark.parametrize(
    ("group", "columns", "block"),
    [(None, 896, 128), (128, 896, 128), (48, 96, 16), (512, 1024, 256), (8, 96, None), (None, 40, None)],
)
def test_blocks_divide_groups(group, columns, block):
    assert block_size(WeightSpec(4, group), columns) == block


def test_a_grid_without_blocks_is_an_error():
    with pytest.raises(ValueError, match="fits no block"):
        to_blocks(weight_of(WeightSpec(4, 8), 8, 96))
