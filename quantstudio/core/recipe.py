"""The recipe: everything that decides what a run produces, as one frozen, printable value.

It is the single source of the window's forms, the command line's flags, the TOML file and the table in the docs;
`fieldspec` flattens it for them. Every field carries a title and a help text, and a test insists on it.
Levels of checking: a field (here), across fields (here), against the model (`plan`), against the machine
(`estimate`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from quantstudio.core.schemes import W4A16, W8A16, Scheme

RECIPE_VERSION = 1
STARTER = "starter"
"""The model id that means the model in the box."""

ADVANCED: dict[str, Any] = {"advanced": True}


class HeadChoice(StrEnum):
    """What becomes of the output head."""

    KEEP = "keep"
    INT8 = "int8"
    SAME = "same"


class EmbeddingChoice(StrEnum):
    """What becomes of the token embedding."""

    KEEP = "keep"
    INT8 = "int8"


class OnMisfit(StrEnum):
    """What to do with a layer whose rows the group size does not divide."""

    REFUSE = "refuse"
    KEEP = "keep"
    SMALLER = "smaller"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(_Section):
    """Which model to start from."""

    id: str = Field(
        default=STARTER,
        min_length=1,
        title="Model",
        description="'starter' for the model in the box, a folder on this machine, or the name of a model that is "
        "already in the Hugging Face cache (owner/name).",
        json_schema_extra={"editor": "model"},
    )
    revision: str = Field(
        default="",
        title="Revision",
        description="For a model from the cache: the branch, tag or commit to use. Empty means main.",
        json_schema_extra=ADVANCED,
    )


class LayersSection(_Section):
    """Which parts of the model are quantized."""

    head: HeadChoice = Field(
        default=HeadChoice.INT8,
        title="Output head",
        description="The last layer, which scores every word. In a small model it takes a third of the time of "
        "each token. int8 is nearly free of loss; 'same' uses the scheme of the other layers; 'keep' leaves bf16.",
        json_schema_extra={"labels": {"keep": "Keep in bf16", "int8": "int8", "same": "Same as the layers"}},
    )
    embedding: EmbeddingChoice = Field(
        default=EmbeddingChoice.INT8,
        title="Embedding",
        description="The table that turns words into vectors. int8 halves it with next to no loss. Where head and "
        "embedding are one matrix, both as int8 stay one.",
        json_schema_extra={"labels": {"keep": "Keep in bf16", "int8": "int8"}},
    )
    keep: tuple[str, ...] = Field(
        default=(),
        title="Layers to keep in bf16",
        description="Names or patterns of layers to leave alone, such as model.layers.0.* or *.down_proj. "
        "Sensitive layers protected here cost space and win back quality.",
        json_schema_extra=ADVANCED,
    )
    on_misfit: OnMisfit = Field(
        default=OnMisfit.REFUSE,
        title="When a group size does not fit",
        description="Some layers may have rows that the group size does not divide. 'refuse' stops before "
        "starting and names them; 'smaller' gives them the next smaller size that fits; 'keep' leaves them in bf16.",
        json_schema_extra={
            "advanced": True,
            "labels": {
                "refuse": "Stop and tell me",
                "keep": "Keep in bf16",
                "smaller": "Use a smaller group",
            },
        },
    )

    @field_validator("keep")
    @classmethod
    def _patterns_are_names(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not re.fullmatch(r"[\w.*?\[\]-]+", pattern):
                raise ValueError(f"{pattern!r} is not a layer name or pattern; use letters, digits, dots, * and ?")
        return patterns


class RoundToNearest(_Section):
    """Round every weight to the nearest point of its grid. Needs no data and takes seconds."""

    kind: Literal["rtn"] = "rtn"


class BuiltinBooks(_Section):
    """Excerpts of public-domain books that ship with the program. English prose, good for a first try."""

    kind: Literal["builtin"] = "builtin"


def _column() -> Any:
    return Field(
        default="",
        title="Text column",
        description="The column that holds the text, or a list of messages with role and content. Empty takes "
        "'messages', 'text' or 'content', or the only column of text there is.",
        json_schema_extra=ADVANCED,
    )


class FileData(_Section):
    """A file of your own: text (.txt, .md), JSON lines (.jsonl) or Parquet (.parquet)."""

    kind: Literal["file"] = "file"
    path: str = Field(
        default="",
        title="File",
        description="A file of text, JSON lines or Parquet. Text like what the model will be used for is best.",
        json_schema_extra={"editor": "file"},
    )
    column: str = _column()


class FolderData(_Section):
    """All text, JSON lines and Parquet files in a folder and the folders in it."""

    kind: Literal["folder"] = "folder"
    folder: str = Field(
        default="",
        title="Folder",
        description="A folder of text, JSON lines and Parquet files. Other files in it are left out.",
        json_schema_extra={"editor": "folder"},
    )
    column: str = _column()


class OwnPrompts(_Section):
    """Your own prompts and saved chats, laid out by the model's chat template."""

    kind: Literal["prompts"] = "prompts"
    prompts: tuple[str, ...] = Field(
        default=(), title="Prompts", description="Questions or tasks as you would type them to the model, one a line."
    )
    saved_chats: bool = Field(
        default=True, title="Saved chats", description="Use the conversations that the chat page has saved, too."
    )
    chats_folder: str = Field(
        default="",
        title="Folder of chats",
        description="Where the saved chats lie. Empty means the folder that the chat page saves to.",
        json_schema_extra={"editor": "folder", "advanced": True},
    )


