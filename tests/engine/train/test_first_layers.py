"""Only the first layers are kept: what is trained is what is saved, and plain transformers reads it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantstudio.core import protocol
from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.first_layers import first_layers, kept_part
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.core.recipe_method import Qat
from quantstudio.core.schemes import W4A16
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.load import load_model
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent
from quantstudio.engine.train.data import labelled
from quantstudio.engine.train.evaluate import held_out_score
from quantstudio.engine.train.loss import Objective
from quantstudio.engine.train.objective import logits_of
from quantstudio.engine.train.settings import settle
from quantstudio.engine.train.shorten import require_same_layers
from quantstudio.engine.train.student import Training, make_student

SCHEME = W4A16(group_size=32)
METHOD = Qat(keep_layers=1, steps=6, batch_sequences=4, evaluations=3, learning_rate=2e-3)
RECIPE = Recipe(scheme=SCHEME, method=METHOD, machine=MachineSection(device="cpu"))
FAMILIES = ["llama", "qwen2", "gemma3", "gpt_neox"]
"""Tied and not, with a list of kinds of layers, and with renamed tensors."""


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, local_files_only=True, dtype=torch.bfloat16
    ).eval()


def saved(info, out, chosen):
    out.mkdir()
    made = quantize_model(kept_part(info, RECIPE), make_plan(info, RECIPE), RECIPE, out, silent(), chosen)
    assert (made.layers, made.removed_layers) == (1, 1)
    assert made.parameters < made.original_parameters == info.parameters
    assert made.sizes.total < made.original_sizes.total == info.nbytes
    return json.loads((out / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_and_the_saved_folder_give_the_same_logits(family, tiny_model, tmp_path):
    source = tmp_path / family
    tiny_model(family, torch.bfloat16).save_pretrained(source)
    info = read_model_info(source)
    part = first_layers(info, 1)
    require_same_layers(part)
    teacher = load_model(source, "cpu", silent()).model
    student = make_student(teacher, make_plan(info, RECIPE), inspect_architecture(part), Training(first_layers=1))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in student.trained():
            value.add_(0.05 * value.abs().mean() * torch.randn(value.shape, generator=generator))
    chosen = Chosen(tmp_path / "chosen")
    chosen.put("trained", dict(student.results()), dict(student.changed()))
    config = saved(info, tmp_path / "out", chosen)
    assert config["num_hidden_layers"] == 1
    assert len(config.get("layer_types") or [0]) == 1
    ids = torch.randint(3, 320, (2, 48), generator=generator)
    with torch.no_grad():
        trained, original = logits_of(student.model, ids), logits_of(teacher, ids)
        ours = logits_of(load_model(tmp_path / "out", "cpu", silent(), kernels="reference").model, ids)
        theirs = plain(tmp_path / "out")(ids).logits.reshape(trained.shape)
    assert len(teacher.get_submodule("gpt_neox" if family == "gpt_neox" else "model").layers) == 2
    assert torch.equal(trained, ours)
    # Another implementation of attention, so that sums are in another order: bf16 keeps 8 bits.
    assert (theirs - trained).abs().max() <= 2**-6 * trained.abs().max()
    assert (trained - original).abs().max() > 0.1


def test_what_is_trained_is_what_is_saved(train, tiny_folder, tmp_path, data):
    # The text is random: what is learnt shows only where it was learnt.
    data.held_out, data.held_out_mask = data.training[:4], data.training_mask[:4]
    ran = train(METHOD.model_copy(update={"steps": 12}), SCHEME)
    perplexities = dict(ran.metric("eval/perplexity"))
    best = min(ran.metric("eval/loss"), key=lambda each: each[1])[0]
    assert best > 0
    saved(read_model_info(tiny_folder), tmp_path / "out", ran.chosen)
    model = load_model(tmp_path / "out", "cpu", silent(), kernels="reference").model
    labels = labelled(data.held_out, data.held_out_mask)
    score = held_out_score(model, None, data.held_out, labels, Objective(0.0, 1.0, 1.0))
    assert score.perplexity == pytest.approx(perplexities[best], rel=1e-6)


def test_what_nothing_has_been_learnt_from_is_not_called_rounding_to_nearest(train):
    ran = train(METHOD, SCHEME)
    assert ran.metric("reference/original")
    assert not ran.metric("reference/rtn")
    assert any(isinstance(message, protocol.Sample) for message in ran.messages)


def test_a_model_whose_layers_share_with_later_ones_is_refused(tmp_path):
    from transformers import Gemma3nTextConfig

    config = Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
        laurel_rank=4,
        altup_num_inputs=2,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "shared")
    info = read_model_info(tmp_path / "shared")
    with pytest.raises(ModelUnsupported, match="cannot be removed"):
        require_same_layers(first_layers(info, 3))


def test_a_model_that_lost_layers_takes_larger_steps(tiny_folder):
    info = read_model_info(tiny_folder)
    whole = RECIPE.model_copy(update={"method": Qat()})
    rates = [
        settle(recipe.method, kept_part(info, recipe), make_plan(info, recipe), 32, 0).rate
        for recipe in (whole, whole.model_copy(update={"method": Qat(keep_layers=1)}))
    ]
    assert rates[1] > 2 * rates[0]
