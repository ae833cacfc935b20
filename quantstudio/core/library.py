"""Which models are on this machine, and which folder a recipe's model id means. No network, no torch, no hub client.

The Hugging Face cache is read by its layout (models--owner--name with refs and snapshots), because importing its client
takes 0.3 s. Only absolute snapshot paths are handed on: a folder `owner/name` in the current directory would shadow the
model that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from quantstudio.core.cache import CachedRepo, cached_repos, local_snapshot, repo_path, unverified
from quantstudio.core.errors import ModelNotFound, QuantStudioError
from quantstudio.core.model_files import CONFIG
from quantstudio.core.model_info import ModelInfo, model_name, read_model_info
from quantstudio.core.paths import converted_cache, hub_cache, starter_model
from quantstudio.core.recipe import STARTER, ModelSection
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import MODEL, RunHeader, list_runs
from quantstudio.core.settings import Settings
from quantstudio.core.usage import last_used

MAX_MODELS_IN_FOLDER = 500
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")


class ModelKind(StrEnum):
    """Where a model was found."""

    STARTER = "starter"
    FOLDER = "folder"
    CACHE = "cache"
    RUN = "run"


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine; either `info` or `error` is set."""

    kind: ModelKind
    id: str
    """What to put into a recipe's `model.id`."""
    name: str
    path: Path
    info: ModelInfo | None = None
    error: str = ""
    """Why it cannot be used, in a person's words."""
    nbytes: int = 0
    """What it occupies; for a model of the cache all its revisions and whatever broken downloads have left."""
    partial_bytes: int = 0
    """Of that, what unfinished downloads hold; another download continues there."""
    last_used: float = 0.0
    """When a job here last loaded it, in seconds since the epoch; 0 for never."""
    origin: str = ""
    """Where it came from: `owner/name at commit`, a folder, or a run; in a person's words."""
    verified: bool = False
    """Whether every file of this revision was compared with its checksum on this machine."""
    made: tuple[str, ...] = ()
    """Ids of the runs that made something from it."""

    @property
    def repairable(self) -> bool:
        """Whether downloading it again would make it whole."""
        return self.kind is ModelKind.CACHE and bool(self.error or self.partial_bytes)


def resolve_model(section: ModelSection) -> Path:
    """The absolute folder of a recipe's model.

    'starter' is the model in the box. `owner/name` means the Hugging Face cache first, and a folder of that name only
    when the cache does not have it; to mean the folder, write `./owner/name`. Raises ModelNotFound.
    """
    if section.id == STARTER:
        return starter_model()
    if _HUB_ID.fullmatch(section.id) and (folder := _cached_model(section)):
        return folder
    folder = Path(section.id).expanduser().absolute()
    if folder.is_dir():
        return folder
    raise _not_found(section, folder)


def list_models(settings: Settings, runs_home: Path | None = None) -> list[FoundModel]:
    """Every model on this machine: starter, added folders, cache, results of runs. Reads headers only.

    A model that cannot be read is listed with its error. May be called from any thread; changes nothing.
    """
    runs = [run for run in list_runs(runs_home or settings.runs_path) if run.status is Status.DONE]
    found = {entry.path: entry for entry in _candidates(settings, runs)}
    return [_look_at(entry, runs) for entry in found.values()]


def list_cache() -> list[FoundModel]:
    """The models in the Hugging Face cache at the commit that `main` points to, else at their newest snapshot.

    What an unfinished download has left is listed with its error; a model that was converted, once.
    """
    converted = cached_repos(converted_cache())
    names = {repo.id for repo in converted}
    repos = [*(repo for repo in cached_repos(hub_cache()) if repo.id not in names), *converted]
    return [model for model in map(_of_cache, repos) if model]


def is_hub_id(id: str) -> bool:
    """Whether a recipe's model id may mean a model of the Hub: `owner/name`, and no folder of that name is here."""
    return _HUB_ID.fullmatch(id) is not None and not Path(id).is_dir()


