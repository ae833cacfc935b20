"""The recipe's data section: what text calibrated methods and training learn from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from quantstudio.core.section import ADVANCED, Section


class BuiltinBooks(Section):
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


class FileData(Section):
    """A file of your own: text (.txt, .md), JSON lines (.jsonl) or Parquet (.parquet)."""

    kind: Literal["file"] = "file"
    path: str = Field(
        default="",
        title="File",
        description="A file of text, JSON lines or Parquet. Text like what the model will be used for is best.",
        json_schema_extra={"editor": "file"},
    )
    column: str = _column()


class FolderData(Section):
    """All text, JSON lines and Parquet files in a folder and the folders in it."""

    kind: Literal["folder"] = "folder"
    folder: str = Field(
        default="",
        title="Folder",
        description="A folder of text, JSON lines and Parquet files. Other files in it are left out.",
        json_schema_extra={"editor": "folder"},
    )
    column: str = _column()


class OwnPrompts(Section):
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


class HubData(Section):
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


class DataSection(Section):
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
        title="What counts",
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
