"""What a recipe would do to a model: grids, misfits, tied tables, bytes."""

import pytest

from quantstudio.core.errors import LayerMisfit, ModelUnsupported
from quantstudio.core.model_info import Part, WeightSlot, read_model_info
from quantstudio.core.plan import make_plan, quantized_bytes, short_names, smaller_group
from quantstudio.core.recipe import LayersSection, Recipe
from quantstudio.core.schemes import INT8_PER_CHANNEL, W4A8, W4A16, W8A8, W8A16, ActivationKind, WeightSpec


@pytest.fixture
def llama(make_model):
    """Rows of 64 and 152 weights."""
    return read_model_info(make_model())


@pytest.fixture
def tied(make_model):
    return read_model_info(make_model("tied", tensors=make_model.llama_tensors(head=False), tie_word_embeddings=True))


def recipe(scheme=None, **layers):
    return Recipe(scheme=scheme or W4A16(group_size=8), layers=LayersSection(**layers))


def by_name(plan):
    return {layer.slot.module: layer for layer in plan.layers}


def test_every_matrix_gets_the_grid_that_the_recipe_asks_for(llama):
    plan = make_plan(llama, recipe())
    plan.require()
    layers = by_name(plan)
    assert layers["model.embed_tokens"].spec == INT8_PER_CHANNEL
    assert layers["lm_head"].spec == INT8_PER_CHANNEL
    inner = [layer.spec for layer in plan.layers if layer.slot.part is Part.LAYER]
    assert inner == [WeightSpec(4, 8)] * 21
    assert (plan.misfits, plan.notices, plan.kept, plan.shared_table) == ((), (), (), False)


def test_head_and_embedding_can_stay_or_take_the_scheme(llama):
    kept = make_plan(llama, recipe(head="keep", embedding="keep"))
    assert {layer.slot.module: layer.reason for layer in kept.kept} == {
        "model.embed_tokens": "the recipe keeps the embedding",
        "lm_head": "the recipe keeps the head",
    }
    assert by_name(make_plan(llama, recipe(head="same")))["lm_head"].spec == WeightSpec(4, 8)


def test_layers_are_kept_by_pattern_and_a_pattern_for_nothing_is_noticed(llama):
    plan = make_plan(llama, recipe(keep=("model.layers.0.*", "*.down_proj", "*.typo")))
    kept = {layer.slot.module for layer in plan.kept}
    assert kept == {
        *(slot.module for slot in llama.slots if slot.module.startswith("model.layers.0.")),
        "model.layers.1.mlp.down_proj",
        "model.layers.2.mlp.down_proj",
    }
    assert plan.notices == ("No layer is called *.typo; this pattern of layers to keep does nothing.",)


def test_misfits_refuse_by_default_and_name_every_layer_and_what_fits(llama):
    plan = make_plan(llama, recipe(W4A16(group_size=32)))
    assert {misfit.slot.module for misfit in plan.misfits} == {f"model.layers.{i}.mlp.down_proj" for i in range(3)}
    assert plan.misfits[0].nearest[:2] == (38, 19)
    with pytest.raises(LayerMisfit) as caught:
        plan.require()
    assert caught.value.field == "scheme.group_size"
    assert "model.layers.0–2.mlp.down_proj: rows of 152 weights (nearest that fit: 38, 19, 8" in str(caught.value)
    assert "Use a group size of 38, 19 or 8" in caught.value.hint


def test_a_group_size_that_is_recommended_fits_every_layer(llama):
    plan = make_plan(llama, recipe(W4A16(group_size=128)))
    assert len(plan.misfits) == 21
    with pytest.raises(LayerMisfit, match="Use a group size of 8, or set"):
        plan.require()
    assert make_plan(llama, recipe(W4A16(group_size=8))).misfits == ()


def test_misfits_stay_in_bf16_when_the_recipe_says_keep(llama):
    plan = make_plan(llama, recipe(W4A16(group_size=32), on_misfit="keep"))
    plan.require()
    assert {layer.slot.module for layer in plan.kept} == {f"model.layers.{i}.mlp.down_proj" for i in range(3)}
    assert plan.notices == ("model.layers.0–2.mlp.down_proj: kept in bf16: 32 does not divide its rows of 152.",)


