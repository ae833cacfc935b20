"""What is said of a recipe before it starts."""

import pytest

from quantstudio.core.fieldspec import defaults
from quantstudio.gui.cost import work_out


@pytest.fixture
def ask(home):
    return lambda **values: work_out(defaults() | {path.replace("__", "."): v for path, v in values.items()}, home)


def test_a_good_recipe_has_a_price_and_may_start(ask):
    cost = ask()
    assert cost.startable
    assert cost.recipe is not None
    assert 0 < cost.estimate.output_bytes < cost.info.nbytes / 2


def test_a_wrong_value_is_named_at_its_field(ask):
    cost = ask(scheme__group_size=0)
    assert not cost.startable
    text, level = cost.problems["scheme.group_size"]
    assert level == "error"
    assert text.startswith("A group size is a whole number")


def test_a_missing_model_is_said_at_the_model(ask, tmp_path):
    cost = ask(model__id=str(tmp_path / "nowhere"))
    assert cost.recipe is not None, "the recipe itself can still be saved and copied"
    assert not cost.startable
    assert "nowhere" in cost.problems["model.id"][0]


def test_a_group_size_that_does_not_fit_is_said_at_the_group_size(ask):
    cost = ask(scheme__group_size=96)
    assert not cost.startable
    assert "96 does not divide" in cost.problems["scheme.group_size"][0]
    assert "‘When a group size does not fit’" in cost.problems["scheme.group_size"][0], "by its title, not its path"
    assert "to ‘Use a smaller group’ or ‘Keep in bf16’" in cost.problems["scheme.group_size"][0], "choices, too"
    assert cost.problems["layers.on_misfit"][1] == "info"
    assert ask(scheme__group_size=96, layers__on_misfit="smaller").startable


def test_several_problems_of_one_field_stand_together_and_the_worst_counts(ask, tmp_path):
    cost = ask(measure__text__kind="file", measure__text__path=str(tmp_path / "no.txt"), layers__keep=["a.*", "b.*"])
    assert cost.problems["measure.text.path"][1] == "error"
    text, level = cost.problems["layers.keep"]
    assert level == "warning"
    assert "a.*" in text
    assert "b.*" in text


def test_training_says_how_long_it_takes_here_and_costs_more(ask):
    plain, trained = ask(), ask(method__kind="qat")
    text, level = trained.problems["method.preset"]
    assert level == "info"
    assert [word for word in ("Quick", "Better", "Best") if word in text] == ["Quick", "Better", "Best"]
    assert trained.startable
    assert trained.estimate.seconds > plain.estimate.seconds
    assert trained.estimate.quantize_memory_bytes > plain.estimate.quantize_memory_bytes
    assert "method.preset" not in ask(method__kind="qat", method__steps=7).problems


def test_better_takes_longer_than_quick_and_lora_less_memory(ask):
    quick, better = ask(method__kind="qat"), ask(method__kind="qat", method__preset="better")
    assert better.estimate.seconds > 2 * quick.estimate.seconds
    lora = ask(method__kind="qat", method__train="lora")
    assert lora.estimate.quantize_memory_bytes < quick.estimate.quantize_memory_bytes


def test_data_is_looked_at_only_where_it_is_read(ask, tmp_path):
    missing = {"data__source__kind": "file", "data__source__path": str(tmp_path / "no.jsonl")}
    assert ask(**missing).startable
    cost = ask(method__kind="gptq", **missing)
    assert not cost.startable
    assert "no.jsonl" in cost.problems["data.source.path"][0]
    (tmp_path / "no.jsonl").write_text('{"text": "a"}\n')
    assert ask(method__kind="gptq", **missing).startable
    assert not ask(precision__kind="average_bits", data__source__kind="folder").startable
    assert not ask(method__kind="awq", data__source__kind="hub").startable
    assert not ask(method__kind="awq", data__source__kind="prompts", data__source__saved_chats=False).startable


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"method__kind": "gptq", "method__damping": 0.0}, "method.damping"),
        ({"method__kind": "qat", "method__temperature": 99.0}, "method.temperature"),
        ({"data__source__kind": "hub", "data__source__dataset": "a b"}, "data.source.dataset"),
        ({"precision__kind": "per_layer", "precision__bits": ["x=5"]}, "precision.bits"),
    ],
)
def test_problems_of_new_sections_stand_at_their_fields(ask, values, field):
    assert list(ask(**values).problems) == [field]


def test_large_groups_with_few_bits_get_a_hint(ask):
    assert ask(scheme__kind="w3a16").problems["scheme.group_size"][1] == "info"
    assert not ask(scheme__kind="w3a16", scheme__group_size=32).problems
    assert not ask(scheme__kind="w8a16").problems


def test_a_target_changes_the_size_that_is_shown(ask):
    sizes = [ask(precision__kind="average_bits", precision__average_bits=bits).estimate.output_bytes for bits in (3, 4)]
    uniform = ask().estimate.output_bytes
    assert sizes[0] < sizes[1] == uniform, "4 bits on average are 4 bits in every layer"
    asked = ask(precision__kind="file_size", precision__file_size_mb=0.9)
    assert asked.startable
    assert asked.estimate.output_bytes == pytest.approx(900_000, abs=2)


def test_a_size_out_of_reach_is_said_before_the_start(ask):
    small = ask(precision__kind="file_size", precision__file_size_mb=0.1)
    assert not small.startable
    assert "2 bits in every layer" in small.problems["precision.file_size_mb"][0]
    large = ask(precision__kind="file_size", precision__file_size_mb=1000.0)
    assert large.startable
    assert large.problems["precision.file_size_mb"][1] == "warning"
