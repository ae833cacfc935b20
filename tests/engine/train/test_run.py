"""A training from start to finish, killed, cancelled, run away; and what it hands over."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled, TrainingDiverged
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import FineTune, Qat
from quantstudio.core.schemes import W2A16, W4A8, W4A16
from quantstudio.engine.load import load_model
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import Reporter, silent
from quantstudio.engine.train import evaluate
from quantstudio.engine.train.data import labelled
from quantstudio.engine.train.evaluate import held_out_score
from quantstudio.engine.train.loss import Objective

SCHEME = W2A16(group_size=32)
QUICK = Qat(steps=6, batch_sequences=4, evaluations=3, learning_rate=2e-3)


class Killed(BaseException):
    """Ends a process where it stands, as far as Python allows."""


def _files(chosen):
    return {path.name: load_file(path) for path in sorted(chosen._folder.glob("*.safetensors"))}


def _same(first, second):
    return all(
        torch.equal(first[file][name], second[file][name])
        for file in first | second
        for name in first[file] | second[file]
    )


def test_training_wins_back_what_rounding_lost(train):
    ran = train(QUICK.model_copy(update={"steps": 24, "batch_sequences": 8, "evaluations": 3}), SCHEME)
    scores = ran.metric("eval/loss")
    assert [step for step, _ in scores] == [0, 8, 16, 24]
    losses = [loss for _, loss in ran.metric("train/loss")]
    assert len(losses) == 24
    # The text is random: what is learnt shows where it was learnt. The same 24 sequences come by every third step.
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    rates = [value for _, value in ran.metric("train/learning_rate")]
    assert max(rates) == pytest.approx(2e-3)
    assert rates[0] < rates[5] > rates[-1]
    assert ran.metric("reference/rtn")[0][1] == ran.metric("eval/perplexity")[0][1]
    assert ran.metric("reference/original")[0][1] != ran.metric("reference/rtn")[0][1]
    samples = [message for message in ran.messages if isinstance(message, protocol.Sample)]
    assert {sample.step for sample in samples} == {0, 8, 16, 24}
    assert any("quick" in text for text in ran.notices())


def test_the_result_is_that_of_the_best_evaluation(train, tiny_folder, tmp_path):
    ran = train(QUICK, SCHEME)
    info = read_model_info(tiny_folder)
    recipe = Recipe(scheme=SCHEME)
    for layer in make_plan(info, recipe).quantized:
        assert ran.chosen.spec(layer.slot.module) == layer.spec
    out = tmp_path / "out"
    out.mkdir()
    quantize_model(info, make_plan(info, recipe), recipe, out, silent(), ran.chosen)
    assert (out / "config.json").is_file()


@pytest.mark.parametrize("lora", ["all", "lora"])
def test_a_killed_run_goes_on_with_the_same_result(train, lora):
    method = QUICK.model_copy(update={"train": lora})
    whole = train(method, W4A8(group_size=32), "whole")

    def kill_at(step):
        def listen(message):
            if isinstance(message, protocol.Metric) and message.name == "train/loss" and message.step == step:
                raise Killed

        return listen

    for step in (1, 3, 6):  # before any checkpoint, after the first, before the last is judged
        with pytest.raises(Killed):
            train(method, W4A8(group_size=32), "killed", kill_at(step))
    again = train(method, W4A8(group_size=32), "killed")
    assert _same(_files(whole.chosen), _files(again.chosen))
    assert [step for step, _ in again.metric("train/loss")] == [5, 6]


def test_cancelled_between_steps(train):
    def listen(message):
        if isinstance(message, protocol.Metric) and message.name == "train/loss":
            raise Cancelled

    with pytest.raises(Cancelled):
        train(QUICK, SCHEME, listen=listen)


def test_whether_to_stop_is_asked_within_each_step(train, monkeypatch):
    """A step of a large model takes long on a CPU: its layers ask as well, forwards and backwards, here two of them."""
    asked = []
    monkeypatch.setattr(Reporter, "check_cancel", lambda self: asked.append(1))
    at_steps = []
    train(
        QUICK.model_copy(update={"steps": 2, "evaluations": 1}),
        SCHEME,
        listen=lambda message: (
            at_steps.append(len(asked))
            if isinstance(message, protocol.Metric) and message.name == "train/loss"
            else None
        ),
    )
    first, second = at_steps
    assert second - first >= 6  # teacher, student, and the student's gradients


def test_a_loss_that_runs_away_halves_the_rate_and_at_last_gives_up(train):
    hopeless = QUICK.model_copy(update={"learning_rate": 1.0, "steps": 60, "warmup_steps": 0})
    said = []
    with pytest.raises(TrainingDiverged):
        train(hopeless, SCHEME, listen=said.append)
    notices = [message.text for message in said if isinstance(message, protocol.Notice) and message.level == "warning"]
    assert len(notices) == 3
    assert "5.0e-01" in notices[0]


def test_a_nan_goes_back_to_the_last_checkpoint(train, one_nan):
    ran = train(QUICK, SCHEME)
    assert any("half the learning rate" in text for text in ran.notices())
    assert [step for step, _ in ran.metric("train/loss")] == [1, 2, 3, 3, 4, 5, 6]
    rates = dict(ran.metric("train/learning_rate"))
    assert rates[4] < 0.6 * 2e-3


def test_lora_leaves_an_adapter_that_peft_reads(train, tiny_folder, tmp_path):
    import peft  # heavy, and wanted here alone

    ran = train(QUICK.model_copy(update={"train": "lora", "lora_rank": 4}), W4A16(group_size=32))
    base = AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 calls what transformers 5.24 has renamed
        merged = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").merge_and_unload()
    name = "model.layers.0.self_attn.q_proj"
    weight = merged.get_submodule(name).weight.detach()
    # No weight is further from its grid than half a step, save those beyond it: the sum is what was rounded.
    chosen = ran.chosen.weight(name)
    step = chosen.scales.float().abs().repeat_interleave(32, 1)
    far = (weight - chosen.dequantize().float()).abs() > 0.52 * step
    assert far.float().mean() < 0.15
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4


def test_a_fine_tune_hands_over_weights_that_are_not_rounded(train):
    ran = train(FineTune(steps=4, batch_sequences=4, evaluations=2, learning_rate=1e-3), W4A16(group_size=32))
    name = "model.layers.0.self_attn.q_proj"
    assert ran.chosen.weight(name) is None
    assert ran.chosen.tensor(f"{name}.weight").dtype == torch.bfloat16
    assert not ran.metric("reference/rtn")


def test_stops_early_when_nothing_gets_better(train):
    ran = train(QUICK.model_copy(update={"steps": 30, "evaluations": 15, "patience": 2, "learning_rate": 1e-8}), SCHEME)
    assert ran.metric("train/loss")[-1][0] < 30
    assert any("stopped" in text for text in ran.notices())


def test_held_out_text_passes_in_pieces_that_can_be_stopped_between(tiny_folder, data, monkeypatch):
    model = load_model(tiny_folder, "cpu", silent()).model
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].numel()))
    labels = labelled(data.training, data.training_mask)
    whole = held_out_score(model, None, data.training, labels, Objective(0.0, 1.0, 1.0))
    assert seen == [data.training.numel()]
    monkeypatch.setattr(evaluate, "TOKENS_AT_ONCE", 5 * data.training.shape[1] + 1)
    pieces = held_out_score(model, None, data.training, labels, Objective(0.0, 1.0, 1.0))
    assert max(seen[1:]) == 5 * data.training.shape[1]
    assert sum(seen[1:]) == data.training.numel()
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)  # sums in another order
