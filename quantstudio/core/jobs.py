"""The jobs that a worker can be asked to do, as plain data that travels in the `start` command."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError

from quantstudio.core.contest import QUANTIZED, Contestant
from quantstudio.core.errors import RecipeError
from quantstudio.core.hub import ModelId, Revision, SearchQuery
from quantstudio.core.recipe import MachineSection, MeasureSection, Recipe
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.section import Plain


class RunJob(Plain):
    """Carry out a recipe in a new run folder (or one that waits in the queue)."""

    kind: Literal["run"] = "run"
    recipe: Recipe
    run_folder: str
    """Absolute path of the run's folder; created when it does not exist."""


class MeasureJob(Plain):
    """Measure one model folder by itself."""

    kind: Literal["measure"] = "measure"
    model: str
    measure: MeasureSection = MeasureSection()
    machine: MachineSection = MachineSection()


class ChatJob(Plain):
    """Load a model and answer `generate` commands until cancelled."""

    kind: Literal["chat"] = "chat"
    model: str
    machine: MachineSection = MachineSection()


class SearchJob(Plain):
    """Ask the Hub for one page of models. Result: `hub.SearchPage`."""

    kind: Literal["search"] = "search"
    query: SearchQuery = Field(default_factory=SearchQuery)


class DetailsJob(Plain):
    """Look at one model of the Hub without downloading its weights. Result: `hub.ModelDetails`."""

    kind: Literal["details"] = "details"
    model: ModelId
    revision: Revision = ""
    """Branch, tag or commit; empty: `main`."""


class DownloadJob(Plain):
    """Bring one model into the Hugging Face cache, whole and verified. Result: `hub.DownloadResult`.

    Cancelling is pausing: what was fetched stays, and the same job fetches the rest.
    """

    kind: Literal["download"] = "download"
    model: ModelId
    revision: Revision = ""
    allow_pickles: bool = False
    """The person agreed that weights which exist only as pickles are fetched and converted."""
    output_bytes: int = Field(default=0, ge=0)
    """Room that must be left on the disk for what is to be made from the model."""


class VerifyJob(Plain):
    """Compare every file of a model with its checksum. Result: `hub.VerifyResult`."""

    kind: Literal["verify"] = "verify"
    model: str
    """`owner/name` of a model in the cache, or a folder."""
    revision: Revision = ""


class RemoveJob(Plain):
    """Delete a model of the Hugging Face cache. Result: `hub.RemoveResult`."""

    kind: Literal["remove"] = "remove"
    model: ModelId
    revision: Revision = ""
    """Branch, tag or commit; empty: all of them, and what was left of broken downloads."""


class AccountJob(Plain):
    """Sign in to the Hub, sign out, or look who is signed in. Result: `hub.Account`.

    The token travels to the worker in this job, through a pipe, and from there to the Hub and its own store only.
    """

    kind: Literal["account"] = "account"
    action: Literal["sign_in", "sign_out", "look"] = "look"
    token: str = Field(default="", max_length=4096, repr=False)
    """For `sign_in`."""


class SensitivityJob(Plain):
    """Measure what few bits cost each layer of a model. Result: `sensitivity.Sensitivity`.

    Scheme, layers, method, data and machine are the recipe's; its precision section says nothing here.
    """

    kind: Literal["sensitivity"] = "sensitivity"
    model: str
    """`starter`, a model folder, or `owner/name` of a model in the cache."""
    recipe: Recipe


class ContestJob(Plain):
    """Make a model of the same size in every way there is, and compare them. Result: `contest.Contest`.

    The recipe says everything but the method; of its method section, what the methods have in common is taken over.
    """

    kind: Literal["contest"] = "contest"
    recipe: Recipe
    folder: str
    """Absolute path of the folder of runs in which each contestant gets a run of its own."""
    contestants: tuple[Contestant, ...] = QUANTIZED
    """Who takes part beside the original."""


class PreviewDataJob(Plain):
    """Show what a model would learn from. Result: `data_preview.DataPreview`."""

    kind: Literal["preview_data"] = "preview_data"
    model: str
    """Whose tokenizer and chat template: `starter`, a folder, or `owner/name` of a model in the cache."""
    data: DataSection = Field(default_factory=DataSection)
    seed: int = Field(default=0, ge=0)


HubJob = SearchJob | DetailsJob | DownloadJob | VerifyJob | RemoveJob | AccountJob
AnyJob = RunJob | MeasureJob | ChatJob | PreviewDataJob | SensitivityJob | ContestJob | HubJob
_JOBS: dict[str, type[AnyJob]] = {cls.model_fields["kind"].default: cls for cls in get_args(AnyJob)}


class Sampling(Plain):
    """How the next token is picked. Temperature 0 is greedy."""

    temperature: float = Field(
        default=0.7,
        ge=0,
        le=5,
        title="Temperature",
        description="0 always takes the likeliest word; higher values wander.",
    )
    top_k: int = Field(
        default=50,
        ge=0,
        le=1_000_000,
        title="Top-k",
        description="Only the k likeliest words are considered. 0: all.",
    )
    top_p: float = Field(
        default=0.95,
        gt=0,
        le=1,
        title="Top-p",
        description="Only the likeliest words that together reach this probability are considered.",
    )
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        title="Min-p",
        description="Only words at least this share as likely as the likeliest are considered. 0: all.",
    )
    repetition_penalty: float = Field(
        default=1.1,
        ge=0.5,
        le=2,
        title="Repetition penalty",
        description="Above 1, words already used become less likely.",
    )
    max_tokens: int = Field(
        default=256,
        ge=1,
        le=32768,
        title="Longest answer",
        description="The answer stops after this many tokens.",
    )
    stop: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        max_length=16,
        title="Stop texts",
        description="The answer ends before any of these texts. \\n stands for a line break.",
    )
    seed: int | None = Field(
        default=None,
        title="Seed",
        description="Same seed, same answer: the whole conversation is then read anew each time. "
        "Empty: a new seed each time.",
    )


class ChatMessage(Plain):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(Plain):
    """Payload of `generate`. With `template` the chat template is applied; without, the last content is continued."""

    messages: tuple[ChatMessage, ...]
    template: bool = True
    sampling: Sampling = Field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Turn:
    """A request on its way to the engine, with the means to stop its answer alone."""

    request: ChatRequest
    stop: threading.Event = field(default_factory=threading.Event)


def parse_job(data: object) -> AnyJob:
    """Check the payload of a `start` command. Raises RecipeError.

    Only what this job is made of is built: building all jobs took a third of what a question to the Hub takes here.
    """
    what = "The worker was asked for a job that it does not know."
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in _JOBS:
        raise RecipeError(what, why="Its kind is none of those that there are.")
    try:
        return _JOBS[kind].model_validate(data)
    except ValidationError as error:
        # Not the error's own text, which repeats what was sent: that may be a token.
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False))
        raise RecipeError(what, why=f"{'; '.join(faults)}.") from None
