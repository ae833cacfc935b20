"""Training from start to finish: teacher, student, attempts, and what is handed over to be saved.

A training that diverges goes back to its last checkpoint with half the learning rate; the fourth time it gives up. A
killed run goes on from the last checkpoint, with the same result as if it had not been killed.

On several GPUs every process does what is done here, step by step together (`group`); the first of them is the one that
was asked for the training, and alone reports and writes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from quantstudio.core.errors import QuantStudioError, RecipeError, TrainingDiverged
from quantstudio.core.first_layers import kept_part
from quantstudio.core.humanize import human_bytes
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.plan import QuantizationPlan, make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import LEARNED_BELOW, FineTune, Qat
from quantstudio.core.run_store import WORK
from quantstudio.engine.architecture import Architecture, inspect_architecture
from quantstudio.engine.calibrate import CHOSEN as CALIBRATED
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.interrupt import checked
from quantstudio.engine.kernels.registry import REFERENCE as REFERENCE_KERNELS
from quantstudio.engine.load import LoadedModel, load_model, resolve_device
from quantstudio.engine.reporter import Reporter, silent
from quantstudio.engine.train import group
from quantstudio.engine.train.adapter import save_adapter
from quantstudio.engine.train.checkpoints import Checkpoints, TrainingState
from quantstudio.engine.train.compiled import compiled
from quantstudio.engine.train.crew import Task, crew, gpus_of
from quantstudio.engine.train.data import Lessons, Passages, labelled
from quantstudio.engine.train.evaluate import held_out_score, weights_shown
from quantstudio.engine.train.fit import fit, set_recompute
from quantstudio.engine.train.follow import Follower, Judge
from quantstudio.engine.train.group import Seat, joined, open_store
from quantstudio.engine.train.loss import Objective
from quantstudio.engine.train.objective import Lesson
from quantstudio.engine.train.rivals import calibrated_rivals
from quantstudio.engine.train.settings import Settings, settle
from quantstudio.engine.train.shard import shard
from quantstudio.engine.train.shorten import require_same_layers
from quantstudio.engine.train.student import Student, Training, make_student
from quantstudio.engine.train.trainer import Diverged, Place, QatTrainer

if TYPE_CHECKING:
    from quantstudio.engine.data.prepared import PreparedData

ATTEMPTS = 4
"""The first, and three with half the learning rate of the one before."""
ADAPTER, TENSORBOARD = "adapter", "tensorboard"
"""Folders of the run: LoRA's matrices in peft's format, and TensorBoard's events."""
_PART = "trained"
_CHOSEN, _TRAINING = "chosen", "training"
_PASSAGES = "passages.safetensors"


@dataclass(frozen=True)
class Order:
    """What is to be trained on what."""

    info: ModelInfo
    """Of the whole model, also where only its first layers are trained."""
    plan: QuantizationPlan
    recipe: Recipe
    run_folder: Path
    passages: Passages

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.run_folder / WORK / _TRAINING)


@dataclass(frozen=True)
class Course:
    """Everything that an attempt needs."""

    info: ModelInfo
    plan: QuantizationPlan
    architecture: Architecture
    method: Qat | FineTune
    settings: Settings
    teacher: LoadedModel
    data: Passages
    run_folder: Path
    rivals: Mapping[str, Path]
    reporter: Reporter
    check: Callable[[], None]
    """Asked before each layer of every pass; raises what ends the training."""
    begin: Chosen | None
    """What GPTQ chose, where the student starts from that."""
    compile: bool
    """Whether the person asked for torch.compile."""

    def student(self) -> Student:
        """A student that has learnt nothing yet, on the codes that it begins with."""
        student = self.rounded_student()
        if self.begin:
            student.begin_at(self.begin)
        return student

    def rounded_student(self) -> Student:
        """A student on the codes of rounding to nearest, or, for a plain fine-tune, on none."""
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
    info: ModelInfo,
    plan: QuantizationPlan,
    recipe: Recipe,
    run_folder: Path,
    data: PreparedData,
    reporter: Reporter,
    processes: int = 0,
) -> Chosen:
    """Train as the recipe's method (QAT or a fine-tune) says; goes on where an earlier process stopped.

    QAT starts from what GPTQ chose, where that lies in the run's work (`calibrate.choose`), else from rounding.
    `processes`: 0 for one on each GPU that the recipe asks for; tests set it, since several can train on a CPU, too.

    The result holds, for QAT, codes and scales of every planned matrix, and in both cases the trained values of every
    other tensor, all of the evaluation with the smallest held-out loss. Raises TrainingDiverged, OutOfMemory,
    Cancelled, and what loading a model raises.
    """
    work = run_folder / WORK
    chosen = Chosen(work / _CHOSEN)
    if chosen.has(_PART):
        return chosen
    if (kept := kept_part(info, recipe)).removed_layers:
        require_same_layers(kept)
    passages = Passages(data.training, data.training_mask, data.held_out, data.held_out_mask)
    order = Order(info, plan, recipe, run_folder, passages)
    count = processes or gpus_of(recipe.machine)
    checkpoints = order.checkpoints()
    checkpoints.tidy()
    if count == 1:
        course = _course(order, reporter, reporter.check_cancel, count)
        _attempts(course, checkpoints)
    else:
        course = _trained_together(order, reporter, count)
    student = course.student()
    checkpoints.load_best(student.model)
    if course.settings.lora_rank:
        save_adapter(student, run_folder / ADAPTER, course.settings.lora_rank, info.name)
        reporter.artifact("adapter", str(run_folder / ADAPTER))
    chosen.put(_PART, dict(student.results()), dict(student.changed()))
    return chosen