class HubData(_Section):
    """A dataset on the Hugging Face Hub. Only as much of it as is used is downloaded."""

    kind: Literal["hub"] = "hub"
    dataset: str = Field(
        default="",
        title="Dataset",
        description="Name of a dataset on the Hub, such as owner/name. Its licence is shown in the preview and "
        "kept with the result. Needs the package 'datasets': pip install 'quantstudio[data]'.",
    )
    config: str = Field(
        default="",
        title="Configuration",
        description="The part of the dataset to use, where it has several. Empty takes its only or default one.",
        json_schema_extra=ADVANCED,
    )
    split: str = Field(
        default="train", min_length=1, title="Split", description="The split to read.", json_schema_extra=ADVANCED
    )
    revision: str = Field(
        default="",
        title="Revision",
        description="Branch, tag or commit of the dataset. Empty means main. The commit is recorded with the run.",
        json_schema_extra=ADVANCED,
    )
    column: str = _column()

    @field_validator("dataset")
    @classmethod
    def _dataset_is_a_name(cls, dataset: str) -> str:
        if dataset and not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", dataset):
            raise ValueError("use the dataset's name on the Hub, such as owner/name")
        return dataset


DataSource = Annotated[
    BuiltinBooks | FileData | FolderData | OwnPrompts | HubData,
    Field(discriminator="kind"),
]


class DataSection(_Section):
    """The text that calibrated methods and training learn from. Rounding to nearest needs none."""

    source: DataSource = Field(
        default=BuiltinBooks(),
        title="Text to learn from",
        description="What the methods that need text are given. It is never the text that quality is measured on.",
        json_schema_extra={
            "labels": {
                "builtin": "Books (built in)",
                "file": "A file of your own",
                "folder": "A folder of files",
                "prompts": "My prompts and chats",
                "hub": "A dataset on the Hub",
            }
        },
    )
    loss: Literal["answers", "all"] = Field(
        default="answers",
        title="Learn from",
        description="In conversations: only the answers count while training, or every word. Plain text always "
        "counts as a whole.",
        json_schema_extra={"advanced": True, "labels": {"answers": "Answers only", "all": "Every word"}},
    )
    sequence_length: int = Field(
        default=512,
        ge=32,
        le=32768,
        title="Sequence length",
        description="Tokens in each piece of text. Documents are packed one after another into pieces of this length.",
        json_schema_extra=ADVANCED,
    )
    calibration_sequences: int = Field(
        default=128,
        ge=1,
        le=65536,
        title="Calibration sequences",
        description="Pieces of text that calibrated methods look at. More are slower and a little better.",
        json_schema_extra=ADVANCED,
    )
    held_out_sequences: int = Field(
        default=64,
        ge=1,
        le=65536,
        title="Held-out sequences",
        description="Pieces of text kept apart to judge the training by. They share no passage with what is learnt "
        "from. What remains beside these and the calibration sequences is for training.",
        json_schema_extra=ADVANCED,
    )
    size_limit_mb: int = Field(
        default=16,
        ge=1,
        le=16384,
        title="Most text to read (MB)",
        description="A larger source is read from its beginning up to here. 16 MB are about 4 million tokens.",
        json_schema_extra=ADVANCED,
    )


class BuiltinText(_Section):
    """Two public-domain novels that the starter model never saw."""

    kind: Literal["builtin"] = "builtin"


class FileText(_Section):
    """A text file of your own."""

    kind: Literal["file"] = "file"
    path: str = Field(
        default="",
        title="Text file",
        description="A UTF-8 text file. What you will use the model for is the best text to judge it by.",
        json_schema_extra={"editor": "file"},
    )


EvaluationText = Annotated[BuiltinText | FileText, Field(discriminator="kind")]


class MeasureSection(_Section):
    """How the original and the result are compared."""

    enabled: bool = Field(
        default=True,
        title="Measure afterwards",
        description="Measure speed, memory and quality of the original and the result, each in a fresh process.",
    )
    text: EvaluationText = Field(
        default=BuiltinText(),
        title="Evaluation text",
        description="The text on which quality is measured.",
        json_schema_extra={"labels": {"builtin": "Two novels (built in)", "file": "A text file of your own"}},
    )
    quality_tokens: int = Field(
        default=32768,
        ge=1024,
        le=4_194_304,
        title="Tokens to evaluate",
        description="How much of the text to use. More tokens give narrower intervals and take longer.",
        json_schema_extra=ADVANCED,
    )
    window: int = Field(
        default=512,
        ge=32,
        le=32768,
        title="Window length",
        description="Tokens the model sees at once while quality is measured.",
        json_schema_extra=ADVANCED,
    )
    prompt_tokens: int = Field(
        default=512,
        ge=1,
        le=131072,
        title="Prompt length",
        description="Tokens in the prompt when the time to first token is measured.",
        json_schema_extra=ADVANCED,
    )
    decode_tokens: int = Field(
        default=64,
        ge=8,
        le=8192,
        title="Answer length",
        description="Tokens written when the decode speed is measured.",
        json_schema_extra=ADVANCED,
    )
    trials: int = Field(
        default=5,
        ge=5,
        le=100,
        title="Trials",
        description="How often each timing is repeated after a warm-up. The median is shown with its spread.",
        json_schema_extra=ADVANCED,
    )


