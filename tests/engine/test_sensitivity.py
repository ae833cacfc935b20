"""Sensitivity: measured against a plain computation, predicted against measured, and carried out by a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled
from quantstudio.core.model_info import read_model_info
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_data import DataSection, FileData
from quantstudio.core.recipe_method import Gptq
from quantstudio.core.recipe_precision import AverageBits, PerLayer
from quantstudio.core.schemes import W4A16, WeightSpec
from quantstudio.core.sensitivity import SENSITIVITY_FILE, Sensitivity, spearman
from quantstudio.engine.methods.gptq import quantize_gptq
from quantstudio.engine.methods.rtn import quantize_rtn
from quantstudio.engine.pipeline import run_recipe
from quantstudio.engine.reporter import Reporter, silent
from quantstudio.engine.sensitivity import gradients, measure
from quantstudio.engine.sensitivity.restart import Restart, decoder_blocks

RECIPE = Recipe(scheme=W4A16(group_size=32), measure=MeasureSection(enabled=False), machine=MachineSection(threads=1))


@pytest.fixture(autouse=True)
def _little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to see layers differ, and no more."""
    monkeypatch.setattr(measure, "MOST_TOKENS", 512)
    monkeypatch.setattr(measure, "FEWEST_TOKENS", 512)
    monkeypatch.setattr(measure, "OTHER_GROUPS", (64,))
    monkeypatch.setattr(measure, "FEW_GROUPS", (64,))
    monkeypatch.setattr(gradients, "LENGTH", 32)
    monkeypatch.setattr(gradients, "TOKENS", 4096)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 512, (64, 64), generator=torch.Generator().manual_seed(1))


def test_a_restart_gives_what_a_whole_run_gives(
    family: str, tiny_model: Callable[..., PreTrainedModel], ids: torch.Tensor
) -> None:
    """Every family's blocks, whatever else they hand on: nothing changes when earlier blocks are not computed."""
    built = tiny_model(family)
    with torch.no_grad():
        restart = Restart(built, ids[:2] % 320)
        last = decoder_blocks(built)[-1]
        next(module for module in last.modules() if isinstance(module, torch.nn.Linear)).weight.mul_(1.5)
        assert restart.exact
        assert torch.equal(restart.run(1), built(input_ids=ids[:2] % 320, use_cache=False).logits)
        assert not torch.equal(restart.run(1), restart.logits)


@torch.no_grad()
def test_what_is_measured_is_the_kl_divergence_with_that_layer_alone_quantized(
    tiny_folder: Path, model: PreTrainedModel, ids: torch.Tensor
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure.measure_sensitivity(read_model_info(tiny_folder), RECIPE, model, ids[:8], silent())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(found.layers) == 14
    assert [option.bits for option in found.layers[0].options] == [2, 3, 4, 8]
    layer = next(layer for layer in found.layers if layer.name == "model.layers.1.mlp.up_proj")
    module = model.get_submodule(layer.name)
    original = model(input_ids=ids[:8]).logits.log_softmax(-1)
    weight = module.weight.data
    module.weight.data = quantize_rtn(weight, WeightSpec(3, 32)).dequantize().float()
    changed = model(input_ids=ids[:8]).logits.log_softmax(-1)
    module.weight.data = weight
    expected = torch.nn.functional.kl_div(changed, original, reduction="none", log_target=True).sum(-1).mean()
    assert found.tokens == 8 * 64
    assert layer.option(3).kl == pytest.approx(float(expected), rel=1e-3)  # sums in another order


@torch.no_grad()
def test_layers_are_quantized_by_gptq_where_the_run_will_do_so(
    tiny_folder: Path, model: PreTrainedModel, ids: torch.Tensor
) -> None:
    info, chosen = read_model_info(tiny_folder), RECIPE.model_copy(update={"method": Gptq()})
    ids = ids.cumsum(1) % 97 + 3  # some order, so that inputs are correlated and there is something to make up for
    found = measure.measure_sensitivity(info, chosen, model, ids, silent())
    plain = measure.measure_sensitivity(info, RECIPE, model, ids[-16:], silent())
    assert (found.method, plain.method) == ("gptq", "rtn")
    assert found.tokens == plain.tokens
    for bits in (2, 3, 4):
        with_gptq, nearest = (sum(layer.option(bits).kl for layer in each.layers) for each in (found, plain))
        assert with_gptq < 0.8 * nearest
    layer = next(layer for layer in found.layers if layer.name == "model.layers.0.mlp.up_proj")
    module = model.get_submodule(layer.name)
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].flatten(0, 1)))
    model(input_ids=ids[:48][torch.linspace(0, 47, 32).round().long()])
    hook.remove()
    judged = ids[48:][torch.linspace(0, 15, 8).round().long()]
    original = model(input_ids=judged).logits.log_softmax(-1)
    weight = module.weight.data
    module.weight.data = quantize_gptq(weight, seen[0].t() @ seen[0], WeightSpec(3, 32)).dequantize().float()
    changed = model(input_ids=judged).logits.log_softmax(-1)
    module.weight.data = weight
    expected = torch.nn.functional.kl_div(changed, original, reduction="none", log_target=True).sum(-1).mean()
    assert layer.option(3).kl == pytest.approx(float(expected), rel=0.1)  # a code or two may fall the other way