def take_part(task: Task, ready: Callable[[], None]) -> None:
    """In another process than the first: train with it until it has what it wants. `ready` is called before joining.

    Raises TrainingDiverged, and RuntimeError when another process goes away.
    """
    seat, info = task.seat, read_model_info(Path(task.model))
    if seat.device == "cuda":
        torch.cuda.set_device(seat.rank)
    plan, passages = make_plan(info, task.recipe), Passages.load(Path(task.passages))
    order = Order(info, plan, task.recipe, Path(task.run_folder), passages)
    course = _course(order, silent(), lambda: None, seat.count)
    ready()
    with joined(seat):
        _attempts(course, order.checkpoints())


def _trained_together(order: Order, reporter: Reporter, count: int) -> Course:
    """Train with `count` - 1 processes beside this one, which are gone afterwards."""
    store, recipe, folder = open_store(count), order.recipe, order.run_folder
    seat = Seat(rank=0, count=count, port=store.port, device=resolve_device(recipe.machine.device))
    file = folder / WORK / _TRAINING / _PASSAGES
    order.passages.save(file)
    task = Task(seat=seat, model=str(order.info.path), recipe=recipe, run_folder=str(folder), passages=str(file))
    try:
        with crew(task, reporter) as others:
            course = _course(order, reporter, others.check, count)
            others.wait_until_ready()
            with joined(seat, store):
                _attempts(course, order.checkpoints())
            return course
    finally:
        with suppress(OSError):
            file.unlink()


def _course(order: Order, reporter: Reporter, check: Callable[[], None], gpus: int) -> Course:
    recipe, run_folder, method = order.recipe, order.run_folder, order.recipe.method
    if not isinstance(method, Qat | FineTune):
        raise RecipeError(f"The method {method.kind} does not train.", field="method.kind")
    info = kept_part(order.info, recipe)
    settings = settle(method, info, order.plan, order.passages.training.shape[1], recipe.machine.seed, gpus)
    begin = _beginning(recipe, run_folder / WORK)
    comparable = settings.rounds and not settings.shortened and begin is None
    return Course(
        info=info,
        plan=order.plan,
        architecture=inspect_architecture(info),
        method=method,
        settings=settings,
        teacher=load_model(info.path, recipe.machine.device, reporter),
        data=order.passages,
        run_folder=run_folder,
        rivals=calibrated_rivals(recipe, run_folder.parent) if comparable else {},
        reporter=reporter,
        check=check,
        begin=begin,
        compile=recipe.machine.compile,
    )


def _beginning(recipe: Recipe, work: Path) -> Chosen | None:
    return Chosen(work / CALIBRATED) if recipe.begins_calibrated and (work / CALIBRATED).is_dir() else None


def _attempts(course: Course, checkpoints: Checkpoints) -> None:
    state = checkpoints.read_state()
    while True:
        state = _agreed(state)
        student = course.student()
        if group.together():
            shard(student.model, course.teacher.device)
        lesson = Lesson(
            student.model, course.teacher.model if _needs_teacher(course) else None, course.settings.objective
        )
        if not state.micro_batch:
            state = _fitted(course, lesson, state)
            _remember(checkpoints, state)
        set_recompute(lesson, state.recompute)
        try:
            with checked(student.model, course.check), checked(course.teacher.model, course.check):
                _attempt(course, student, lesson, Place(course.teacher.device, state, checkpoints))
            _say_memory(course)
            return
        except Diverged:
            group.meet()  # a loss that is no number may as well be a process that is gone
            state = replace(state, halvings=state.halvings + 1)
            if state.halvings >= ATTEMPTS:
                raise _gave_up(course) from None
            _remember(checkpoints, state)
            _say_halved(course, checkpoints, state)
        del student, lesson
        gc.collect()


