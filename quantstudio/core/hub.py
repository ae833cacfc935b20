"""What is known of models on the Hugging Face Hub: plain data that travels between worker and window.

Everything here was checked where it came in (`engine.hub`): names are safe to show and to use as file names, numbers
are finite, texts are capped. Sizes are bytes, counts are numbers of weights.
"""

from __future__ import annotations

import base64
import zlib
from enum import StrEnum
from functools import cache
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter

from quantstudio.core import protocol
from quantstudio.core.model_info import ModelInfo
from quantstudio.core.section import Plain

MODEL_ID = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}"
"""`owner/name`, as the Hub allows it."""
REVISION = r"[A-Za-z0-9_][\w./-]{0,199}"
"""A branch, a tag or a commit. Two dots in a row are refused where a revision is used."""

ModelId = Annotated[str, StringConstraints(pattern=f"^{MODEL_ID}$")]
Revision = Annotated[str, StringConstraints(pattern=f"^({REVISION})?$")]


class Sort(StrEnum):
    """The order of search results, largest or newest first."""

    TRENDING = "trending"
    DOWNLOADS = "downloads"
    LIKES = "likes"
    MODIFIED = "modified"
    CREATED = "created"


class SearchQuery(Plain):
    """What to look for among the Hub's text models with safetensors weights. Empty fields do not filter."""

    text: str = Field(default="", max_length=200)
    author: str = Field(default="", max_length=96)
    min_parameters: int | None = Field(default=None, ge=0)
    max_parameters: int | None = Field(default=None, ge=0)
    licence: str = Field(default="", max_length=60)
    """The Hub's short name, such as `apache-2.0`."""
    gated: bool | None = None
    """True: only models that must be asked for; False: only those that need not."""
    family: str = Field(default="", max_length=60)
    """Architecture family as config.json names it (`model_type`), such as `qwen2`."""
    sort: Sort = Sort.TRENDING
    limit: int = Field(default=30, ge=1, le=100)
    cursor: str = Field(default="", max_length=2000)
    """Where the page starts: `SearchPage.next_cursor` of the page before."""


class ModelSummary(Plain):
    """One row of a list of models."""

    id: str
    parameters: int | None = None
    """Number of weights as the Hub counts them; None when it does not say."""
    dtype: str = ""
    """Dtype of most weights, as safetensors writes it ("BF16")."""
    download_bytes: int | None = None
    """Size of the weights, from parameters and dtypes; the exact number is in the details."""
    licence: str = ""
    gated: bool = False
    private: bool = False
    family: str = ""
    architecture: str = ""
    quantized: str = ""
    """How it is quantized already ("gptq", "awq" …), or empty."""
    downloads: int = 0
    """In the last 30 days."""
    likes: int = 0
    modified: str = ""
    """Date and time of the last change, ISO 8601, UTC; empty when unknown."""


class SearchPage(Plain):
    """One page of search results. `next_cursor` is empty on the last one."""

    models: tuple[ModelSummary, ...] = ()
    next_cursor: str = ""
    dropped: int = 0
    """Results that were left out because their names are none that the Hub allows."""


class HubFile(Plain):
    """A file of a repository at one commit."""

    path: str
    size: int = Field(ge=0)
    sha256: str = ""
    """Of the contents; empty for small files, which the Hub keeps in git."""
    git_sha1: str = ""
    """Of the contents with git's header; for files that git keeps itself."""
    needed: bool = False
    """Whether a download fetches it."""
    present: bool = False
    """Whether its contents are on this machine already."""

    @property
    def blob(self) -> str:
        """The checksum under which the Hugging Face cache keeps the contents."""
        return self.sha256 or self.git_sha1


class Access(StrEnum):
    """Whether this person may download a model."""

    OPEN = "open"
    GRANTED = "granted"
    """Gated or private, and the token that is signed in may read it."""
    SIGN_IN = "sign_in"
    """Gated or private, and nobody is signed in."""
    ASK = "ask"
    """Gated, somebody is signed in, and the licence was not accepted or the request is not answered."""


class PartSize(Plain):
    """One part of a model: embedding, layers, head, other."""

    part: str
    parameters: int
    nbytes: int


class LayerKind(Plain):
    """Weight matrices of the same kind and width, and the group sizes that fit all of them."""

    name: str
    """Last part of the module's name, such as `q_proj`."""
    count: int
    rows: int
    columns: int
    group_sizes: tuple[int, ...] = ()
    quantizable: bool = True
    why_not: str = ""


class SchemeSize(Plain):
    """What the model weighs on disk after one scheme, with the usual choices for head and embedding, and smaller groups
    in layers that the usual ones do not divide."""

    kind: str
    """Kind of the scheme in a recipe, such as `w4a16`."""
    label: str
    nbytes: int
    problem: str = ""
    """What is to be known about it, such as layers that get smaller groups; or why it cannot be done."""


