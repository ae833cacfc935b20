"""Everything that can go wrong on purpose, in a person's words.

Each error says what happened, why, and what to try. Library exceptions are translated into these once, at the
border of the process that met them; whoever shows an error needs no other text.
"""

from __future__ import annotations


class QuantStudioError(Exception):
    """Base of all errors that a person is meant to read.

    `kind` is a stable id (it travels in messages and is stored in run folders); the texts are for people.
    """

    kind = "error"

    def __init__(self, what: str, *, why: str = "", hint: str = "", field: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.field = field
        """Dotted path of the recipe field that causes it, or empty."""

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.hint) if part)


class RecipeError(QuantStudioError):
    """The recipe cannot be read, or asks for something that does not exist."""

    kind = "recipe"


class RecipeTooNew(RecipeError):
    """The recipe was written by a newer version of this program."""

    kind = "recipe_too_new"


class ModelNotFound(QuantStudioError):
    """There is no model where the recipe points."""

    kind = "model_not_found"


class ModelDamaged(QuantStudioError):
    """A model folder is incomplete or its files contradict each other."""

    kind = "model_damaged"


class ModelUnsafe(QuantStudioError):
    """A model folder asks for something that a model has no business asking."""

    kind = "model_unsafe"


class ModelUnsupported(QuantStudioError):
    """The model is whole, but nothing in it can be done as asked (unknown architecture, already quantized …)."""

    kind = "model_unsupported"


class LayerMisfit(QuantStudioError):
    """A group size does not divide some layers and the recipe says to refuse."""

    kind = "layer_misfit"


class BadWeights(QuantStudioError):
    """A weight holds NaN or infinity."""

    kind = "bad_weights"


class TrainingDiverged(QuantStudioError):
    """A training's loss runs away again and again, whatever the learning rate."""

    kind = "training_diverged"


class PromptTooLong(QuantStudioError):
    """A text has more tokens than the model can read at once."""

    kind = "prompt_too_long"


class DiskProblem(QuantStudioError):
    """The disk is too small, full, or not writable."""

    kind = "disk"


class OutOfMemory(QuantStudioError):
    """This machine's or GPU's memory does not suffice."""

    kind = "out_of_memory"


class RunBusy(QuantStudioError):
    """Another window or process works on the same run."""

    kind = "run_busy"


class RunNotFound(QuantStudioError):
    """There is no such run, or its folder cannot be read."""

    kind = "run_not_found"


class Offline(QuantStudioError):
    """The network is switched off, and what was asked for is not on this machine."""

    kind = "offline"


class HubUnreachable(QuantStudioError):
    """The Hub cannot be reached, does not answer, or keeps breaking off."""

    kind = "hub_unreachable"


class HubRefused(QuantStudioError):
    """The Hub answered, and the answer is no: not found, or not allowed."""

    kind = "hub_refused"


class AccessNeeded(HubRefused):
    """The model is gated or private; the person must sign in or accept its licence first."""

    kind = "access_needed"


class HubAnswerUnusable(QuantStudioError):
    """The Hub's answer cannot be trusted: hostile names, wrong checksums, contents that change under our hands."""

    kind = "hub_answer"


class PicklesOnly(QuantStudioError):
    """The weights exist only as pickles, and nobody has agreed to convert them."""

    kind = "pickles_only"


class DataUnusable(QuantStudioError):
    """The text to learn from is missing, too short, or not what it should be."""

    kind = "data"


class PackageMissing(QuantStudioError):
    """What was asked for needs a Python package that is not installed."""

    kind = "package_missing"


class WorkerLost(QuantStudioError):
    """The process that did the work ended without saying how."""

    kind = "worker_lost"


class ProtocolMismatch(QuantStudioError):
    """Window and worker come from different versions."""

    kind = "protocol"


class Cancelled(Exception):
    """The person asked to stop. Not an error: it ends a job as `cancelled`."""
