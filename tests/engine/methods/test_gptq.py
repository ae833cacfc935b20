"""GPTQ against the published algorithm written down naively, and its additions against what they promise."""

import pytest
import torch

from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.methods import gptq
from quantstudio.engine.methods.gptq import GptqOptions, damp, quantize_gptq
from quantstudio.engine.methods.grid import Grid, nearest_grid, search_grid
from quantstudio.engine.methods.rtn import quantize_rtn

SPECS = [WeightSpec(bits, 32 if bits < 8 else None, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


@pytest.fixture
def layer():
    """A weight `[24, 96]` and the Hessian of correlated inputs, as those of real layers are."""
    chance = torch.Generator().manual_seed(5)
    inputs = torch.randn(800, 96, generator=chance) @ torch.randn(96, 96, generator=chance)
    return torch.randn(24, 96, generator=chance), inputs.t() @ inputs


def output_error(weight, values, hessian):
    error = weight - values.float()
    return float(((error @ hessian) * error).sum())


def rounded_by_brain_surgery(weight, hessian, grid):
    """Optimal brain surgery as in the GPTQ paper's equations 2 and 3: the inverse is shrunk after each column."""
    left = weight.double().clone()
    values = torch.zeros_like(left)
    inverse = torch.linalg.inv(hessian.double())
    for column in range(weight.shape[1]):
        values[:, column] = grid.nearest(left[:, column].float(), column).double()
        error = (left[:, column] - values[:, column]) / inverse[column, column]
        left -= error.unsqueeze(1) * inverse[column]
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return values.float()


@pytest.mark.parametrize("step", [7, 96])
def test_columns_are_rounded_as_the_paper_says(layer, step):
    weight, hessian = layer
    hessian = damp(hessian, 0.01)
    grid = nearest_grid(weight, WeightSpec(4, 32)).expand(96)
    ours = gptq._round_in_turn(weight, hessian, grid, step, lambda: None)
    theirs = rounded_by_brain_surgery(weight, hessian, grid)
    # A weight halfway between two codes may fall either way in another order of sums, and then moves all after it.
    assert (ours == theirs).float().mean() > 0.98


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_error_is_well_below_rounding_to_nearest(layer, spec):
    weight, hessian = layer
    quantized = quantize_gptq(weight, hessian, spec)
    low, high = spec.code_range
    assert quantized.codes.min() >= low
    assert quantized.codes.max() <= high
    plain = output_error(weight, quantize_rtn(weight, spec).dequantize(), hessian)
    assert output_error(weight, quantized.dequantize(), hessian) < 0.6 * plain


@pytest.mark.parametrize("spec", [WeightSpec(3, 32), WeightSpec(4, None, symmetric=False)], ids=lambda spec: spec.label)
def test_every_refinement_lowers_the_error(layer, spec):
    weight, hessian = layer
    errors = [
        output_error(
            weight, quantize_gptq(weight, hessian, spec, GptqOptions(refinements=rounds)).dequantize(), hessian
        )
        for rounds in (0, 1, 3)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_block_size_changes_the_speed_only(layer):
    weight, hessian = layer
    spec = WeightSpec(4, 32)
    small, large = (quantize_gptq(weight, hessian, spec, GptqOptions(block_size=size)) for size in (8, 96))
    assert (small.codes == large.codes).float().mean() > 0.98


def test_inputs_that_never_fire_do_no_harm(layer):
    weight, hessian = layer
    hessian[:10] = hessian[:, :10] = 0
    quantized = quantize_gptq(weight, hessian, WeightSpec(4, 32))
    assert bool(quantized.scales.isfinite().all())
    silent = quantize_gptq(weight, torch.zeros_like(hessian), WeightSpec(4, 32))
    assert torch.allclose(silent.dequantize().float(), weight, atol=0.5)


def test_what_stops_it_is_asked_often(layer):
    weight, hessian = layer

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        quantize_gptq(weight, hessian, WeightSpec(4, 32), check=stop)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_searched_grids_are_never_worse_than_the_nearest(layer, spec):
    weight, _ = layer
    weight[:, 5] *= 8  # an outlier, for which a narrower grid may pay
    plain, searched = nearest_grid(weight, spec), search_grid(weight, spec)
    assert torch.equal(plain.weight(weight).codes, quantize_rtn(weight, spec).codes)

    def error(grid: Grid) -> torch.Tensor:
        values = grid.weight(weight).dequantize().float()
        return (weight - values).square().view(24, grid.scales.shape[1], -1).sum(-1)

    assert bool((error(searched) <= error(plain) * 1.02 + 1e-6).all())  # dequantizing to bf16 is not part of the search