class ModelDetails(Plain):
    """All that can be known of a model before its weights are downloaded."""

    summary: ModelSummary
    commit: str
    """The commit that was looked at, 40 hex digits; a download of this revision fetches the same bytes."""
    revision: str = "main"
    files: tuple[HubFile, ...] = ()
    download_bytes: int = 0
    """What a download would fetch: needed files that are not on this machine yet."""
    total_bytes: int = 0
    """Size of all needed files."""
    access: Access = Access.OPEN
    page: str = ""
    """Address of the model's page, where a licence can be accepted."""
    base_model: str = ""
    licence_text: str = ""
    card: str = ""
    """The model card, Markdown without its front matter. A stranger's text: show it without images and scripts."""
    context_length: int = 0
    pickle_only: bool = False
    """Weights only as pickles: a download must be allowed to convert them."""
    problem: str = ""
    """Why the model cannot be used, in a person's words; the numbers below are then missing."""
    notes: tuple[str, ...] = ()
    """What is worth knowing, such as Python code in the repository that will not be run."""
    parts: tuple[PartSize, ...] = ()
    layer_kinds: tuple[LayerKind, ...] = ()
    schemes: tuple[SchemeSize, ...] = ()
    quantizations: tuple[ModelSummary, ...] = ()
    """Quantized versions that others have published."""
    packed_info: str = ""
    """The model's `ModelInfo`, compressed, as `model_info` reads it; empty when there is a problem."""

    def model_info(self) -> ModelInfo | None:
        """The same value that is read from a folder on disk, for plans and estimates; None when there is a problem."""
        return unpack_info(self.packed_info) if self.packed_info else None


class TransferStage(StrEnum):
    """What a download is doing."""

    LOOKING = "looking"
    FETCHING = "fetching"
    WAITING = "waiting"
    """The connection failed; it is tried again after a while."""
    VERIFYING = "verifying"
    CONVERTING = "converting"
    DONE = "done"


class DownloadState(Plain):
    """Where a download stands; made from the `transfer` messages of its worker."""

    stage: TransferStage = TransferStage.LOOKING
    file: str = ""
    file_done: int = 0
    file_total: int = 0
    done: int = 0
    total: int = 0
    files_done: int = 0
    files_total: int = 0
    bytes_per_s: float = 0.0
    """Over the last seconds."""
    eta_s: float | None = None
    detail: str = ""
    """While waiting: what failed, and when it is tried again."""

    @staticmethod
    def of(message: protocol.Transfer) -> DownloadState:
        """The state that a message tells. A stage that this version does not know counts as fetching."""
        known = {stage.value for stage in TransferStage}
        return DownloadState(
            stage=TransferStage(message.stage) if message.stage in known else TransferStage.FETCHING,
            **{name: getattr(message, name) for name in DownloadState.model_fields if name != "stage"},
        )


class DownloadResult(Plain):
    """A model that is on this machine, whole and verified."""

    model: str
    commit: str
    folder: str
    nbytes: int
    """Size of all its files."""
    fetched_bytes: int = 0
    """What came over the network, repeated pieces included."""
    reused_bytes: int = 0
    """What was on this machine already, partial files of an earlier try included."""
    converted: bool = False
    """Whether pickles were converted to safetensors."""


class FileProblem(Plain):
    """A file of a model that is not what it should be."""

    file: str
    problem: str


class VerifyResult(Plain):
    """What a look at every byte of a model has found."""

    model: str
    folder: str
    files: int
    nbytes: int
    problems: tuple[FileProblem, ...] = ()
    unchecked: tuple[str, ...] = ()
    """Files without a known checksum: only their structure was checked."""

    @property
    def whole(self) -> bool:
        return not self.problems


class RemoveResult(Plain):
    """What a removal has freed. Files that other revisions share stay."""

    model: str
    revisions: tuple[str, ...]
    freed_bytes: int


class Account(Plain):
    """Who is signed in to the Hub on this machine; an empty name for nobody."""

    name: str = ""
    from_environment: bool = False
    """The token comes from the variable HF_TOKEN, which signing out does not change."""


MAX_INFO_BYTES = 256 << 20


def pack_info(info: ModelInfo) -> str:
    """A `ModelInfo` as text that fits a message: a model of 90,000 tensors has 15 MB of JSON, and 1 MB packed."""
    return base64.b85encode(zlib.compress(_adapter().dump_json(info), 6)).decode("ascii")


def unpack_info(text: str) -> ModelInfo:
    """The reverse of `pack_info`. Raises ValueError for anything else."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b85decode(text), MAX_INFO_BYTES)
    except zlib.error as error:
        raise ValueError("this is no packed model description") from error
    return _adapter().validate_json(data)


@cache
def _adapter() -> TypeAdapter[ModelInfo]:
    return TypeAdapter(ModelInfo)