def test_losses_predicted_from_gradients_rank_layers_alike(
    tiny_folder: Path, model: PreTrainedModel, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 short sequences leave 12 % of noise in each prediction; the layers differ by much more."""
    info = read_model_info(tiny_folder)
    measured = measure.measure_sensitivity(info, RECIPE, model, ids, silent())
    monkeypatch.setitem(measure.CHEAP_WORK, "cpu", 0)
    predicted = measure.measure_sensitivity(info, RECIPE, model, ids, silent())
    assert (measured.measured_as, predicted.measured_as) == ("each", "gradients")
    first, second = ([layer.option(4).kl for layer in found.layers] for found in (measured, predicted))
    assert spearman(first, second) > 0.7
    assert sum(first) / sum(second) == pytest.approx(1, abs=0.5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_stops_between_layers_and_leaves_the_model_as_it_was(
    tiny_folder: Path, model: PreTrainedModel, ids: torch.Tensor
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cancel = threading.Event()

    def stop_at_the_second_layer(message: protocol.Message) -> None:
        if isinstance(message, protocol.Progress) and message.done >= 3:
            cancel.set()

    info = read_model_info(tiny_folder)
    with pytest.raises(Cancelled):
        measure.measure_sensitivity(info, RECIPE, model, ids, Reporter(stop_at_the_second_layer, cancel))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_turns_a_target_into_bits_per_layer(tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    words = ["ship", "harbour", "evening", "letter", "garden", "winter", "answer", "silver", "window", "stone"]
    text.write_text(
        "".join(f"{words[i % 10]} {words[i * 7 % 9]} {i} {words[i * i % 10]}.\n\n" for i in range(3000)),
        encoding="utf-8",
    )
    recipe = RECIPE.model_copy(
        update={
            "model": ModelSection(id=str(tiny_folder)),
            "precision": AverageBits(average_bits=3.5),
            "data": DataSection(source=FileData(path=str(text)), sequence_length=64, calibration_sequences=16),
        }
    )
    run = tmp_path / "run"
    run.mkdir()
    seen: list[protocol.Message] = []
    result = run_recipe(recipe, run, Reporter(seen.append))
    phases = [message.id for message in seen if isinstance(message, protocol.Phase)]
    assert phases == ["check", "sensitivity", "quantize", "save"]
    assert isinstance(result.recipe.precision, PerLayer)
    found = Sensitivity.model_validate_json((run / SENSITIVITY_FILE).read_bytes())
    bits = dict(line.rsplit("=", 1) for line in result.recipe.precision.bits)
    average = sum(layer.weights * int(bits[layer.name]) for layer in found.layers) / found.weights
    assert 3.2 < average <= 3.5
    resolved = json.loads((run / "recipe.resolved.json").read_text(encoding="utf-8"))
    assert resolved["recipe"]["precision"]["bits"] == list(result.recipe.precision.bits)
    config = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    groups = config["quantization_config"]["config_groups"].values()
    stored = {group["weights"]["num_bits"] for group in groups if any("layers" in name for name in group["targets"])}
    assert stored == {int(each) for each in bits.values()}
