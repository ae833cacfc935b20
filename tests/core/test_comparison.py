"""Comparison tables: right ratios, honest marks, groups that may be compared."""

import pytest

from quantstudio.core.comparison import COLUMNS, baseline, compare, ratio_words, signed_percent
from quantstudio.core.result import Interval, Spread

BY_ID = {column.id: column for column in COLUMNS}


@pytest.fixture
def both(make_result):
    (group,) = compare([make_result("int4"), make_result("int8")])
    return group


def test_the_original_comes_first_and_pools_both_measurements(make_result):
    found = make_result()
    original = baseline(found)
    assert len(original.decode_tps.trials) == 10
    assert original.decode_tps.low < original.decode_tps.median < original.decode_tps.high
    assert 310 * 0.99 < original.decode_tps.median < 310
    assert original.load_s == pytest.approx((0.8 + 0.8 / 0.99) / 2)
    (group,) = compare([found])
    assert [row.run_id for row in group.rows] == ["", found.run_id]
    assert group.rows[0].cells["decode_tps"].value == original.decode_tps.median


def test_one_measurement_of_the_original_is_taken_as_it_is(make_result):
    found = make_result(original_last=None)
    assert baseline(found).decode_tps.median == found.original_first.decode_tps.median
    assert baseline(make_result(original_first=None, original_last=None)) is None


def test_spreads_without_trials_are_pooled_by_their_ends(make_result):
    first = make_result().original_first
    bare = [first.model_copy(update={"ttft_s": Spread(median=m, low=m - 0.1, high=m + 0.1)}) for m in (1.0, 2.0)]
    pooled = baseline(make_result(original_first=bare[0], original_last=bare[1])).ttft_s
    assert (pooled.median, pooled.low, pooled.high) == (1.5, 0.9, 2.1)


def test_ratios_are_against_the_original_of_the_same_run(make_result):
    """A run on a day when the machine was half as fast must not look slow."""
    quick, slow = make_result("int4"), make_result("int8")
    halved = {
        name: getattr(slow, name).model_copy(update={"decode_tps": Spread(median=155, low=150, high=160)})
        for name in ("original_first", "original_last")
    }
    quantized = slow.quantized.model_copy(update={"decode_tps": Spread(median=279, low=270, high=285)})
    (group,) = compare([quick, slow.model_copy(update=halved | {"quantized": quantized})])
    assert group.rows[2].cells["decode_tps"].ratio == pytest.approx(1.8)
    assert group.rows[2].cells["decode_tps"].detail == "1.80× faster"


def test_cells_speak_in_words(both):
    cells = both.rows[1].cells
    assert (cells["size"].text, cells["size"].detail) == ("5.46 MB", "3.1× smaller")
    assert cells["bits"].text == "4.25"
    assert (cells["decode_tps"].text, cells["decode_tps"].detail) == ("806 tok/s", "2.6× faster")
    assert cells["ttft"].detail == "2.6× faster"
    assert cells["perplexity"].detail == "19.99 to 21.89"
    assert (cells["change"].text, cells["change"].detail) == ("+5.3 %", "+4.9 to +5.7 %")
    assert both.rows[0].cells["bits"].text == "16"
    assert "512 tokens" in both.conditions
    assert "2 threads" in both.conditions


@pytest.mark.parametrize(("low", "high", "words"), [(0.00087, 0.0009, "0.00087 to 0.00090"), (0.0, 0.1, "0 to 0.100")])
def test_both_ends_of_an_interval_have_as_many_digits(make_result, low, high, words):
    result = make_result("int4")
    quality = result.quality.model_copy(update={"kl": Interval(value=low, low=low, high=high)})
    (group,) = compare([result.model_copy(update={"quality": quality})])
    assert group.rows[1].cells["kl"].detail == words


def test_a_slower_or_larger_model_is_called_so():
    assert ratio_words(0.5, BY_ID["decode_tps"]) == "2.0× slower"
    assert ratio_words(2.0, BY_ID["ttft"]) == "2.0× slower"
    assert ratio_words(1.25, BY_ID["memory"]) == "1.25× more"
    assert ratio_words(0.8, BY_ID["size"]) == "1.25× smaller"
    assert ratio_words(0.92, BY_ID["memory"]) == "8 % less"
    assert ratio_words(0.993, BY_ID["decode_tps"]) == "1 % slower"
    assert ratio_words(1.001, BY_ID["size"]) == "same"


def test_differences_within_the_noise_are_marked(make_result):
    noisy = make_result("int8", quantized=make_result().original_first)
    (group,) = compare([noisy])
    assert group.rows[1].cells["decode_tps"].uncertain
    assert not group.rows[1].cells["size"].uncertain
    assert group.rows[1].cells["change"].uncertain, "the interval of +0.06 % includes 0"
    (group,) = compare([make_result("int4")])
    assert not group.rows[1].cells["decode_tps"].uncertain
    assert not group.rows[1].cells["change"].uncertain