def _of_cache(repo: CachedRepo) -> FoundModel | None:
    """A model of the cache; None for a repository that is no model (a dataset's tokenizer, a GGUF file …)."""
    folder = local_snapshot(repo.path.parent, repo.id, "")
    if folder is None or not (folder / CONFIG).exists():
        if not repo.partial_bytes:
            return None
        error = "Its download is not finished. Download it again: what is here is kept."
        return FoundModel(
            ModelKind.CACHE,
            repo.id,
            repo.id,
            repo.path,
            error=error,
            nbytes=repo.nbytes,
            partial_bytes=repo.partial_bytes,
        )
    name = model_name(folder)
    origin = f"{name} at {folder.name[:12]}"
    verified = not unverified(folder)
    return FoundModel(
        ModelKind.CACHE,
        name,
        name,
        folder,
        origin=origin,
        verified=verified,
        nbytes=repo.nbytes,
        partial_bytes=repo.partial_bytes,
    )


def _candidates(settings: Settings, runs: list[RunHeader]) -> Iterator[FoundModel]:
    yield FoundModel(ModelKind.STARTER, STARTER, "Starter model", starter_model(), origin="came with the program")
    for text in settings.model_folders:
        for folder in _models_in(Path(text).expanduser().absolute()):
            yield FoundModel(ModelKind.FOLDER, str(folder), folder.name, folder, origin="a folder of yours")
    yield from list_cache()
    for run in runs:
        folder = run.path / MODEL
        if folder.is_dir():
            yield FoundModel(ModelKind.RUN, str(folder), run.name, folder, origin=f"made here from {run.model}")


def _look_at(entry: FoundModel, runs: list[RunHeader]) -> FoundModel:
    if entry.error:
        return entry
    try:
        info, error = read_model_info(entry.path), ""
    except QuantStudioError as problem:
        info, error = None, str(problem)
    name = model_name(entry.path)
    made = tuple(run.id for run in runs if run.model == name)
    found = replace(entry, info=info, error=error, made=made, last_used=last_used(entry.path))
    if entry.nbytes:
        return found
    files = [path for path in entry.path.glob("*") if path.is_file()] if entry.path.is_dir() else []
    return replace(found, nbytes=sum(path.stat().st_size for path in files))


def _models_in(folder: Path) -> list[Path]:
    """A folder that is a model, or the models directly inside it; the folder itself when there are none."""
    if (folder / CONFIG).is_file():
        return [folder]
    try:
        inside = sorted(child for child in folder.iterdir() if (child / CONFIG).is_file())
    except OSError:
        inside = []  # listed by its own name, with the reason why it cannot be read
    return inside[:MAX_MODELS_IN_FOLDER] or [folder]


def _cached_model(section: ModelSection) -> Path | None:
    """The revision of a model in the cache; one that was converted from pickles goes before its pickles."""
    places = [cache for cache in (converted_cache(), hub_cache()) if repo_path(cache, section.id).is_dir()]
    for cache in places:
        folder = local_snapshot(cache, section.id, section.revision)
        if folder and (folder / CONFIG).exists():
            return folder
    if places and section.revision:
        raise ModelNotFound(
            f"{section.id} is in the Hugging Face cache, but not at revision {section.revision!r}.",
            hint="Leave the revision empty, or download that revision first.",
            field="model.revision",
        )
    return None


def _not_found(section: ModelSection, folder: Path) -> ModelNotFound:
    if _HUB_ID.fullmatch(section.id):
        return ModelNotFound(
            f"The model {section.id} is not on this machine.",
            why=f"It is neither in the Hugging Face cache ({hub_cache()}) nor a folder here.",
            hint=f"Download it first: quantstudio download {section.id}",
            field="model.id",
        )
    hint = "Check the path of the model, or take 'starter', the one in the box."
    return ModelNotFound(f"There is no folder {folder}.", hint=hint, field="model.id")