def _agreed(state: TrainingState) -> TrainingState:
    """The first process's state, which alone has read and written it in due time."""
    micro, recompute, halvings = group.agreed(*astuple(state))
    return TrainingState(int(micro), bool(recompute), int(halvings))


def _remember(checkpoints: Checkpoints, state: TrainingState) -> None:
    if group.is_first():
        checkpoints.write_state(state)


def _attempt(course: Course, student: Student, lesson: Lesson, place: Place) -> None:
    settings, data = course.settings, course.data
    last = place.checkpoints.last()
    if not any(group.agreed(last is not None)):
        last = None
        if group.is_first():
            _reference(course)
    teacher = course.teacher.model if _needs_teacher(course) else None
    held_out = course.held_out()
    judge = Judge(
        student.model, teacher, held_out, course.teacher.tokenizer, settings, place.checkpoints, course.reporter
    )
    tokens = settings.batch * data.training.shape[1]
    events = course.run_folder / TENSORBOARD if group.is_first() else None
    follower = Follower(judge, settings, course.reporter, tokens, events)
    lessons = Lessons(data.training, data.training_mask, settings.steps * settings.batch, settings.seed)
    trainer = QatTrainer(lesson, lessons, settings, place, [follower])
    length = data.training.shape[1]
    ways = compiled(lesson, teacher, length, place, course.reporter, course.check) if course.compile else nullcontext()
    with ways:
        trainer.train(resume_from_checkpoint=str(last) if last else None)


def _reference(course: Course) -> None:
    """What the charts compare with, on the same held-out text."""
    ids, labels = course.held_out()
    text_alone = replace(course.settings.objective, distil=0.0, cross_entropy=1.0)
    original = held_out_score(course.teacher.model, None, ids, labels, text_alone)
    course.reporter.metric("reference/original", original.perplexity)
    if course.settings.rounds and not course.settings.shortened:
        _starts(course, ids, labels, text_alone)
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


def _starts(course: Course, ids: torch.Tensor, labels: torch.Tensor, text_alone: Objective) -> None:
    """The lines of rounding to nearest and, where training starts there, of GPTQ."""
    student = course.rounded_student()
    course.reporter.metric("reference/rtn", _shown_perplexity(student, ids, labels, text_alone))
    if course.begin:
        student.begin_at(course.begin)
        course.reporter.metric("reference/gptq", _shown_perplexity(student, ids, labels, text_alone))
    del student
    gc.collect()


def _shown_perplexity(student: Student, ids: torch.Tensor, labels: torch.Tensor, text_alone: Objective) -> float:
    student.model.eval()
    with weights_shown(student.model):
        return held_out_score(student.model, None, ids, labels, text_alone).perplexity


def _fitted(course: Course, lesson: Lesson, state: TrainingState) -> TrainingState:
    length = course.data.training.shape[1]
    checkpointing = course.method.gradient_checkpointing
    share = course.settings.batch // group.count()
    micro, recompute = fit(lesson, share, length, checkpointing, course.teacher.device)
    how = ", activations computed again to save memory" if recompute else ""
    spread = f" on each of {group.count()} GPUs" if group.together() else ""
    course.reporter.log(f"Training with {micro} of {course.settings.batch} sequences at a time{spread}{how}.")
    return replace(state, micro_batch=micro, recompute=recompute)


def _needs_teacher(course: Course) -> bool:
    return course.settings.objective.distil > 0


def _say_halved(course: Course, checkpoints: Checkpoints, state: TrainingState) -> None:
    where = "from its last checkpoint" if checkpoints.last() else "from the start"
    rate = course.settings.rate * 0.5**state.halvings
    course.reporter.notice(
        f"The loss ran away. Training goes on {where} with half the learning rate ({rate:.1e}).", "warning"
    )


def _say_memory(course: Course) -> None:
    if group.together() and course.teacher.device == "cuda":
        (peak,) = group.largest(torch.cuda.max_memory_allocated())
        course.reporter.log(f"Of {group.count()} GPUs the fullest held {human_bytes(int(peak))} at its peak.")


def _gave_up(course: Course) -> TrainingDiverged:
    return TrainingDiverged(
        "The training does not converge.",
        why=f"Its loss ran away {ATTEMPTS} times, the last time at an eighth of the learning rate.",
        hint="Set a smaller learning rate, or train on other text.",
        field="method.learning_rate",
    )