class OutputSection(_Section):
    """Where the result goes and in what pieces."""

    name: str = Field(
        default="",
        max_length=80,
        title="Name of the run",
        description="A name for the run's folder. Empty: made from the model and the scheme.",
    )
    shard_mb: int = Field(
        default=4096,
        ge=16,
        le=65536,
        title="Largest file (MB)",
        description="Weights are split into files of at most this size.",
        json_schema_extra=ADVANCED,
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9][\w. +-]*", name):
            raise ValueError(
                "use letters, digits, spaces, dots, dashes and underscores, starting with a letter or digit"
            )
        return name


class MachineSection(_Section):
    """What the run may use of this machine."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        title="Device",
        description="auto takes the GPU when there is one.",
        json_schema_extra={
            "advanced": True,
            "labels": {"auto": "Automatic", "cpu": "CPU", "cuda": "GPU (CUDA)"},
        },
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        title="Threads",
        description="CPU threads for the work. 0 uses every physical core.",
        json_schema_extra={"advanced": True, "zero": "Every core"},
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        title="Seed",
        description="Start of every random choice, such as which text windows are used. Same seed, same result.",
        json_schema_extra=ADVANCED,
    )


Method = Annotated[RoundToNearest, Field()]


class Recipe(_Section):
    """One run: model, scheme, layers, method, data, measurement, output and machine."""

    version: Literal[1] = Field(
        default=1,
        title="Recipe version",
        description="Version of the recipe's format. Newer programs read older recipes.",
        json_schema_extra={"hidden": True},
    )
    model: ModelSection = Field(default=ModelSection(), title="Model", description="Which model to start from.")
    scheme: Scheme = Field(
        default=W4A16(),
        title="Scheme",
        description="How many bits weights and activations get.",
        json_schema_extra={
            "labels": {
                "w4a16": "int4 weights (W4A16)",
                "w4a8": "int4 weights, int8 activations (W4A8)",
                "w8a16": "int8 weights (W8A16)",
                "w8a8": "int8 weights and activations (W8A8)",
            }
        },
    )
    layers: LayersSection = Field(
        default=LayersSection(), title="Layers", description="Which parts of the model are quantized."
    )
    method: Method = Field(
        default=RoundToNearest(),
        title="Method",
        description="How the integers are chosen.",
        json_schema_extra={"labels": {"rtn": "Round to nearest"}},
    )
    data: DataSection = Field(
        default=DataSection(),
        title="Data",
        description="The text that calibrated methods and training learn from. Rounding to nearest needs none.",
    )
    measure: MeasureSection = Field(
        default=MeasureSection(), title="Measurement", description="How original and result are compared."
    )
    output: OutputSection = Field(
        default=OutputSection(), title="Output", description="Where the result goes and in what pieces."
    )
    machine: MachineSection = Field(
        default=MachineSection(), title="Machine", description="What the run may use of this machine."
    )


class Preset(StrEnum):
    """Starting points of the form. Stable ids; `PRESET_TEXTS` holds the words."""

    RECOMMENDED = "recommended"
    SMALLEST = "smallest"
    FASTEST = "fastest"
    CLOSEST = "closest"


PRESET_TEXTS: dict[Preset, tuple[str, str]] = {
    Preset.RECOMMENDED: (
        "Recommended",
        "int4 layers with groups of 128, int8 head and embedding: small, fast, close.",
    ),
    Preset.SMALLEST: (
        "Smallest",
        "int4 layers with one scale per row, int8 embedding: fewest bytes, larger loss.",
    ),
    Preset.FASTEST: ("Fastest", "int4 layers and int4 head in groups of 128: fewest bytes read per token."),
    Preset.CLOSEST: ("Closest to the original", "int8 throughout: half the size, hardly any loss."),
}


def preset_recipe(preset: Preset, model: ModelSection | None = None) -> Recipe:
    """The recipe that a preset stands for."""
    model = model or ModelSection()
    match preset:
        case Preset.RECOMMENDED:
            return Recipe(model=model)
        case Preset.SMALLEST:
            same = LayersSection(head=HeadChoice.INT8, embedding=EmbeddingChoice.INT8)
            return Recipe(model=model, scheme=W4A16(group_size="channel"), layers=same)
        case Preset.FASTEST:
            return Recipe(
                model=model,
                scheme=W4A16(group_size=128),
                layers=LayersSection(head=HeadChoice.SAME, embedding=EmbeddingChoice.INT8),
            )
        case Preset.CLOSEST:
            return Recipe(model=model, scheme=W8A16())
