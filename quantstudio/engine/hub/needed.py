"""Which files of a repository a model needs: weights, configuration, tokenizer, template, licence, card. No code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from quantstudio.core.errors import HubAnswerUnusable, ModelUnsupported, PicklesOnly
from quantstudio.core.hub import HubFile
from quantstudio.core.model_files import CONFIG, INDEX, PICKLES, SINGLE_FILE

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_COMPANIONS = frozenset(
    {CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    | {"added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"}
    | {"sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json", "README.md", "NOTICE", "NOTICE.txt"}
)
_ALSO = re.compile(
    r"(?i)(LICEN[CS]E|USE_POLICY|COPYING)[\w.-]*|[\w.-]+\.tiktoken|additional_chat_templates/[\w.-]+\.jinja"
)
MAX_COMPANION_BYTES = 256 << 20


def is_companion(file: HubFile) -> bool:
    """Whether this file belongs to a model beside its weights; tokenizers of a size that nobody has are left out."""
    named = file.path in _COMPANIONS or _ALSO.fullmatch(file.path) is not None
    return named and file.size <= MAX_COMPANION_BYTES


def index_of(files: Iterable[HubFile], *, pickles: bool = False) -> HubFile | None:
    """The index that has to be read to know the weight files; None when one file holds all."""
    by_name = {file.path: file for file in files}
    single, index = (PICKLE_FILE, PICKLE_INDEX) if pickles else (SINGLE_FILE, INDEX)
    return None if single in by_name else by_name.get(index)


def is_pickle_only(files: Collection[HubFile]) -> bool:
    """Whether the weights exist only as pickles."""
    names = {file.path for file in files}
    return not names & {SINGLE_FILE, INDEX} and bool(names & {PICKLE_FILE, PICKLE_INDEX})


def choose(files: Collection[HubFile], shards: Collection[str], *, pickles: bool = False) -> list[HubFile]:
    """The files to download: small ones first, config.json always last of all, so that a folder that has it is whole.

    `shards`: weight files that the index names; empty without an index. Raises HubAnswerUnusable when the index names
    files that do not exist, ModelUnsupported when there are no weights that we can read.
    """
    by_name = {file.path: file for file in files}
    single, index = (PICKLE_FILE, PICKLE_INDEX) if pickles else (SINGLE_FILE, INDEX)
    weights = {single} if single in by_name else {*shards, index} if shards else set()
    if CONFIG not in by_name or not weights:
        raise _no_model(files)
    if lost := sorted(weights - by_name.keys()):
        raise HubAnswerUnusable(
            f"The repository is incomplete: {', '.join(lost[:3])} is missing.", why="Its index names that file."
        )
    names = weights | {file.path for file in files if is_companion(file)}
    return sorted((by_name[name] for name in names), key=lambda file: (file.path == CONFIG, file.size, file.path))


def pickles_only(model: str) -> PicklesOnly:
    """The error for weights that nobody has agreed to convert."""
    return PicklesOnly(
        f"The weights of {model} exist only as pickle files.",
        why="Pickles can run programs when they are read.",
        hint="Look for a version with .safetensors files, or allow pickles: they are then read in a mode that "
        f"refuses programs, and converted (quantstudio download {model} --allow-pickles).",
        field="model.id",
    )


def _no_model(files: Collection[HubFile]) -> ModelUnsupported:
    kinds = {file.path.rpartition(".")[2] for file in files}
    only = "GGUF files, which are made for other programs" if "gguf" in kinds else "no weights in safetensors files"
    if any(f".{kind}" in PICKLES for kind in kinds):
        only = "pickle files under names that are not the usual ones"
    return ModelUnsupported(
        "This repository is no language model that can be used here.",
        why=f"It holds {only}, or no config.json.",
        hint="Look for the version of the model with .safetensors files.",
        field="model.id",
    )
