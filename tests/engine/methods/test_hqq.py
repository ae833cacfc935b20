"""HQQ fits better than the extremes do; no row depends on another; a stopped run goes on."""

import pytest
import torch

from quantstudio.core.errors import Cancelled
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.schemes import W3A16, WeightSpec
from quantstudio.engine.methods.hqq import NORM, choose_hqq, quantize_hqq
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.reporter import silent


def error(weight, quantized):
    return float((weight - quantized.dequantize().float()).abs().pow(NORM).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "bound"), [(2, 0.8), (3, 0.9), (4, 1.0)])  # 16 levels leave little to win
def test_grids_fit_better_than_the_extremes_do(bits, bound, symmetric):
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    spec = WeightSpec(bits, 64, symmetric)
    assert error(weight, quantize_hqq(weight, spec)) < bound * error(weight, quantize_rtn(weight, spec))


@pytest.mark.parametrize("symmetric", [True, False])
def test_with_3_bits_a_group_is_either_as_rounded_to_nearest_or_much_better(symmetric):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    spec = WeightSpec(3, 32, symmetric)
    found, plain = quantize_hqq(weight, spec), quantize_rtn(weight, spec)
    fitted, nearest = (
        (weight - quantized.dequantize().float()).abs().pow(NORM).view(64, 4, 32).sum(-1)
        for quantized in (found, plain)
    )
    same = found.scales == plain.scales
    assert 0.3 < same.float().mean() < 0.99
    assert bool((fitted[~same] < 0.75 * nearest[~same]).all())  # dequantized values are bf16


def test_rows_are_independent():
    weight = torch.randn(12, 64)
    spec = WeightSpec(3, 32)
    whole, part = quantize_hqq(weight, spec), quantize_hqq(weight[4:8], spec)
    assert torch.equal(whole.codes[4:8], part.codes)
    assert torch.equal(whole.scales[4:8], part.scales)


def test_every_layer_is_chosen_once(tiny_folder, tmp_path):
    info = read_model_info(tiny_folder)
    plan = make_plan(info, Recipe(scheme=W3A16(group_size=32)))
    chosen = choose_hqq(info, plan, tmp_path, silent())
    assert all(chosen.spec(layer.slot.module) == layer.spec for layer in plan.quantized if layer.spec.bits == 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "hqq").iterdir()}
    choose_hqq(info, plan, tmp_path, silent())
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "hqq").iterdir()}


def test_fitting_a_matrix_can_be_stopped_between_grids(tiny_folder, tmp_path):
    """On a busy machine a large matrix takes longer than a person waits."""
    info = read_model_info(tiny_folder)
    plan = make_plan(info, Recipe(scheme=W3A16(group_size=32)))
    reporter, asked = silent(), []

    def check():
        asked.append(1)
        if len(asked) == 5:  # progress asks once for each layer, so this is within the first
            raise Cancelled

    reporter.check_cancel = check
    with pytest.raises(Cancelled):
        choose_hqq(info, plan, tmp_path, reporter)
    assert not list((tmp_path / "hqq").iterdir())
