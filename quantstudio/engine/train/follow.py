"""What happens beside the steps: evaluations, samples, metrics, the best weights, stopping early."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from quantstudio.core.humanize import rough_seconds
from quantstudio.core.recipe_method import PRESET_STEPS
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.train import group
from quantstudio.engine.train.checkpoints import Checkpoints, trained_tensors
from quantstudio.engine.train.evaluate import PROMPT_TOKENS, SAMPLES, continuations, held_out_score, weights_shown
from quantstudio.engine.train.settings import Settings
from quantstudio.engine.train.shard import reshard

_TIMED_STEPS = 3
"""Steps that are timed, after the first, before it is said how long the training will take."""


class Judge:
    """Scores the student on held-out text and keeps it when it is the best so far.

    Where several processes train, each of them scores all of the text, because each holds a share of the weights.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        held_out: tuple[torch.Tensor, torch.Tensor],
        tokenizer: PreTrainedTokenizerBase | None,
        settings: Settings,
        checkpoints: Checkpoints,
        reporter: Reporter,
    ) -> None:
        self._student, self._teacher, self._tokenizer = student, teacher, tokenizer
        self._ids, self._labels = held_out
        self._settings, self._checkpoints, self._reporter = settings, checkpoints, reporter

    def judge(self, step: int) -> dict[str, float]:
        """Report loss, perplexity and samples of the student as it is; keep its weights if they are the best."""
        self._reporter.check_cancel()
        self._student.eval()
        # Sharded weights are gathered for every pass in any case, and kept whole they might not fit.
        with nullcontext() if group.together() else weights_shown(self._student):
            score = held_out_score(self._student, self._teacher, self._ids, self._labels, self._settings.objective)
            self._write_samples(step)
        self._reporter.metric("eval/loss", score.loss, step, "nats")
        self._reporter.metric("eval/perplexity", score.perplexity, step)
        reshard(self._student)
        best = self._checkpoints.best()
        (better,) = group.agreed(best is None or score.loss < best[1])
        if better:
            tensors = trained_tensors(self._student)
            if group.is_first():
                self._checkpoints.keep_best(tensors, step, score.loss)
        return {"eval/loss": score.loss, "eval/perplexity": score.perplexity}

    def stale_steps(self, step: int) -> int:
        """Steps since the best evaluation."""
        best = self._checkpoints.best()
        (steps,) = group.agreed(step - best[0] if best else 0)
        return int(steps)

    def _write_samples(self, step: int) -> None:
        if self._tokenizer is None:
            return
        prompts = self._ids[:SAMPLES, :PROMPT_TOKENS]
        written = continuations(self._student, prompts)
        for prompt, text in zip(prompts.tolist(), written.tolist(), strict=True):
            whole = self._tokenizer.decode([*prompt, *text], skip_special_tokens=True)
            start = self._tokenizer.decode(prompt, skip_special_tokens=True)
            self._reporter.sample(step, start, whole[len(start) :])


class Follower(TrainerCallback):
    """Turns the Trainer's events into messages, and says when to evaluate, save and stop."""

    def __init__(self, judge: Judge, settings: Settings, reporter: Reporter, tokens: int, events: Path | None) -> None:
        """`tokens`: of a step. `events`: folder for TensorBoard, when that is installed."""
        self._judge, self._settings, self._reporter, self._tokens = judge, settings, reporter, tokens
        self._write, self._close = _tensorboard(events)
        self._started = self._step_started = time.monotonic()
        self._timed: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._reporter.progress(state.global_step, self._settings.steps, "steps")
        if state.global_step == 0:
            self._report(self._judge.judge(0), 0)
        return control

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_started = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reporter.check_cancel()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        step, last = state.global_step, state.global_step >= self._settings.steps
        self._time_step(step)
        self._reporter.progress(step, self._settings.steps, "steps")
        if last or step % self._settings.evaluate_every == 0:
            control.should_evaluate = control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        seconds = self._timed[-1] if self._timed else 0.0
        values = {"train/loss": logs["loss"], "train/learning_rate": logs["learning_rate"]}
        if seconds:
            values["train/tokens_per_s"] = self._tokens / seconds
        for name, value in values.items():
            self._reporter.metric(name, value, state.global_step)
        self._report(values, state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        step, patience = state.global_step, self._settings.patience
        self._report(self._judge.judge(step), step)
        if patience and self._judge.stale_steps(step) >= patience * self._settings.evaluate_every:
            self._reporter.notice(f"Training stopped at step {step}: {patience} evaluations brought no improvement.")
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close()

    def _report(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._write(name, value, step)

    def _time_step(self, step: int) -> None:
        self._timed.append(time.monotonic() - self._step_started)
        if len(self._timed) == _TIMED_STEPS + 1:
            each = sorted(self._timed[1:])[_TIMED_STEPS // 2]
            presets = ", ".join(f"{name} {rough_seconds(each * steps)}" for name, steps in PRESET_STEPS.items())
            left = rough_seconds(each * (self._settings.steps - step))
            self._reporter.notice(f"Training takes {left} more on this machine. In all the presets take: {presets}.")


def _tensorboard(folder: Path | None) -> tuple[Callable[[str, float, int], Any], Callable[[], Any]]:
    """Functions that write a number and that finish; without TensorBoard they do nothing."""
    if folder is None:
        return (lambda name, value, step: None), (lambda: None)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return (lambda name, value, step: None), (lambda: None)
    writer = SummaryWriter(str(folder))
    return (lambda name, value, step: writer.add_scalar(name, value, step)), writer.close
