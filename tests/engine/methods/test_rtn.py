"""Round-to-nearest: the grid, its error bounds, hostile weights, and that blocks of rows do not matter."""

import pytest
import torch

from quantstudio.core.errors import BadWeights
from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.methods import rtn
from quantstudio.engine.methods.rtn import quantize_rtn

SPECS = [
    WeightSpec(4, 32),
    WeightSpec(4, 128),
    WeightSpec(4, None),
    WeightSpec(4, 32, symmetric=False),
    WeightSpec(4, None, symmetric=False, activations=ActivationKind.INT8_TOKEN),
    WeightSpec(8, None),
    WeightSpec(8, None, symmetric=False),
]


def random_weight(rows=24, columns=256, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)


def relative_error(weight, spec):
    weight = weight.float()
    return ((quantize_rtn(weight, spec).dequantize().float() - weight).square().sum() / weight.square().sum()).item()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_every_weight_lands_within_its_grid(spec):
    weight = random_weight()
    result = quantize_rtn(weight, spec)
    groups = 256 // (spec.group_size or 256)

    assert result.codes.dtype == torch.int8
    assert result.codes.shape == weight.shape
    assert result.scales.dtype == torch.bfloat16
    assert result.scales.shape == (24, groups)
    assert (result.zero_points is None) == spec.symmetric
    assert result.codes.min() >= spec.code_range[0]
    assert result.codes.max() <= spec.code_range[1]

    exact = result.codes.float().view(24, groups, -1)
    if result.zero_points is not None:
        assert result.zero_points.dtype == torch.int8
        exact = exact - result.zero_points.float().unsqueeze(-1)
    step = result.scales.float().abs().unsqueeze(-1)
    error = (exact * result.scales.float().unsqueeze(-1) - weight.float().view(24, groups, -1)).abs()
    # Half a step, or up to one where the grid ends at +7 and the group's other extreme would need +8.
    assert (error <= step * 1.01).all()
    assert (error <= step * 0.505).float().mean() > 0.95


def test_the_largest_weight_uses_the_sixteenth_code():
    weight = random_weight(dtype=torch.float32)  # bf16 has ties between +x and -x
    extremes = weight.abs().view(24, -1, 32).argmax(-1, keepdim=True)
    codes = quantize_rtn(weight, WeightSpec(4, 32)).codes.view(24, -1, 32)
    assert (codes.gather(-1, extremes) == -8).all()


def test_error_is_lower_than_with_the_usual_scale():
    weight = random_weight(rows=64, columns=1024, dtype=torch.float32)
    grouped = weight.view(64, -1, 128)
    scale = (grouped.abs().amax(-1, keepdim=True) / 7.5).bfloat16().float()
    usual = (grouped / scale).round().clamp(-8, 7) * scale
    usual_error = ((usual - grouped).square().sum() / weight.square().sum()).item()
    assert relative_error(weight, WeightSpec(4, 128)) < 0.92 * usual_error


def test_more_bits_and_smaller_groups_lose_less():
    weight = random_weight(rows=64, columns=512)
    errors = [relative_error(weight, spec) for spec in (WeightSpec(8, None), WeightSpec(4, 32), WeightSpec(4, None))]
    assert errors[0] < 1e-4 < errors[1] < errors[2] < 0.03


def test_a_zero_point_helps_lopsided_weights():
    weight = random_weight().abs()
    assert relative_error(weight, WeightSpec(4, 32, symmetric=False)) < relative_error(weight, WeightSpec(4, 32)) / 2


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_rows_in_blocks_give_the_same_as_all_at_once(spec, monkeypatch):
    weight = random_weight()
    whole = quantize_rtn(weight, spec)
    monkeypatch.setattr(rtn, "CHUNK_WEIGHTS", 1000)
    chunked = quantize_rtn(weight, spec)
    block = quantize_rtn(weight[8:16], spec)
    assert torch.equal(whole.codes, chunked.codes)
    assert torch.equal(whole.scales, chunked.scales)
    assert torch.equal(whole.codes[8:16], block.codes)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_zeros_stay_zeros(spec):
    weight = random_weight()
    weight[3] = 0
    weight[5, :128] = 0
    result = quantize_rtn(weight, spec).dequantize()
    assert (result[3] == 0).all()
    assert result.isfinite().all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_extreme_but_finite_weights_stay_finite(spec):
    weight = torch.full((4, 256), 1e-45)
    weight[1] = 3e38
    weight[2, 0] = -3e38
    assert quantize_rtn(weight, spec).dequantize().isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3], SPECS[5]], ids=lambda spec: spec.label)
def test_values_that_are_no_numbers_are_refused_by_name(spec, value):
    weight = random_weight()
    weight[7, 100] = value
    with pytest.raises(BadWeights, match=r"model\.layers\.3\.mlp\.up_proj\.weight"):
        quantize_rtn(weight, spec, "model.layers.3.mlp.up_proj.weight")


def test_the_weight_itself_is_left_alone():
    weight = random_weight(dtype=torch.float32)
    before = weight.clone()
    quantize_rtn(weight, WeightSpec(4, 32))
    assert torch.equal(weight, before)
