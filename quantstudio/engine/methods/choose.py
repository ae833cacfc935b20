"""Which method chooses the integers of a run, and what it is given: text, trained weights, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.plan import QuantizationPlan
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import Gptq
from quantstudio.core.run_store import WORK
from quantstudio.engine.memory import give_back_freed_memory, importing
from quantstudio.engine.reporter import Reporter

if TYPE_CHECKING:
    from quantstudio.engine.chosen import Chosen
    from quantstudio.engine.data.prepared import PreparedData

DATA, TRAIN, CALIBRATE, FIT = "data", "train", "calibrate", "fit"
PHASES = {DATA: "Reading text", TRAIN: "Training", CALIBRATE: "Calibrating", FIT: "Fitting grids"}
_PHASES_OF = {
    "hqq": (FIT,),
    "gptq": (DATA, CALIBRATE),
    "awq": (DATA, CALIBRATE),
    "smoothquant": (DATA, CALIBRATE),
    "qat": (DATA, TRAIN),
    "finetune_gptq": (DATA, TRAIN, CALIBRATE),
}


def phases_of(recipe: Recipe) -> tuple[str, ...]:
    """The phases of a run, out of `PHASES`, that come before its model is written."""
    if recipe.begins_calibrated:
        return (DATA, CALIBRATE, TRAIN)
    return _PHASES_OF.get(recipe.method.kind, ())


def prepare_text(recipe: Recipe, folder: Path, run_folder: Path, reporter: Reporter) -> PreparedData:
    """The text that the recipe's method learns from, by the tokenizer in `folder`; kept with the run's work.

    Raises what `prepare_data` raises, and ModelUnsupported when the model has no tokenizer.
    """
    from quantstudio.engine.data.prepare import prepare_data
    from quantstudio.engine.load_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ModelUnsupported(
            "This model comes without a tokenizer, so it cannot read text.",
            hint="Use round to nearest or HQQ, which need no text, or add the tokenizer's files to the model's folder.",
            field="method",
        )
    return prepare_data(recipe.data, tokenizer, recipe.machine.seed, reporter, run_folder / WORK / DATA)


def choose_weights(
    info: ModelInfo,
    plan: QuantizationPlan,
    recipe: Recipe,
    run_folder: Path,
    data: PreparedData | None,
    enter: Callable[[str], None],
    reporter: Reporter,
) -> Chosen | None:
    """What the recipe's method chooses, in the run folder's `work`; None when weights are rounded as they are written.

    `data`: from `prepare_text`; None for methods that need none. `enter` is called with the id of each phase. Goes on
    where an earlier process was stopped, to the same bytes. Raises what the methods raise, and `Cancelled`.
    """
    kind = recipe.method.kind
    if kind == "rtn":
        return None
    if data is None:
        from quantstudio.engine.methods.hqq import choose_hqq

        enter(FIT)
        return choose_hqq(info, plan, run_folder / WORK, reporter)
    from quantstudio.engine.calibrate import choose

    trained = None
    if recipe.begins_calibrated:  # most of the loss is won back before the first step
        enter(CALIBRATE)
        gptq = recipe.model_copy(update={"method": Gptq()})
        choose(info, plan, gptq, run_folder / WORK, data.calibration, reporter)
        give_back_freed_memory()
    if kind in ("qat", "finetune_gptq"):
        with importing():
            from quantstudio.engine.train.run import train_weights

        enter(TRAIN)
        reporter.check_cancel()  # that import took seconds
        trained = train_weights(info, plan, recipe, run_folder, data, reporter)
        if kind == "qat":
            return trained
        give_back_freed_memory()
    enter(CALIBRATE)
    return choose(info, plan, recipe, run_folder / WORK, data.calibration, reporter, trained)
