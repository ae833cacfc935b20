"""Grids, their names, and which group sizes fit."""

import pytest

from quantstudio.core.schemes import (
    W4A8,
    W4A16,
    W8A8,
    W8A16,
    ActivationKind,
    WeightSpec,
    fitting_group_sizes,
)


def test_code_range_is_two_s_complement():
    assert WeightSpec(4, 32).code_range == (-8, 7)
    assert WeightSpec(8, None).code_range == (-128, 127)


@pytest.mark.parametrize(
    ("scheme", "label"),
    [
        (W4A16(), "W4A16 g128"),
        (W4A8(group_size=32, symmetric=False), "W4A8 g32 asymmetric"),
        (W4A16(group_size="channel"), "W4A16 per channel"),
        (W8A16(), "W8A16"),
        (W8A8(), "W8A8"),
    ],
)
def test_label_uses_the_field_s_terms(scheme, label):
    assert scheme.weight_spec().label == label


def test_a8_schemes_round_activations_per_token():
    assert W4A8().weight_spec().activations is ActivationKind.INT8_TOKEN
    assert W8A16().weight_spec().activations is ActivationKind.NONE


@pytest.mark.parametrize(("columns", "fits"), [(896, True), (4864, True), (64, False)])
def test_fits_is_divisibility(columns, fits):
    assert WeightSpec(4, 128).fits(columns) is fits


def test_fitting_group_sizes_divide_and_are_near():
    sizes = fitting_group_sizes(896, near=128)
    assert sizes[:2] == [128, 112]
    assert all(896 % size == 0 for size in sizes)
    assert fitting_group_sizes(224, near=128)[0] == 112


def test_group_size_accepts_the_text_of_a_form():
    assert W4A16.model_validate({"group_size": "64"}).group_size == 64
    assert W4A16.model_validate({"group_size": "channel"}).weight_spec().group_size is None
