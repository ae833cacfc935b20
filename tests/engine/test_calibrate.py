"""Block by block: right blocks in every family, better than rounding to nearest, and the same bytes after a stop."""

import hashlib

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantstudio.core.errors import Cancelled
from quantstudio.core.model_info import read_model_info
from quantstudio.core.model_parts import Part
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import LayersSection, MachineSection, Recipe
from quantstudio.core.recipe_method import Awq, Gptq, SmoothQuant
from quantstudio.core.schemes import W3A16, W4A8, W4A16, W8A8
from quantstudio.engine.architecture import inspect_architecture
from quantstudio.engine.calibrate import choose
from quantstudio.engine.calibration.blocks import BlockModel
from quantstudio.engine.calibration.folding import find_folds
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.load import load_model
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import Reporter, silent
from quantstudio.engine.safetensors_io import CheckpointReader

CPU = MachineSection(device="cpu")


def text(sequences=6, length=32, vocabulary=320):
    """Token ids with some order in them, so that activations are correlated."""
    steps = torch.randint(1, 4, (sequences, length), generator=torch.Generator().manual_seed(3))
    return steps.cumsum(1) % vocabulary


def original(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


@pytest.fixture
def family_folder(family, tiny_model, tmp_path):
    folder = tmp_path / family
    tiny_model(family, torch.bfloat16).save_pretrained(folder)
    return folder


@torch.inference_mode()
def test_blocks_one_by_one_are_the_whole_model(family_folder):
    info = read_model_info(family_folder)
    architecture = inspect_architecture(info)
    inner = [architecture.modules[slot.module] for slot in info.slots if slot.part is Part.LAYER]
    ids = text()
    with CheckpointReader(family_folder) as reader:
        model = BlockModel(info, architecture, inner, reader.read, torch.device("cpu"))
        model.load_shell()
        hidden = model.first_inputs(ids)
        for number, name in enumerate(model.names):
            model.load(name)
            hidden = model.run(number, hidden)
            model.drop(name)
        seen = model.head_inputs(ids, hidden)
    whole = original(family_folder)
    handed = []
    whole.get_output_embeddings().register_forward_pre_hook(lambda _module, inputs: handed.append(inputs[0]))
    whole(ids)
    # bf16, and another attention operator
    assert torch.nn.functional.cosine_similarity(seen.float(), handed[0].float(), dim=-1).min() > 0.998


def weights_of(folder, recipe, chosen):
    """The model with what was chosen, and the rest rounded to nearest."""
    info = read_model_info(folder)
    model, architecture = original(folder), inspect_architecture(info)
    for layer in make_plan(info, recipe).quantized:
        module = model.get_submodule(architecture.modules[layer.slot.module])
        weight = chosen.weight(layer.slot.module) if chosen else None
        weight = weight or quantize_rtn(module.weight.data, layer.spec)
        assert weight.spec == layer.spec
        module.weight = torch.nn.Parameter(weight.dequantize(), requires_grad=False)
    return model


@torch.inference_mode()
def divergence(folder, model, ids):
    wanted, found = (net(ids).logits.float().log_softmax(-1) for net in (original(folder), model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def check_gptq(folder, work, scheme):
    recipe = Recipe(scheme=scheme, method=Gptq(), layers=LayersSection(head="same"), machine=CPU)
    info, ids = read_model_info(folder), text(sequences=48)
    plan = make_plan(info, recipe)
    chosen = choose(info, plan, recipe, work, ids, silent())
    assert all(chosen.spec(layer.slot.module) for layer in plan.quantized if layer.spec.bits < 8)
    plain = divergence(folder, weights_of(folder, recipe, None), ids)
    assert divergence(folder, weights_of(folder, recipe, chosen), ids) < 0.8 * plain


def test_gptq_is_closer_to_the_original(family_folder, tmp_path):
    check_gptq(family_folder, tmp_path / "work", W4A8(group_size=32))


@pytest.mark.parametrize("scheme", [W3A16(group_size=32), W4A16(group_size="channel", symmetric=False)])
def test_gptq_on_other_grids(tiny_model, tmp_path, scheme):
    tiny_model("llama", torch.bfloat16).save_pretrained(tmp_path / "model")
    check_gptq(tmp_path / "model", tmp_path / "work", scheme)


FOLDS = {
    "llama": {"input_layernorm", "v_proj", "post_attention_layernorm", "up_proj"},
    "gemma3": {"input_layernorm", "v_proj", "pre_feedforward_layernorm", "up_proj"},
    "phi3": {"input_layernorm", "post_attention_layernorm"},  # its values and "up" are parts of fused layers
    "gpt_neox": {"input_layernorm", "post_attention_layernorm"},
    "olmo": {"v_proj", "up_proj"},  # its norms have no weights
}


def test_scales_are_folded_where_the_model_stays_the_same(family, family_folder):
    info = read_model_info(family_folder)
    architecture = inspect_architecture(info)
    inner = [architecture.modules[slot.module] for slot in info.slots if slot.part is Part.LAYER]
    with CheckpointReader(family_folder) as reader, torch.inference_mode():
        model = BlockModel(info, architecture, inner, reader.read, torch.device("cpu"))
        model.load_shell()
        hidden = model.first_inputs(text())
        model.load(model.names[0])
        before = model.run(0, hidden)
        size = getattr(model.model.config, "head_dim", None) or 16
        folds = find_folds(model, 0, hidden, size)
        assert torch.equal(model.run(0, hidden), before)  # trying leaves no trace
    assert {fold.source.rpartition(".")[2] for fold in folds} == FOLDS.get(family, FOLDS["llama"])


@pytest.mark.parametrize(
    ("method", "scheme"), [(Awq(), W3A16(group_size=32)), (SmoothQuant(), W8A8())], ids=["awq", "smoothquant"]
)
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_scaling_helps_where_channels_stand_out(family, method, scheme, tiny_model, tmp_path):
    model = tiny_model(family, torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name and ("input" in name or "pre_feedforward" in name or "post_attention" in name):
                parameter[::16] += 12
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    recipe = Recipe(scheme=scheme, method=method, machine=CPU)
    info, ids = read_model_info(folder), text(sequences=24)
    plan = make_plan(info, recipe)
    chosen = choose(info, plan, recipe, tmp_path / "work", ids, silent())
    out, plain = tmp_path / "out", tmp_path / "plain"
    for target, choices in ((out, chosen), (plain, None)):
        target.mkdir()
        quantize_model(info, plan, recipe, target, silent(), choices)
    losses = [
        divergence(folder, load_model(target, "cpu", silent(), "reference").model, ids) for target in (out, plain)
    ]
    assert losses[0] < 0.9 * losses[1]


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.safetensors"))}


class Impatient(Reporter):
    """Counts how often it was asked whether to stop, and says yes after `patience` times."""

    def __init__(self, patience=10**9):
        super().__init__(lambda message: None)
        self.asked, self.patience = 0, patience

    def check_cancel(self):
        self.asked += 1
        if self.asked > self.patience:
            raise Cancelled


def test_a_stopped_run_goes_on_to_the_same_bytes(tiny_folder, tmp_path):
    recipe = Recipe(scheme=W4A16(group_size=32), method=Gptq(), machine=CPU)
    info, ids = read_model_info(tiny_folder), text(sequences=70, vocabulary=512)
    plan = make_plan(info, recipe)
    counting = Impatient()
    choose(info, plan, recipe, tmp_path / "peace", ids, counting)
    for share in (0.05, 0.3, 0.7):
        with pytest.raises(Cancelled):
            choose(info, plan, recipe, tmp_path / "stopped", ids, Impatient(int(share * counting.asked)))
    finished = bytes_of(tmp_path / "stopped")
    assert list(finished) == ["block.0.safetensors"]
    choose(info, plan, recipe, tmp_path / "stopped", ids, silent())
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "peace")
    assert finished.items() <= bytes_of(tmp_path / "stopped").items()


@torch.inference_mode()
def test_settled_parts_answer_as_they_would(family_folder):
    info = read_model_info(family_folder)
    architecture = inspect_architecture(info)
    inner = [architecture.modules[slot.module] for slot in info.slots if slot.part is Part.LAYER]
    pieces = [text(), text().flip(1)]
    with CheckpointReader(family_folder) as reader:
        model = BlockModel(info, architecture, inner, reader.read, torch.device("cpu"))
        model.load_shell()
        batches = [model.first_inputs(piece) for piece in pieces]
        model.load(model.names[0])
        wanted = [model.run(0, batch) for batch in batches]
        part = next(
            name for name, _ in model.model.named_modules() if name.startswith(model.names[0]) and "att" in name
        )
        model.settle(part)
        for _ in range(2):  # the first time it is asked, the second it is not
            assert all(torch.equal(model.run(0, batch, n), wanted[n]) for n, batch in enumerate(batches))
            for parameter in model.model.get_submodule(part).parameters():
                parameter.zero_()
        model.drop(model.names[0])
        model.load(model.names[0])
        assert torch.equal(model.run(0, batches[0], 1), wanted[0])


def test_trained_tensors_take_the_place_of_the_source(tiny_folder, tmp_path):
    recipe = Recipe(scheme=W4A16(group_size=32), method=Gptq(), machine=CPU)
    info, ids = read_model_info(tiny_folder), text(vocabulary=512)
    trained = Chosen(tmp_path / "trained")
    with CheckpointReader(tiny_folder) as reader:
        doubled = {name: reader.read(name) * 2 for name in reader.tensors}
    trained.put("weights", {}, doubled)
    chosen = choose(info, make_plan(info, recipe), recipe, tmp_path / "work", ids, silent(), trained)
    name = "model.layers.1.mlp.down_proj"
    assert torch.allclose(chosen.weight(name).dequantize().float(), doubled[f"{name}.weight"].float(), atol=0.5)
    assert torch.equal(chosen.tensor("model.norm.weight"), doubled["model.norm.weight"])
    assert chosen.tensor(f"{name}.weight") is None