def test_misfits_get_a_smaller_group_when_the_recipe_says_so(llama):
    plan = make_plan(llama, recipe(W4A16(group_size=32), on_misfit="smaller"))
    plan.require()
    down = by_name(plan)["model.layers.1.mlp.down_proj"]
    assert down.spec == WeightSpec(4, 19)
    assert down.reason == "groups of 19: 32 does not divide 152"
    assert len(plan.misfits) == 3


def test_a_head_with_the_layers_scheme_can_misfit_too(llama):
    plan = make_plan(llama, recipe(W4A16(group_size=128), head="same"))
    assert "lm_head" in {misfit.slot.module for misfit in plan.misfits}


@pytest.mark.parametrize(
    ("columns", "group_size", "smaller"),
    [
        (896, 256, 224),
        (4864, 224, 128),  # 152 divides too, but no fast kernel exists for it
        (152, 128, 76),
        (48, 128, 48),
        (62, 32, 31),
        (14, 8, None),
        (7, 128, None),
    ],
)
def test_the_next_smaller_group(columns, group_size, smaller):
    assert smaller_group(columns, group_size) == smaller


@pytest.mark.parametrize(
    ("layers", "shared", "head", "embedding"),
    [
        ({}, True, "int8", "int8"),
        ({"head": "keep", "embedding": "keep"}, False, None, None),
        ({"head": "int8", "embedding": "keep"}, False, "int8", None),
        ({"head": "keep", "embedding": "int8"}, False, None, "int8"),
        ({"head": "same"}, False, "int4", "int8"),
    ],
)
def test_what_becomes_of_a_tied_table(tied, layers, shared, head, embedding):
    plan = make_plan(tied, recipe(**layers))
    bf16, int8, int4 = 320 * 64 * 2, 320 * 64 + 320 * 2, 320 * 32 + 2 * 320 * 8 + 16
    bytes_of = {None: bf16, "int8": int8, "int4": int4}
    stays_tied = head == embedding
    assert plan.shared_table is shared
    assert plan.tied_output is stays_tied
    assert plan.sizes.embedding == bytes_of[embedding]
    own_scales = 320 * 2 if shared else 0
    assert plan.sizes.head == (own_scales if stays_tied else bytes_of[head])
    assert (plan.original_sizes.embedding, plan.original_sizes.head) == (bf16, 0)
    untied = [notice for notice in plan.notices if "one matrix" in notice]
    assert bool(untied) is not stays_tied


def test_int8_layers_share_their_table_with_an_int8_embedding(tied):
    plan = make_plan(tied, recipe(W8A16(), head="same"))
    assert plan.shared_table


def test_w8a8_head_needs_a_table_of_its_own(tied):
    """The embedding has no input to round, so its grid is not the head's."""
    plan = make_plan(tied, recipe(W8A8(), head="same"))
    assert not plan.shared_table
    assert plan.sizes.head == plan.sizes.embedding


def slot(rows, columns, part=Part.LAYER):
    return WeightSlot("m", "m.weight", rows, columns, part, quantizable=True)


@pytest.mark.parametrize(
    ("spec", "nbytes"),
    [
        (WeightSpec(8, None), 48 * 152 + 48 * 2 + 16),
        (WeightSpec(4, 8), 48 * 19 * 4 + 48 * 19 * 2 + 16),
        (WeightSpec(4, None), 48 * 19 * 4 + 48 * 2 + 16),
        (WeightSpec(4, 76, symmetric=False), 48 * 19 * 4 + 48 * 2 * (2 + 4) + 16),
    ],
)
def test_bytes_of_a_layer_of_48_rows_and_152_columns(spec, nbytes):
    assert quantized_bytes(slot(48, 152), spec) == nbytes


