"""A model cut down to its first layers: what stays, what that comes to, and where it cannot be done."""

from math import prod

import pytest

from quantstudio.core.comparison import compare
from quantstudio.core.estimate import estimate
from quantstudio.core.first_layers import first_layers, kept_part, shortened_config
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import Gptq, Qat
from quantstudio.core.recipe_precision import AverageBits, PerLayer
from quantstudio.core.result import Interval
from quantstudio.core.schemes import W4A16
from quantstudio.core.verdict import verdict

MACHINE = Machine(cores=2, memory=8_000_000_000, available_memory=6_000_000_000, free_disk=100_000_000_000, gpu="")


def recipe(keep=2, **method):
    return Recipe(scheme=W4A16(group_size=8), method=Qat(keep_layers=keep, **method))


@pytest.fixture
def llama(make_model):
    """Three layers."""
    return read_model_info(make_model())


def test_the_plan_knows_of_the_first_layers_alone(llama):
    plan, whole = make_plan(llama, recipe()), make_plan(llama, recipe(0))
    kept = [layer for layer in whole.layers if ".layers.2." not in layer.slot.module]
    assert list(plan.layers) == kept
    assert len(whole.layers) - len(kept) == 7
    assert plan.sizes.layers == whole.sizes.layers * 2 // 3
    assert (plan.sizes.embedding, plan.sizes.head) == (whole.sizes.embedding, whole.sizes.head)
    assert plan.sizes.rest == whole.sizes.rest - 2 * 2 * 64  # two norms of 64 weights in bf16
    assert plan.original_sizes == whole.original_sizes
    assert "Only the first 2 of 3 layers are kept" in plan.notices[0]
    assert whole.notices == ()


def test_weights_are_counted(llama):
    part = first_layers(llama, 1)
    assert (part.layers, part.removed_layers) == (1, 2)
    assert part.parameters == sum(prod(tensor.shape) for tensor in part.tensors)
    assert part.parameters + part.removed_parameters == llama.parameters
    assert kept_part(llama, Recipe(method=Gptq())) is llama
    assert kept_part(llama, recipe(0)) is llama


def test_a_tied_head_stays_with_its_table(make_model):
    folder = make_model("tied", tensors=make_model.llama_tensors(head=False), tie_word_embeddings=True)
    plan = make_plan(read_model_info(folder), recipe())
    assert plan.shared_table
    assert [layer.slot.module for layer in plan.layers][-1] == "lm_head"


def test_costs_follow(llama, tmp_path):
    cut, whole = (estimate(llama, recipe(keep), MACHINE, tmp_path) for keep in (1, 0))
    assert not cut.errors
    assert cut.output_bytes < whole.output_bytes
    assert cut.seconds < whole.seconds
    assert cut.disk_bytes < whole.disk_bytes
    assert cut.quantize_memory_bytes <= whole.quantize_memory_bytes


def test_every_list_with_an_entry_for_each_layer_is_cut():
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "no_rope_layers": [1, 1, 0],
        "mlp_only_layers": [],
        "eos_token_id": [1, 2, 3],
        "max_window_layers": 3,
    }
    assert shortened_config(config, 2) == {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"],
        "no_rope_layers": [1, 1],
    }
    assert shortened_config({"n_layer": 12, "n_embd": 12}, 6) == {"n_layer": 6}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (recipe(3), "This model has 3 layers"),
        (recipe(24), "Keep at most 2"),
        (recipe(2, train="lora"), "must train all of them"),
        (recipe(2).model_copy(update={"precision": AverageBits(average_bits=3.5)}), "measured in the whole model"),
    ],
)
def test_what_cannot_be_done_is_said_at_the_field(llama, tmp_path, asked, words):
    problems = estimate(llama, asked, MACHINE, tmp_path).errors
    assert [problem.field for problem in problems] == ["method.keep_layers"]
    assert words in problems[0].text


def test_bits_may_be_listed_for_the_layers_that_stay(llama, tmp_path):
    listed = recipe().model_copy(update={"precision": PerLayer(bits=("*.layers.0.*=8",))})
    costs = estimate(llama, listed, MACHINE, tmp_path)
    assert not costs.problems
    assert {layer.spec.bits for layer in costs.plan.quantized if ".layers.1." in layer.slot.module} == {4}


def test_a_model_with_other_towers_is_refused(make_model, tmp_path):
    tensors = make_model.llama_tensors() | {"vision_tower.layers.0.fc.weight": ("BF16", (64, 64))}
    info = read_model_info(make_model("seeing", tensors=tensors))
    (problem,) = estimate(info, recipe(), MACHINE, tmp_path).errors
    assert "cannot be removed" in problem.text


def test_the_label_and_the_verdict_say_so(make_result):
    assert recipe().label == "W4A16 g8 QAT, first 2 layers"
    assert recipe(0).label == "W4A16 g8 QAT"
    whole = make_result()
    cut = {"layers": 3, "removed_layers": 3, "parameters": 4_900_000, "original_parameters": 8_400_000}
    result = whole.model_copy(update={"quantization": whole.quantization.model_copy(update=cut)})
    assert verdict(result)[1] == "Only the first 3 of 6 layers are left, as the recipe asked: 4.9M of 8.4M weights."
    assert not any("layers are left" in sentence for sentence in verdict(whole))
    far = result.quality.model_copy(update={"kl": Interval(value=1.3, low=1.2, high=1.4)})
    said = " ".join(verdict(result.model_copy(update={"quality": far})))
    assert "layers that were removed are missed" in said
    assert "fewer bits" not in said


def test_the_table_counts_weights_and_knows_the_originals_bits(make_result):
    """Half of the layers left, in int4: the original's layers had 16 bits a weight, not 32."""
    whole = make_result()
    sizes = whole.quantization.original_sizes
    cut = {"layers": 3, "removed_layers": 3, "parameters": 4_900_000, "original_parameters": 8_400_000}
    cut |= {"layer_bits_per_weight": 4.0, "sizes": sizes.model_copy(update={"layers": sizes.layers // 8})}
    result = whole.model_copy(update={"quantization": whole.quantization.model_copy(update=cut)})
    (table,) = compare([result])
    original, run = table.rows
    assert original.cells["bits"].text == "16"
    assert (original.cells["weights"].text, run.cells["weights"].text) == ("8.4M", "4.9M")
    assert run.cells["weights"].ratio == pytest.approx(4.9 / 8.4)
    assert "weights" not in {column.id for column in compare([whole])[0].columns}
