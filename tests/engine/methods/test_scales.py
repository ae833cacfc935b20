"""AWQ's and SmoothQuant's scales: better where a channel stands out, none where nothing is gained."""

import pytest
import torch

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.methods.awq import awq_scales, quantize_clipped, scaled_error
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.methods.smoothquant import smooth_scales

W4 = WeightSpec(4, 32)
W8A8 = WeightSpec(8, None, activations=ActivationKind.INT8_TOKEN)


@pytest.fixture
def inputs():
    """Inputs `[400, 64]` of which a few channels are far larger, as in real models."""
    values = torch.randn(400, 64, generator=torch.Generator().manual_seed(2))
    values[:, ::16] *= 40
    return values


def test_awq_protects_the_channels_that_matter(inputs):
    weight, hessian = torch.randn(32, 64), inputs.t() @ inputs
    scales = awq_scales([(weight, W4)], hessian, inputs.abs().mean(0), 20)
    assert scales[::16].min() > scales[1::16].max()
    plain = scaled_error(weight, W4, hessian, torch.ones(64))
    assert scaled_error(weight, W4, hessian, scales) < 0.5 * plain


def test_clipping_is_no_worse_than_rounding_to_nearest(inputs):
    weight, hessian = torch.randn(32, 64), inputs.t() @ inputs
    weight[3, 7] = 9.0

    def error(quantized):
        lost = weight - quantized.dequantize().float()
        return float(((lost @ hessian) * lost).sum())

    assert error(quantize_clipped(weight, hessian, W4)) < error(quantize_rtn(weight, W4))


def w8a8_error(weight, inputs, scales):
    from quantstudio.engine.kernels.activations import fake_quantize_per_token

    rounded = quantize_rtn(weight * scales, W8A8).dequantize().float()
    found = fake_quantize_per_token((inputs / scales).bfloat16()).float() @ rounded.t()
    return float((found - inputs @ weight.t()).square().mean())


def test_smoothquant_takes_outliers_out_of_the_activations(inputs):
    weight = torch.randn(32, 64)
    scales = smooth_scales([(weight, W8A8)], inputs.abs().amax(0), inputs, 0.5)
    assert w8a8_error(weight, inputs, scales) < 0.5 * w8a8_error(weight, inputs, torch.ones(64))


def test_nothing_is_moved_where_it_would_hurt():
    weight, inputs = torch.randn(32, 64), torch.randn(300, 64)
    weight[:, ::16] *= 40  # the outliers are in the weights already
    largest = inputs.abs().amax(0)
    largest[::16] *= 100  # and one freak token pretends that they are in the activations
    assert torch.equal(smooth_scales([(weight, W4)], largest, inputs, 1.0), torch.ones(64))
