import torch
from torch import nn

from quantstudio.engine.train import rates
from quantstudio.engine.train.rates import rate_factors, rate_groups


def parameters(**values):
    return [(name.replace("_", "."), nn.Parameter(torch.as_tensor(value))) for name, value in values.items()]


LEARNING = parameters(
    a_weight=torch.full((8, 8), 0.05),
    a_gain=torch.zeros(8, 1),
    b_weight=torch.full((8, 8), -0.05),
    b_gain=torch.zeros(8, 1),
    norm_weight=torch.full((8,), 0.22),
    table_weight=torch.full((64, 8), 9.0),
    small_bias=torch.full((8,), 0.001),
    zero_bias=torch.zeros(8),
)


def test_large_values_take_steps_in_proportion_to_matrices_up_to_a_limit():
    factors = rate_factors(LEARNING)
    assert factors == {
        "a.weight": 1, "b.weight": 1, "a.gain": 2, "b.gain": 2, "norm.weight": 4, "table.weight": 8, "small.bias": 1,
        "zero.bias": 1,
    }  # fmt: skip


def test_groups_hold_everything_that_trains_once_at_its_rate():
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    named = [*LEARNING, ("frozen.weight", frozen)]
    groups = rate_groups(named, rate_factors(named), 1e-3)
    assert [group["lr"] for group in groups] == [1e-3, 2e-3, 4e-3, 8e-3]
    held = [id(value) for group in groups for value in group["params"]]
    assert sorted(held) == sorted(id(value) for _, value in LEARNING)


def test_without_learned_scales_all_take_the_same_steps():
    plain = [(name, value) for name, value in LEARNING if not name.endswith("gain")]
    assert set(rate_factors(plain).values()) == {1}


def test_lora_steps_stay_as_they_are():
    lora = parameters(a_lora_A=torch.ones(2, 8), a_lora_B=torch.zeros(8, 2), a_gain=torch.zeros(8, 1))
    assert rate_factors(lora) == {"a.lora.A": 1, "a.lora.B": 1, "a.gain": 2}


def test_sizes_are_asked_for_in_the_order_of_the_parameters(monkeypatch):
    """Regression: in the order of a set, which differs from process to process, each got another one's answer."""
    asked = []
    monkeypatch.setattr(rates, "_size", lambda values: asked.append([id(value) for value in values]) or 1.0)
    rate_factors(LEARNING)
    one_by_one = [id(value) for name, value in LEARNING if name[0] in "nstz"]
    assert asked[1:] == [[value] for value in one_by_one]
