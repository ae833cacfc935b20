from __future__ import annotations

import pytest
import torch
from torch import nn

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.kernels import cpu_int4, cpu_int8_bags, registry
from quantstudio.engine.kernels.activations import fake_quantize_per_token, quantize_per_token
from quantstudio.engine.kernels.cpu_int4 import CpuInt4
from quantstudio.engine.kernels.cpu_int8 import CpuInt8, CpuInt8Dynamic
from quantstudio.engine.kernels.cpu_int8_bags import CpuInt8Bags
from quantstudio.engine.kernels.cpu_native import NativeInt4, NativeInt8
from quantstudio.engine.kernels.dequantized import Dequantized
from quantstudio.engine.kernels.embedding import Int8Embedding
from quantstudio.engine.kernels.registry import Chooser, relative_error
from quantstudio.engine.native import build
from quantstudio.engine.quantized_weight import QuantizedWeight

CPU = torch.device("cpu")
INT8 = WeightSpec(8, None)
needs_native = pytest.mark.skipif(build.native().library is None, reason=build.native().why_not)
needs_bags = pytest.mark.skipif(not CpuInt8Bags.supports(INT8, 64, 64, CPU), reason="FBGEMM is for x86")
BAGS = pytest.mark.parametrize(
    "kernel", [pytest.param(CpuInt8Bags, marks=needs_bags), pytest.param(NativeInt8, marks=needs_native)]
)


def weight_of(spec: WeightSpec, rows: int, columns: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(rows)
    low, high = spec.code_range
    groups = columns // spec.group_size if spec.group_size else 1

    def codes(width):
        return torch.randint(low, high + 1, (rows, width), generator=generator, dtype=torch.int8)

    scales = (torch.rand(rows, groups, generator=generator) * 0.02 - 0.01).to(torch.bfloat16)
    return QuantizedWeight(codes(columns), scales, None if spec.symmetric else codes(groups), spec)


def chosen(spec: WeightSpec, rows: int, columns: int, log: list[str] | None = None, wanted: str = "auto"):
    return Chooser(CPU, wanted, (log if log is not None else []).append).choose(spec, rows, columns)


@pytest.mark.parametrize("activations", ActivationKind)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 96, 128, 224, 256, None])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_int4_and_less_runs_every_group_of_32_fast_and_right(bits, group, symmetric, activations):
    spec = WeightSpec(bits, group, symmetric, activations)
    columns = {224: 448, 96: 192}.get(group, 256)
    fast = [CpuInt4] if build.native().library is None else [NativeInt4, CpuInt4]
    assert chosen(spec, 64, columns) is fast[0]
    assert all(relative_error(kernel, spec, columns, CPU) < 0.005 for kernel in fast)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_kernel_keeps_the_codes_of_fewer_than_8_bits(bits, symmetric):
    # When a model is loaded, those of the next layer are read to the same place.
    x = torch.randn(5, 64).to(torch.bfloat16)
    spec = WeightSpec(bits, 32, symmetric)
    fitting = [kernel for kernel in registry.KERNELS if kernel.supports(spec, 64, 64, CPU)]
    assert fitting
    for kernel in fitting:
        weight = weight_of(spec, 64, 64)
        module = kernel(weight, None)
        before = module(x)
        weight.codes.zero_()
        assert torch.equal(module(x), before)


@pytest.mark.parametrize("columns", [16, 33, 72, 896])
@pytest.mark.parametrize("kernel", [CpuInt8, CpuInt8Dynamic])
def test_int8_runs_any_width(kernel, columns):
    # Regression: the weight-only operator read past the end of rows whose length 16 does not divide, and crashed.
    activations = ActivationKind.INT8_TOKEN if kernel is CpuInt8Dynamic else ActivationKind.NONE
    assert relative_error(kernel, WeightSpec(8, None, activations=activations), columns, CPU) < 0.005


@pytest.mark.parametrize("activations", ActivationKind)
@pytest.mark.parametrize("columns", [1, 16, 33, 72, 896])
@BAGS
def test_int8_bags_run_any_width(kernel, columns, activations):
    assert relative_error(kernel, WeightSpec(8, None, activations=activations), columns, CPU) < 0.005


@pytest.mark.parametrize("activations", ActivationKind)
@pytest.mark.parametrize("rows", [1, 15, 64, 255, 257, 700, 1500])
@BAGS
def test_int8_bags_take_any_number_of_outputs(kernel, rows, activations):
    torch.manual_seed(rows)
    weight = weight_of(WeightSpec(8, None, activations=activations), rows, 64)
    bias = nn.Parameter(torch.randn(rows).to(torch.bfloat16), requires_grad=False)
    other = CpuInt8Dynamic if activations is ActivationKind.INT8_TOKEN else CpuInt8
    bags, reference = kernel(weight, bias), other(weight, bias)
    for tokens in (1, 3, 200):
        x = torch.randn(2, tokens, 64).to(torch.bfloat16)
        assert bags(x).shape == (2, tokens, rows)
        # bf16 is 0.016 apart between 4 and 8, and the reference rounds before and after the bias.
        torch.testing.assert_close(bags(x).float(), reference(x).float(), rtol=0.02, atol=0.03)
    assert torch.equal(bags.look_up(torch.arange(rows)), weight.codes)


