"""Training from start to finish: teacher, student, attempts, and what is handed over to be saved.

A training that diverges goes back to its last checkpoint with half the learning rate; the fourth time it gives up. A
killed run goes on from the last checkpoint, with the same result as if it had not been killed.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from quantstudio.core.errors import QuantStudioError, RecipeError, TrainingDiverged
from quantstudio.core.first_layers import kept_part
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import FineTune, Qat
from quantstudio.core.run_store import WORK
from quantstudio.engine.architecture import Architecture, inspect_architecture
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.interrupt import checked
from quantstudio.engine.kernels.registry import REFERENCE as REFERENCE_KERNELS
from quantstudio.engine.load import LoadedModel, load_model
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.train.adapter import save_adapter
from quantstudio.engine.train.checkpoints import Checkpoints, TrainingState
from quantstudio.engine.train.data import Lessons, labelled
from quantstudio.engine.train.evaluate import held_out_score
from quantstudio.engine.train.fit import fit, set_recompute
from quantstudio.engine.train.follow import Follower, Judge
from quantstudio.engine.train.objective import Lesson
from quantstudio.engine.train.rivals import calibrated_rivals
from quantstudio.engine.train.settings import Settings, settle
from quantstudio.engine.train.shorten import require_same_layers
from quantstudio.engine.train.student import Student, Training, make_student
from quantstudio.engine.train.trainer import Diverged, Place, QatTrainer

if TYPE_CHECKING:
    from quantstudio.engine.data.prepared import PreparedData

ATTEMPTS = 4
"""The first, and three with half the learning rate of the one before."""
LEARNED_BELOW = 8
"""Grids with fewer bits have scales that learn."""
ADAPTER, TENSORBOARD = "adapter", "tensorboard"
"""Folders of the run: LoRA's matrices in peft's format, and TensorBoard's events."""
_PART = "trained"
_CHOSEN, _TRAINING = "chosen", "training"


