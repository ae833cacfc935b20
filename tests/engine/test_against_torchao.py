"""Our grids against torchao's: a quantizer, and gradients through it, that we did not write.

torchao takes scales and zero points as they are given, so both round to the very same grid, our signed scales included.
It multiplies by 1 / scale in fp32 where we divide, and fp32 is wide enough for that to move a code only where a weight
lies within a ten-thousandth of a step of the middle between two.
"""

from __future__ import annotations

import pytest
import torch
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.kernels.activations import fake_quantize_per_token, quantize_per_token
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.train.grid import fake_quantize, learned_gradients, start_scales

ROWS, COLUMNS = 32, 256
DTYPES = {2: torch.int2, 3: torch.int3, 4: torch.int4, 8: torch.int8}
SPECS = [
    WeightSpec(bits, group, symmetric=symmetric)
    for bits, group in ((2, 32), (3, 32), (4, 32), (4, 128), (4, None), (8, None))
    for symmetric in (True, False)
]
USUAL = [spec for spec in SPECS if spec.bits == 8 or not spec.symmetric]
"""Symmetric grids of fewer bits have signed scales, which torchao does not choose."""
BF16_STEP = 2**-8
"""Of a value that is rounded to bf16, relative."""


def weight() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3)) * 0.02


def theirs(spec: WeightSpec, *, dynamic: bool) -> IntxFakeQuantizer:
    """torchao's fake quantizer of the same bits and groups; not dynamic, it is given scales and zero points."""
    return IntxFakeQuantizer(
        IntxFakeQuantizeConfig(
            DTYPES[spec.bits],
            PerGroup(spec.group_size) if spec.group_size else PerAxis(0),
            is_symmetric=spec.symmetric,
            is_dynamic=dynamic,
        )
    )


def block(spec: WeightSpec) -> tuple[int, int]:
    return 1, spec.group_size or COLUMNS


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_the_same_scales_give_the_same_codes_and_the_same_weights(spec: WeightSpec) -> None:
    mine = quantize_rtn(weight(), spec)
    scales = mine.scales.float()
    zeros = torch.zeros_like(scales) if mine.zero_points is None else mine.zero_points
    grid = (block(spec), scales, zeros.to(torch.int32))
    codes = quantize_affine(weight(), *grid, torch.int8, *spec.code_range)
    assert (codes != mine.codes).float().mean() < 1e-3
    assert (codes.int() - mine.codes).abs().max() <= 1
    # Theirs in fp32, ours rounded to bf16 in the end.
    plain = dequantize_affine(mine.codes, *grid, torch.int8, *spec.code_range)
    assert torch.equal(plain.to(torch.bfloat16), mine.dequantize())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_training_feels_the_grid_and_the_gradients_that_torchao_s_does(spec: WeightSpec) -> None:
    """Scales a fifth too small, so that weights lie beyond the grid: those get no gradient, and the scales do (LSQ)."""
    start, zeros = start_scales(weight(), spec)
    start = (start * 0.8).to(torch.bfloat16).float()
    gain = torch.zeros_like(start)
    quantizer = theirs(spec, dynamic=False)
    quantizer.scale = start.clone().requires_grad_()
    quantizer.zero_point = torch.zeros_like(start) if zeros is None else zeros
    learner = weight().requires_grad_()
    rounded = quantizer(learner)
    gradient = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(4))
    rounded.backward(gradient)

    mine = fake_quantize(weight(), spec, start, gain, zeros)
    same = (mine - rounded).abs() <= BF16_STEP * rounded.abs()
    assert same.float().mean() > 0.999
    into_weight, into_gain = learned_gradients(gradient, weight(), spec, start, gain, zeros)
    assert 0 < (into_weight == 0).float().mean() < 0.4, "some weights lie beyond the grid"
    torch.testing.assert_close(into_weight[same], learner.grad[same], rtol=1e-6, atol=0)  # × scale / scale in theirs
    # The gain is the logarithm of the scale: d/d gain = scale × d/d scale.
    torch.testing.assert_close(into_gain, start * quantizer.scale.grad, rtol=0.02, atol=0.02 * into_gain.std().item())


@pytest.mark.parametrize("spec", USUAL, ids=lambda spec: spec.label)
def test_where_the_grid_is_the_usual_one_its_scales_are_torchao_s(spec: WeightSpec) -> None:
    """absmax / 127.5 with 8 bits, the range of the group without symmetry; ours are stored in bf16."""
    kind = MappingType.SYMMETRIC if spec.symmetric else MappingType.ASYMMETRIC
    scale, zeros = choose_qparams_affine(weight(), kind, block(spec), torch.int8, *spec.code_range)
    mine = quantize_rtn(weight(), spec)
    torch.testing.assert_close(mine.scales.float(), scale.view(mine.scales.shape), rtol=BF16_STEP, atol=0)
    if mine.zero_points is not None:
        assert (mine.zero_points.int() - zeros.view(mine.scales.shape)).abs().max() <= 1


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_signed_scales_lose_less_than_torchao_s_absmax(bits: int) -> None:
    """The reason for a grid of our own. Training on theirs and saving on ours would lose what was trained."""
    spec = WeightSpec(bits, 32)

    def loss(rounded: torch.Tensor) -> float:
        return float((rounded.float() - weight()).square().mean())

    assert loss(fake_quantize(weight(), spec)) < 0.85 * loss(theirs(spec, dynamic=True)(weight()))


def test_activations_are_rounded_per_token_as_torchao_rounds_them() -> None:
    """Ours divide in bf16, as compressed-tensors does: from 64 on a code is known to a half, so it may be the next."""
    x = torch.randn(64, 896, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    x[:, 7] *= 20  # one channel stands out, as in real models
    grid = (MappingType.SYMMETRIC, (1, 896), torch.int8, -128, 127)
    scale, zeros = choose_qparams_affine(x, *grid, scale_dtype=torch.bfloat16, zero_point_dtype=torch.int32)
    codes, scales = quantize_per_token(x)
    assert torch.equal(scales.flatten(), scale)
    exact = quantize_affine(x.float(), (1, 896), scale.float(), zeros, torch.int8, -128, 127)
    assert (codes.float() - exact).abs().max() <= 1
    assert (codes != exact).float().mean() < 0.05
    wide = dequantize_affine(exact, (1, 896), scale.float(), zeros, torch.int8, -128, 127)
    error, theirs_error = (float((each - x.float()).square().mean()) for each in (fake_quantize_per_token(x), wide))
    assert error < 1.02 * theirs_error
