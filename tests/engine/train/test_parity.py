"""What is trained is what is saved: the fake-quantized model and the saved folder give the same logits."""

import pytest
import torch

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import EmbeddingChoice, HeadChoice, LayersSection, Recipe
from quantstudio.core.recipe_precision import PerLayer
from quantstudio.core.schemes import SCHEMES, W2A16, W3A8, W4A8, W4A16, W8A8, WeightSpec
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.load import load_model
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.quantized_weight import QuantizedWeight
from quantstudio.engine.reporter import silent
from quantstudio.engine.train.grid import fake_quantize, quantized
from quantstudio.engine.train.objective import logits_of
from quantstudio.engine.train.student import Training, make_student

UNIFORM = [scheme(group_size=32) if scheme.__name__[1] != "8" else scheme() for scheme in SCHEMES]
CASES = {
    **{scheme.kind: Recipe(scheme=scheme) for scheme in UNIFORM},
    "w4a16 asymmetric": Recipe(scheme=W4A16(group_size=32, symmetric=False)),
    "w2a16 per channel": Recipe(scheme=W2A16(group_size="channel")),
    "mixed bits": Recipe(
        scheme=W3A8(group_size=32), precision=PerLayer(bits=("*.q_proj=8", "*.down_proj=2", "*.0.*=4"))
    ),
    "head as the layers": Recipe(scheme=W4A16(group_size=32), layers=LayersSection(head=HeadChoice.SAME)),
    "head kept": Recipe(scheme=W4A16(group_size=32), layers=LayersSection(head=HeadChoice.KEEP)),
    "some kept": Recipe(
        scheme=W4A8(group_size=32),
        layers=LayersSection(head=HeadChoice.KEEP, embedding=EmbeddingChoice.KEEP, keep=("*.v_proj",)),
    ),
}


def _moved(model):
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                scale = 0.02 if value.ndim == 1 else 0.1 * value.abs().mean() + 0.01
                value.add_(torch.randn(value.shape, generator=generator) * scale)


def _saved(folder, recipe, student, tmp_path):
    info = read_model_info(folder)
    chosen = Chosen(tmp_path / "chosen")
    chosen.put("trained", dict(student.results()), dict(student.changed()))
    out = tmp_path / "out"
    out.mkdir()
    quantize_model(info, make_plan(info, recipe), recipe, out, silent(), chosen)
    return load_model(out, "cpu", silent(), kernels="reference").model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lora", [0, 4], ids=["all", "lora"])
def test_trained_and_saved_give_the_same_logits(case, lora, tiny_folder, tmp_path):
    recipe = CASES[case]
    info = read_model_info(tiny_folder)
    teacher = load_model(tiny_folder, "cpu", silent()).model
    plan, architecture = make_plan(info, recipe), inspect_architecture(info)
    student = make_student(teacher, plan, architecture, Training(lora_rank=lora))
    _moved(student.model)
    saved = _saved(tiny_folder, recipe, student, tmp_path)
    ids = torch.randint(3, 512, (2, 48), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        trained, again, before = logits_of(student.model, ids), logits_of(saved, ids), logits_of(teacher, ids)
    # Same weights to the bit, same arithmetic in bf16: not even rounding is left between them.
    assert torch.equal(trained, again)
    assert (trained - before).abs().max() > 0.1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, None])
def test_without_learned_scales_the_grid_is_that_of_rounding_to_nearest(bits, symmetric, group):
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(bits))
    spec = WeightSpec(bits, group, symmetric)
    expected, found = quantize_rtn(weight, spec), quantized(weight, spec, None)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales)
    assert torch.equal(found.dequantize(), expected.dequantize())
    assert torch.equal(fake_quantize(weight, spec), expected.dequantize())


def test_lora_shares_the_originals_weights(tiny_folder):
    info = read_model_info(tiny_folder)
    teacher = load_model(tiny_folder, "cpu", silent()).model
    plan = make_plan(info, Recipe(scheme=W8A8()))
    student = make_student(teacher, plan, inspect_architecture(info), Training(lora_rank=4))
    mine = dict(student.model.named_parameters())
    for name, value in teacher.named_parameters():
        assert mine[name] is value
    trained = {name.rpartition(".")[2] for name, value in mine.items() if value.requires_grad}
    assert trained == {"lora_a", "lora_b"}


@pytest.mark.parametrize("scheme", [W4A8(group_size=32), W2A16(group_size=32), W4A16(group_size=32, symmetric=False)])
def test_a_student_begins_on_the_codes_that_another_method_found(scheme, tiny_folder, tmp_path):
    """Its first forward pass is that method's model, to the bit; what has no scales to learn stays as it is."""
    info = read_model_info(tiny_folder)
    plan = make_plan(info, Recipe(scheme=scheme))
    teacher = load_model(tiny_folder, "cpu", silent()).model
    student = make_student(teacher, plan, inspect_architecture(info), Training())
    plain = dict(student.results())
    found = {}
    for name, weight in plain.items():
        if weight.spec.bits == 8:
            continue
        low, high = weight.spec.code_range
        generator = torch.Generator().manual_seed(len(name))
        codes = torch.randint(low, high + 1, weight.codes.shape, generator=generator, dtype=torch.int8)
        found[name] = QuantizedWeight(codes, weight.scales * 1.25, weight.zero_points, weight.spec)
    chosen = Chosen(tmp_path / "chosen")
    chosen.put("all", found)
    student.begin_at(chosen)
    begun = dict(student.results())
    for name, weight in plain.items():
        expected = found.get(name, weight)
        assert torch.equal(begun[name].codes, expected.codes), name
        assert torch.equal(begun[name].scales, expected.scales), name
    assert len(found) > 7
    assert len(found) < len(plain)