@dataclass(frozen=True)
class Course:
    """Everything that an attempt needs."""

    info: ModelInfo
    plan: QuantizationPlan
    architecture: Architecture
    method: Qat | FineTune
    settings: Settings
    teacher: LoadedModel
    data: PreparedData
    run_folder: Path
    rivals: Mapping[str, Path]
    reporter: Reporter

    def student(self) -> Student:
        """A student that has learnt nothing yet."""
        settings, kept = self.settings, self.info.layers if self.info.removed_layers else 0
        training = Training(settings.lora_rank, settings.rounds, LEARNED_BELOW, settings.seed, kept)
        student = make_student(self.teacher.model, self.plan, self.architecture, training)
        student.model.to(self.teacher.device)
        return student

    def held_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels on the device."""
        device, ids = self.teacher.device, self.data.held_out
        return ids.to(device), labelled(ids, self.data.held_out_mask).to(device)


def train_weights(
    info: ModelInfo, plan: QuantizationPlan, recipe: Recipe, run_folder: Path, data: PreparedData, reporter: Reporter
) -> Chosen:
    """Train as the recipe's method (QAT or a fine-tune) says; goes on where an earlier process stopped.

    The result holds, for QAT, codes and scales of every planned matrix, and in both cases the trained values of every
    other tensor, all of the evaluation with the smallest held-out loss. Raises TrainingDiverged, OutOfMemory,
    Cancelled, and what loading a model raises.
    """
    if not isinstance(recipe.method, Qat | FineTune):
        raise RecipeError(f"The method {recipe.method.kind} does not train.", field="method.kind")
    work = run_folder / WORK
    chosen = Chosen(work / _CHOSEN)
    if chosen.has(_PART):
        return chosen
    if (kept := kept_part(info, recipe)).removed_layers:
        require_same_layers(kept)
    info = kept
    teacher = load_model(info.path, recipe.machine.device, reporter)
    settings = settle(recipe.method, info, plan, data.training.shape[1], recipe.machine.seed)
    comparable = settings.rounds and not settings.shortened
    rivals = calibrated_rivals(recipe, run_folder.parent) if comparable else {}
    course = Course(
        info, plan, inspect_architecture(info), recipe.method, settings, teacher, data, run_folder, rivals, reporter
    )
    checkpoints = Checkpoints(work / _TRAINING)
    _attempts(course, checkpoints)
    student = course.student()
    checkpoints.load_best(student.model)
    if settings.lora_rank:
        save_adapter(student, run_folder / ADAPTER, settings.lora_rank, info.name)
        reporter.artifact("adapter", str(run_folder / ADAPTER))
    chosen.put(_PART, dict(student.results()), dict(student.changed()))
    return chosen


def _attempts(course: Course, checkpoints: Checkpoints) -> None:
    state = checkpoints.read_state()
    while True:
        student = course.student()
        lesson = Lesson(
            student.model, course.teacher.model if _needs_teacher(course) else None, course.settings.objective
        )
        if not state.micro_batch:
            state = _fitted(course, lesson, state)
            checkpoints.write_state(state)
        set_recompute(lesson, state.recompute)
        check = course.reporter.check_cancel
        try:
            with checked(student.model, check), checked(course.teacher.model, check):
                _attempt(course, student, lesson, Place(course.teacher.device, state, checkpoints))
            return
        except Diverged:
            state = replace(state, halvings=state.halvings + 1)
            if state.halvings >= ATTEMPTS:
                raise _gave_up(course) from None
            checkpoints.write_state(state)
            _say_halved(course, checkpoints, state)
        del student, lesson
        gc.collect()


def _attempt(course: Course, student: Student, lesson: Lesson, place: Place) -> None:
    settings, data = course.settings, course.data
    last = place.checkpoints.last()
    if last is None:
        _reference(course)
    teacher = course.teacher.model if _needs_teacher(course) else None
    held_out = course.held_out()
    judge = Judge(
        student.model, teacher, held_out, course.teacher.tokenizer, settings, place.checkpoints, course.reporter
    )
    tokens = settings.batch * data.training.shape[1]
    follower = Follower(judge, settings, course.reporter, tokens, course.run_folder / TENSORBOARD)
    lessons = Lessons(data.training, data.training_mask, settings.steps * settings.batch, settings.seed)
    trainer = QatTrainer(lesson, lessons, settings, place, [follower])
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def _reference(course: Course) -> None:
    """What the charts compare with, on the same held-out text."""
    ids, labels = course.held_out()
    text_alone = replace(course.settings.objective, distil=0.0, cross_entropy=1.0)
    original = held_out_score(course.teacher.model, None, ids, labels, text_alone)
    course.reporter.metric("reference/original", original.perplexity)
    scores: dict[str, float] = {}
    for kind, folder in course.rivals.items():
        course.reporter.check_cancel()
        try:
            rival = load_model(folder, course.teacher.device, course.reporter, REFERENCE_KERNELS)
        except QuantStudioError as error:  # it is of no use here; the training does not depend on it
            course.reporter.log(f"{folder} is no line in the chart: {error}")
            continue
        scores[kind] = held_out_score(rival.model, None, ids, labels, text_alone).perplexity
    if scores:
        best = min(scores, key=scores.__getitem__)
        course.reporter.metric(f"reference/{best}", scores[best])


def _fitted(course: Course, lesson: Lesson, state: TrainingState) -> TrainingState:
    length = course.data.training.shape[1]
    checkpointing = course.method.gradient_checkpointing
    micro, recompute = fit(lesson, course.settings.batch, length, checkpointing, course.teacher.device)
    how = ", activations computed again to save memory" if recompute else ""
    course.reporter.log(f"Training with {micro} of {course.settings.batch} sequences at a time{how}.")
    return replace(state, micro_batch=micro, recompute=recompute)


def _needs_teacher(course: Course) -> bool:
    return course.settings.objective.distil > 0


def _say_halved(course: Course, checkpoints: Checkpoints, state: TrainingState) -> None:
    where = "from its last checkpoint" if checkpoints.last() else "from the start"
    rate = course.settings.rate * 0.5**state.halvings
    course.reporter.notice(
        f"The loss ran away. Training goes on {where} with half the learning rate ({rate:.1e}).", "warning"
    )


def _gave_up(course: Course) -> TrainingDiverged:
    return TrainingDiverged(
        "The training does not converge.",
        why=f"Its loss ran away {ATTEMPTS} times, the last time at an eighth of the learning rate.",
        hint="Set a smaller learning rate, or train on other text.",
        field="method.learning_rate",
    )
