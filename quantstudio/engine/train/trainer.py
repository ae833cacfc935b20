"""The transformers Trainer, told what is special here.

Its loop, optimizer, scheduler, gradient accumulation, the share of the data of each of several processes, and the
contents of checkpoints are used as they are.
Ours: the loss comes from `Lesson`; nothing runs under autocast, because the student computes in bf16 over fp32 weights
as it is; checkpoints become whole in one step; a loss that is no number, or runs away, ends the attempt.

Where several processes train (`group`), the student comes sharded (`shard` says why not by the Trainer), and the
Trainer is only told not to wrap it: it deals the batches out in order, counts the tokens of all processes, and reports
the mean of their losses. So a step learns from the same sequences, weighed the same, as on one GPU.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from quantstudio.engine.train import group
from quantstudio.engine.train.checkpoints import Checkpoints, TrainingState, load_trained, trained_tensors
from quantstudio.engine.train.data import Lessons
from quantstudio.engine.train.objective import Lesson
from quantstudio.engine.train.rates import rate_factors, rate_groups
from quantstudio.engine.train.settings import Settings
from quantstudio.engine.train.shard import load_whole_state, whole_state

_WEIGHTS_FILE = "model.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
"""Only where several processes train; else the Trainer has its own."""
_RECENT = 8
_RUNAWAY_FACTOR, _RUNAWAY_NATS = 2.0, 0.5


class Diverged(Exception):
    """The loss is no number, or far above where it began."""


@dataclass(frozen=True)
class Place:
    """Where and in which pieces a training runs."""

    device: str
    state: TrainingState
    checkpoints: Checkpoints


class QatTrainer(Trainer):
    """One attempt at a training. Raises `Diverged`."""

    optimizer: Any
    control: Any

    def __init__(
        self, lesson: Lesson, lessons: Lessons, settings: Settings, place: Place, callbacks: list[TrainerCallback]
    ) -> None:
        self._settings, self._place = settings, place
        self._factors = rate_factors(lesson.named_parameters())
        self._first: float | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT)
        if group.together():
            # How accelerate knows a model that is not to be wrapped (in DistributedDataParallel) any more.
            lesson._is_accelerate_prepared = True  # type: ignore[assignment]
        super().__init__(
            model=lesson,
            args=_arguments(settings, place),
            train_dataset=lessons,
            compute_loss_func=_unused,  # makes the Trainer count the tokens of a step
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        return SequentialSampler(self.train_dataset)  # `Lessons` has the order

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Not again: it is there, and shares must not be moved."""

    def compute_loss(  # the Trainer's signature
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over the tokens of the whole step, of which this micro-batch contributes its part."""
        # The gradients of several processes are averaged, and so are their losses in the log.
        loss = model(**inputs)[0] * group.count() / num_items_in_batch
        return (loss, None) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW without decay; what takes larger steps than weights in groups of its own."""
        if self.optimizer is None:
            rate = self.args.learning_rate
            self.optimizer = torch.optim.AdamW(
                rate_groups((model or self.model).named_parameters(), self._factors, rate),
                lr=rate,
                weight_decay=0.0,
                foreach=group.together() or None,  # for ordinary tensors torch chooses it by itself, for shares not
            )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The norm of all gradients before they were clipped; over all processes where there are several."""
        if not group.together():
            return super()._clip_grad_norm(model)
        values = [value for value in model.parameters() if value.grad is not None]
        norm: Any = nn.utils.get_total_norm([value.grad for value in values if value.grad is not None], foreach=True)
        norm = norm.full_tensor()
        nn.utils.clip_grads_with_norm_(values, self.args.max_grad_norm, norm, foreach=True)
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Callbacks do it: they know the held-out text."""
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Look at the loss before the step can be evaluated or saved. Raises `Diverged`."""
        if "loss" in logs:
            self._watch(logs["loss"], logs.get("grad_norm", 0.0))
        super().log(logs, start_time)

    def _watch(self, loss: float, norm: float) -> None:
        self._recent.append(loss)
        self._first = loss if self._first is None else self._first
        mean = sum(self._recent) / len(self._recent)
        limit = _RUNAWAY_FACTOR * self._first + _RUNAWAY_NATS
        if not (math.isfinite(loss) and math.isfinite(norm)) or (len(self._recent) == _RECENT and mean > limit):
            raise Diverged

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002
        """Only what trains, and no pickle of the arguments. Every process takes part, the first one writes."""
        folder = Path(output_dir or self.args.output_dir)
        tensors = trained_tensors(self.model)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: value.cpu() for name, value in tensors.items()}, folder / _WEIGHTS_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not group.together():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        tensors = whole_state(self.optimizer)
        if self.args.should_save:
            save_file(tensors, Path(output_dir) / _OPTIMIZER_FILE)

    def _save_rng_state(self, output_dir: str) -> None:
        # Nothing here is left to chance but the dropout of the rare model that has some. With several processes each
        # would write beside the first one, and take up memory on the GPU of every other.
        if not group.together():
            super()._save_rng_state(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(model or self.model, load_file(Path(resume_from_checkpoint) / _WEIGHTS_FILE))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            written = self._place.checkpoints.writing / f"checkpoint-{self.state.global_step}"
            self._place.checkpoints.publish(written)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take everything back but the learning rate: it may have been halved since."""
        if checkpoint is None:
            return
        scheduler: Any = self.lr_scheduler
        rates = list(scheduler.base_lrs)
        if group.together():
            # The Trainer would put all of it on every GPU.
            load_whole_state(self.optimizer, load_file(Path(checkpoint) / _OPTIMIZER_FILE))
            scheduler.last_epoch = self.state.global_step
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        scheduler.base_lrs = rates
        for part, rate, shape in zip(self.optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
            part["initial_lr"] = rate
            part["lr"] = rate * shape(scheduler.last_epoch)
        scheduler._last_lr = [part["lr"] for part in self.optimizer.param_groups]


def _unused(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("compute_loss is overridden")


def _arguments(settings: Settings, place: Place) -> TrainingArguments:
    micro = place.state.micro_batch
    on_gpu = place.device == "cuda"
    backend = "nccl" if on_gpu else "gloo"
    arguments = TrainingArguments(
        output_dir=str(place.checkpoints.writing),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, settings.batch // (micro * group.count())),
        learning_rate=settings.rate * 0.5**place.state.halvings,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
        ddp_backend=backend if group.together() else None,
        seed=settings.seed,
        data_seed=settings.seed,
    )
    # Each process uses one GPU: by itself the Trainer would spread over all there are (DataParallel), which knows
    # nothing of the teacher.
    _ = arguments.device
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments
