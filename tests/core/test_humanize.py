"""Numbers as people read them."""

import pytest

from quantstudio.core.humanize import (
    human_bytes,
    human_count,
    human_percent,
    human_rate,
    human_seconds,
    plural,
    rough_seconds,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (16_790_000, "16.8 MB"),
        (999_960, "1 MB"),
        (123_400_000_000, "123 GB"),
        (1_230_000_000_000, "1.23 TB"),
        (-2_500_000, "–2.5 MB"),
        (-12, "–12 B"),
    ],
)
def test_bytes(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (896, "896"), (8_400_000, "8.4M"), (494_032_768, "494M"), (1.5e9, "1.5B")]
)
def test_counts(count, text):
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.00099, "0.99 ms"),
        (0.9999, "1 s"),
        (4.2, "4.2 s"),
        (59.2, "59.2 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (86400, "1 day"),
        (3 * 86400, "3 days"),
        (-2, "–2 s"),
    ],
)
def test_measured_times(seconds, text):
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "a few seconds"),
        (14, "about 15 seconds"),
        (42, "about 40 seconds"),
        (70, "about a minute"),
        (130, "about 2 minutes"),
        (3600, "about an hour"),
        (10_000, "about 3 hours"),
    ],
)
def test_estimated_times_claim_no_precision(seconds, text):
    assert rough_seconds(seconds) == text


def test_shares_rates_and_plurals():
    assert human_percent(0.257) == "26 %"
    assert human_percent(0.0012, 1) == "0.1 %"
    assert human_rate(66.234) == "66.2 tok/s"
    assert human_rate(1234.5) == "1,234 tok/s"
    assert plural(1, "layer") == "1 layer"
    assert plural(1204, "layer") == "1,204 layers"
    assert plural(2, "copy", "copies") == "2 copies"
