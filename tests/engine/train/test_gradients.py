"""Gradients against torch's own, on what torch can differentiate by itself."""

import pytest
import torch

from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.methods.grid import stored_scales
from quantstudio.engine.train.grid import RoundedLinear, fake_quantize, start_scales
from quantstudio.engine.train.loss import IGNORED, Objective, TokenLoss


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _by_torch(x, weight, spec, start, gain, lora_a=None, lora_b=None, scale=1.0):
    """The same layer written with detach() for the rounding: straight through, and LSQ where scales learn."""
    whole = weight if lora_a is None else weight + scale * (lora_b @ lora_a)
    size = spec.group_size or weight.shape[1]
    grouped = whole.reshape(weight.shape[0], -1, size)
    if gain is None:
        seen = whole + (fake_quantize(whole.detach(), spec).float() - whole).detach()
    else:
        s = (start * gain.exp()).unsqueeze(-1)
        s = s + (stored_scales(s) - s).detach()
        ratio = grouped / s
        free = ratio + (ratio.round() - ratio).detach()
        seen = (free.clamp(*spec.code_range) * s).reshape(weight.shape)
    return x.float() @ seen.t()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_linear_layer_has_the_gradients_that_torch_finds(learned, lora):
    spec = WeightSpec(3, 16)
    x = _random(10, 32).bfloat16()
    weight = _random(6, 32, seed=1)
    start = start_scales(weight, spec)[0] * 0.7 if learned else None  # some weights beyond the grid
    lora_a, lora_b = (_random(2, 32, seed=3) * 0.1, _random(6, 2, seed=4) * 0.1) if lora else (None, None)

    def leaves():
        chosen = {"x": x, "weight": None if lora else weight, "a": lora_a, "b": lora_b}
        chosen["gain"] = torch.zeros_like(start) if learned else None
        return {name: value.clone().requires_grad_() for name, value in chosen.items() if value is not None}

    mine, theirs = leaves(), leaves()
    out = RoundedLinear.apply(
        mine["x"],
        mine.get("weight", weight),
        None,
        spec,
        start,
        mine.get("gain"),
        None,
        mine.get("a"),
        mine.get("b"),
        2.0,
    )
    expected = _by_torch(
        theirs["x"],
        theirs.get("weight", weight),
        spec,
        start,
        theirs.get("gain"),
        theirs.get("a"),
        theirs.get("b"),
        2.0,
    )
    slope = _random(10, 6, seed=9)
    out.backward(slope.bfloat16())
    expected.backward(slope)
    # bf16 keeps 8 bits, and each value is a sum of a few dozen products: 2 % of the largest value.
    assert torch.allclose(out.float(), expected, atol=0.02 * float(expected.detach().abs().max()))
    for name, value in theirs.items():
        largest = float(value.grad.abs().max())
        assert largest > 0
        assert torch.allclose(mine[name].grad.float(), value.grad.float(), atol=0.02 * largest), name


def test_rounded_activations_pass_gradients_straight_through():
    spec = WeightSpec(8, None, activations=ActivationKind.INT8_TOKEN)
    x = _random(4, 16).bfloat16().requires_grad_()
    weight = _random(3, 16, seed=1).requires_grad_()
    out = RoundedLinear.apply(x, weight, None, spec, None, None, None, None, None, 1.0)
    out.backward(torch.ones_like(out))
    expected = fake_quantize(weight.detach(), spec).float().sum(0).expand(4, 16)
    assert torch.allclose(x.grad.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("distil", "cross_entropy"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_the_loss_and_its_gradient_are_those_of_torch(temperature, distil, cross_entropy, monkeypatch):
    monkeypatch.setattr("quantstudio.engine.train.loss.CHUNK_BYTES", 3 * 4 * 50)  # pieces of three rows
    objective = Objective(distil, cross_entropy, temperature)
    teacher = _random(7, 50, seed=1)
    labels = torch.tensor([3, IGNORED, 7, 0, 49, IGNORED, 5])
    mine, theirs = _random(7, 50).requires_grad_(), _random(7, 50).requires_grad_()
    sums = TokenLoss.apply(mine, teacher if distil else None, labels, objective)
    counts = labels != IGNORED
    log = torch.nn.functional.log_softmax
    kl = torch.nn.functional.kl_div(
        log(theirs / temperature, -1), log(teacher / temperature, -1), reduction="none", log_target=True
    ).sum(-1)
    entropy = torch.nn.functional.cross_entropy(theirs, labels, reduction="sum", ignore_index=IGNORED)
    expected = distil * temperature**2 * kl[counts].sum() + cross_entropy * entropy
    (sums[0] / 5).backward()
    (expected / 5).backward()
    assert torch.allclose(sums[0], expected, rtol=1e-5)
    assert torch.allclose(sums[1], entropy, rtol=1e-5)
    assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