@pytest.mark.parametrize(("rows", "columns"), [(48, 152), (10, 24), (33, 65)])
@pytest.mark.parametrize("part", [Part.LAYER, Part.HEAD, Part.EMBEDDING])
@pytest.mark.parametrize(
    "spec",
    [
        WeightSpec(4, None),
        WeightSpec(4, 8),
        WeightSpec(4, 8, symmetric=False),
        WeightSpec(4, None, symmetric=False, activations=ActivationKind.INT8_TOKEN),
        WeightSpec(8, None),
        WeightSpec(8, None, activations=ActivationKind.INT8_TOKEN),
    ],
    ids=lambda spec: spec.label,
)
def test_bytes_are_those_that_the_engine_writes(rows, columns, part, spec):
    pytest.importorskip("torch")
    from quantstudio.engine.formats.compressed_tensors import StoredModule, encoding_for, layout

    stored = StoredModule("m", rows, columns, spec, encoding_for(spec, part))
    assert quantized_bytes(slot(rows, columns, part), spec) == sum(tensor.nbytes for tensor in layout(stored))


def test_sizes_by_part_add_up(llama):
    plan = make_plan(llama, recipe(W4A8(group_size=8, symmetric=False)))
    original = plan.original_sizes
    assert original.total == llama.nbytes
    assert original.embedding == original.head == 320 * 64 * 2
    assert original.rest == plan.sizes.rest == 7 * 64 * 2
    square, wide, tall = (
        quantized_bytes(slot(rows, columns), plan.layers[1].spec) for rows, columns in ((64, 64), (152, 64), (64, 152))
    )
    assert plan.sizes.layers == 3 * (4 * square + 2 * wide + tall)


def test_a_model_in_fp32_is_written_as_bf16_where_it_is_not_quantized(make_model):
    info = read_model_info(make_model(tensors=make_model.llama_tensors(dtype="F32")))
    plan = make_plan(info, recipe(head="keep", embedding="keep", keep=("*.down_proj",)))
    assert plan.sizes.embedding == 320 * 64 * 2
    assert plan.original_sizes.embedding == 320 * 64 * 4
    assert plan.sizes.rest == 7 * 64 * 2
    assert "The model is stored as F32; what is not quantized is written as bf16." in plan.notices


def test_a_quantized_model_is_refused(make_model):
    info = read_model_info(make_model(quantization_config={"quant_method": "gptq"}))
    with pytest.raises(ModelUnsupported, match="already quantized") as caught:
        make_plan(info, recipe()).require()
    assert caught.value.field == "model.id"


def test_a_model_in_which_nothing_is_to_be_quantized_is_refused_with_the_reasons(make_model):
    config = {"model_type": "gpt2", "n_layer": 2, "vocab_size": 320}
    tensors = {"transformer.wte.weight": ("BF16", (320, 64))}
    tensors |= {f"transformer.h.{i}.mlp.c_fc.weight": ("BF16", (64, 256)) for i in range(2)}
    info = read_model_info(make_model(config=config, tensors=tensors))
    with pytest.raises(ModelUnsupported) as caught:
        make_plan(info, recipe(head="keep", embedding="keep")).require()
    assert "2 weight matrices stay in bf16 (Conv1D layer): transformer.h.0–1.mlp.c_fc." in caught.value.why


def test_layers_of_another_kind_stay_named_and_counted(make_model):
    tensors = make_model.llama_tensors() | {
        f"model.layers.{i}.mlp.experts.{e}.up_proj.weight": ("BF16", (32, 64)) for i in range(3) for e in range(2)
    }
    plan = make_plan(read_model_info(make_model(tensors=tensors)), recipe())
    plan.require()
    (notice,) = plan.notices
    assert notice.startswith("6 weight matrices stay in bf16 (expert of a mixture-of-experts layer (stored fused)): ")
    assert "model.layers.0–2.mlp.experts.0.up_proj" in notice


def test_names_of_consecutive_blocks_fold():
    names = [f"model.layers.{i}.mlp.up" for i in (0, 1, 2, 5)] + ["lm_head"]
    assert short_names(names) == ["model.layers.0–2,5.mlp.up", "lm_head"]