@needs_bags
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_int8_bags_give_all_threads_about_as_much(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for rows in (896, 1152, 4864, 9728, 151_936):
        block = cpu_int8_bags._block(rows)
        longest = -(-rows // (block * threads)) * block
        assert block <= 256
        assert longest * threads < 1.1 * rows, "what the last thread still does while the others wait"


@needs_bags
def test_joined_int8_bags_share_one_table_and_its_blocks():
    parts = [CpuInt8Bags(weight_of(INT8, rows, 64)) for rows in (896, 128, 128)]
    x = torch.randn(1, 64).to(torch.bfloat16)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    joined = CpuInt8Bags.join(parts)
    assert torch.equal(joined(x), expected)
    assert [part.table.data_ptr() for part in parts] == [joined.table[start].data_ptr() for start in (0, 7, 8)]
    assert torch.equal(torch.cat([part(x) for part in parts], dim=-1), expected), "the parts still work"
    assert CpuInt8Bags.join([parts[0], CpuInt8Bags(weight_of(INT8, 50, 64))]) is None, "no block ends at row 896 and 50"


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 100, 1500])
@pytest.mark.parametrize("kernel", [CpuInt4, pytest.param(NativeInt4, marks=needs_native)])
def test_int4_takes_any_number_of_outputs(kernel, rows):
    torch.manual_seed(rows)
    weight = weight_of(WeightSpec(4, 32), rows, 64)
    bias = nn.Parameter(torch.randn(rows).to(torch.bfloat16), requires_grad=False)
    fast, reference = kernel(weight, bias), Dequantized(weight, bias)
    for tokens in (1, 3, 200):
        x = torch.randn(2, tokens, 64).to(torch.bfloat16)
        assert fast(x).shape == (2, tokens, rows)
        torch.testing.assert_close(fast(x).float(), reference(x).float(), rtol=0.02, atol=0.02)


@needs_native
@pytest.mark.parametrize("kernel", [NativeInt4, NativeInt8])
def test_processors_with_a_matrix_unit_leave_prompts_to_torch(kernel, monkeypatch):
    module = kernel(weight_of(WeightSpec(4, 32) if kernel is NativeInt4 else INT8, 96, 64))
    asked = []
    monkeypatch.setattr(
        kernel, "_together", lambda self, rows: asked.append(len(rows)) or rows.new_zeros(len(rows), 96)
    )
    few, many = torch.randn(20, 64).to(torch.bfloat16), torch.randn(200, 64).to(torch.bfloat16)
    for unit in (False, True):
        monkeypatch.setattr(build, "has_matrix_unit", lambda unit=unit: unit)
        module(few)
        module(many)
    assert asked == [20, 200, 20]


def test_small_groups_fall_back_to_dequantized():
    assert chosen(WeightSpec(4, 16), 64, 64) is Dequantized


def test_unknown_packing_leaves_prompts_to_the_operator(monkeypatch):
    monkeypatch.setattr(cpu_int4, "packing_block", lambda: 0)
    assert relative_error(CpuInt4, WeightSpec(4, 32), 64, CPU) < 0.005


@pytest.mark.parametrize("rows", [1, 63, 64, 100, 300])
def test_packing_is_torchs_own(rows):
    codes = weight_of(WeightSpec(4, 32), rows, 96).codes
    padded = nn.functional.pad(codes.to(torch.int32) + 8, (0, 0, 0, -rows % 64))
    expected = torch.ops.aten._convert_weight_to_int4pack_for_cpu(padded, 1)
    assert torch.equal(cpu_int4._pack(codes), expected.view(torch.uint8).view(-1, 48))


def test_packing_of_this_machine_is_known():
    assert cpu_int4.packing_block() in (32, 64)


@pytest.mark.usefixtures("without_native")
def test_kernel_that_disagrees_is_dropped_once_with_a_log_line(monkeypatch):
    def wrong(self, rows):
        return rows @ torch.zeros(rows.shape[1], self._rows, dtype=rows.dtype)

    monkeypatch.setattr(CpuInt4, "_operator", wrong)
    log: list[str] = []
    chooser = Chooser(CPU, "auto", log.append)
    assert chooser.choose(WeightSpec(4, 32), 64, 64) is Dequantized
    assert chooser.choose(WeightSpec(4, 32), 128, 64) is Dequantized
    assert len(log) == 1
    assert "cpu_int4" in log[0]


def test_operator_that_is_absent_counts_as_wrong(monkeypatch):
    def absent(self, rows):
        raise NotImplementedError

    monkeypatch.setattr(CpuInt4, "_operator", absent)
    assert relative_error(CpuInt4, WeightSpec(4, 32), 64, CPU) == float("inf")


def test_reference_is_the_only_candidate_when_asked_for():
    assert chosen(INT8, 64, 64, wanted=registry.REFERENCE) is Dequantized


def test_dynamic_int8_sums_are_exact():
    spec = WeightSpec(8, None, activations=ActivationKind.INT8_TOKEN)
    weight = weight_of(spec, 64, 512)
    x = torch.randn(7, 512).to(torch.bfloat16)
    codes, scales = quantize_per_token(x)
    sums = codes.long() @ weight.codes.long().t()
    expected = (sums.float() * weight.scales.float().flatten() * scales.float()).to(torch.bfloat16)
    assert torch.equal(CpuInt8Dynamic(weight)(x), expected)


def test_activations_equal_compressed_tensors():
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    args = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
    x = (torch.randn(2, 33, 256) * torch.logspace(-3, 3, 33)[:, None]).to(torch.bfloat16)
    x[0, 0] = 0
    scales, zeros = compute_dynamic_scales_and_zp(x, args, nn.Identity())
    assert torch.equal(fake_quantize_per_token(x), fake_quantize(x, scales, zeros, args))


def test_embedding_equals_the_dequantized_table():
    weight = weight_of(INT8, 40, 64)
    ids = torch.tensor([[0, 39, 7], [7, 7, 1]])
    expected = nn.functional.embedding(ids, weight.dequantize())
    assert torch.equal(Int8Embedding(weight)(ids), expected)
    factor = torch.tensor(8.5, dtype=torch.bfloat16)
    assert torch.equal(Int8Embedding(weight, 8.5)(ids), expected * factor)