def test_the_best_value_is_marked_and_the_original_may_win(both, make_result):
    def best(group, name):
        return [row.cells[name].best for row in group.rows]

    assert best(both, "size") == [False, True, False]
    assert best(both, "decode_tps") == [False, True, False]
    assert best(both, "perplexity") == [False, False, True], "the original does not compete in closeness to itself"
    assert best(both, "kl") == [False, False, True]
    slower = make_result("int8", quantized=make_result("int4").original_first.model_copy(update={"load_s": 9.0}))
    (group,) = compare([slower])
    assert best(group, "load") == [True, False]


def test_values_that_cannot_be_told_apart_share_the_mark_or_nobody_has_it(make_result):
    first, second = make_result("int4"), make_result("int4", run_id="again", name="Again")
    (group,) = compare([first, second])
    assert [row.cells["decode_tps"].best for row in group.rows] == [False, True, True]
    assert [row.cells["change"].best for row in group.rows] == [False, False, False]


def test_nobody_is_best_where_the_noise_hides_who_it_is(make_result):
    result = make_result("int4")
    spread = result.quantized.decode_tps.model_copy(update={"low": 1.0, "high": 1e6})
    quantized = result.quantized.model_copy(update={"decode_tps": spread})
    (group,) = compare([result.model_copy(update={"quantized": quantized}), make_result("int8")])
    assert [row.cells["decode_tps"].best for row in group.rows] == [False, False, False]


def test_a_difference_of_two_percent_in_what_has_no_spread_is_none_unless_it_is_exact(make_result):
    result = make_result("int4")
    near = result.quantized.model_copy(update={"peak_rss": round(result.original_first.peak_rss * 0.98)})
    (group,) = compare([result.model_copy(update={"quantized": near})])
    assert [row.cells["memory"].best for row in group.rows] == [False, False]
    assert [row.cells["size"].best for row in group.rows] == [False, True]


def test_models_with_other_originals_are_held_apart(make_result):
    groups = compare([make_result("int4"), make_result("int4", model_name="other"), make_result("int8")])
    assert [(group.model_name, len(group.rows)) for group in groups] == [("starter", 3), ("other", 2)]


def test_what_spoils_a_comparison_is_said(make_result):
    first, second = make_result("int4"), make_result("int8")
    moved = second.model_copy(update={"environment": second.environment.model_copy(update={"cpu": "Another"})})
    (group,) = compare([first, moved])
    assert any("different machines" in note for note in group.notes)
    longer = second.model_copy(update={"quantized": second.quantized.model_copy(update={"prompt_tokens": 128})})
    assert any("lengths differ" in note for note in compare([first, longer])[0].notes)
    other_text = second.model_copy(update={"quality": second.quality.model_copy(update={"tokens": 1024})})
    assert any("different text" in note for note in compare([first, other_text])[0].notes)
    assert compare([first, second])[0].notes == ()
    slow = {
        name: getattr(second, name).model_copy(update={"decode_tps": Spread(median=155, low=150, high=160)})
        for name in ("original_first", "original_last")
    }
    assert any("not equally fast" in note for note in compare([first, second.model_copy(update=slow)])[0].notes)


def test_runs_that_were_not_measured_still_have_sizes(make_result):
    bare = make_result(original_first=None, quantized=None, original_last=None, quality=None, verdict=())
    (group,) = compare([bare])
    assert [column.id for column in group.columns] == ["size", "bits"]
    assert group.notes == ("Not measured: Demo int4.",)


def test_bits_of_the_original_are_left_open_when_the_sizes_do_not_tell(make_result):
    made = make_result().quantization
    kept = made.model_copy(update={"sizes": made.sizes.model_copy(update={"layers": 6_000_000})})
    (group,) = compare([make_result(quantization=kept)])
    assert group.rows[0].cells["bits"].text == "–"


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.053, "+5.3 %"),
        (-0.0002, "−0.02 %"),
        (0.0, "0 %"),
        (-0.00001, "0 %"),
        (1.2, "+120.0 %"),
        (12.0417, "+1,204 %"),
    ],
)
def test_changes_are_said_with_their_sign(share, words):
    assert signed_percent(share) == words


def test_a_damaged_zero_does_not_divide(make_result):
    broken = make_result().quantized.model_copy(update={"decode_tps": Spread(median=0, low=0, high=0)})
    (group,) = compare([make_result(quantized=broken)])
    assert group.rows[1].cells["decode_tps"].ratio is None
    perfect = make_result().quality.model_copy(update={"kl": Interval(value=0, low=0, high=0)})
    assert compare([make_result(quality=perfect)])[0].rows[1].cells["kl"].text == "0"


def test_beside_its_original_a_run_is_called_by_what_differs(make_result):
    (group,) = compare([make_result("int4", name="starter W4A16 g128 GPTQ"), make_result("int8", name="Mine")])
    assert [row.name for row in group.rows] == ["starter", "W4A16 g128 GPTQ", "Mine"]
