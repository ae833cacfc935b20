"""Which models are on this machine, and which folder a recipe's model id means. No network, no torch, no hub client.

The Hugging Face cache is read by its layout (models--owner--name with refs and snapshots), because importing its client
takes 0.3 s. Only absolute snapshot paths are handed on: a folder `owner/name` in the current directory would shadow the
model that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from quantstudio.core.errors import ModelNotFound, QuantStudioError
from quantstudio.core.model_files import CONFIG
from quantstudio.core.model_info import ModelInfo, model_name, read_model_info
from quantstudio.core.paths import hub_cache, starter_model
from quantstudio.core.recipe import STARTER, ModelSection
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import MODEL, list_runs
from quantstudio.core.settings import Settings

MAX_MODELS_IN_FOLDER = 500
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
    found = {entry.path: entry for entry in _candidates(settings, runs_home or settings.runs_path)}
    return [_look_at(entry) for entry in found.values()]


def list_cache() -> list[FoundModel]:
    """The models in the Hugging Face cache at the commit that `main` points to, else at their newest snapshot."""
    cache = hub_cache()
    if not cache.is_dir():
        return []
    models = []
    for repo in sorted(cache.glob("models--*--*")):
        folder = _snapshot(repo, "main") or _newest_snapshot(repo)
        if folder and (folder / CONFIG).exists():
            name = model_name(folder)
            models.append(FoundModel(ModelKind.CACHE, name, name, folder))
    return models


def _candidates(settings: Settings, runs_home: Path) -> Iterator[FoundModel]:
    yield FoundModel(ModelKind.STARTER, STARTER, "Starter model", starter_model())
    for text in settings.model_folders:
        for folder in _models_in(Path(text).expanduser().absolute()):
            yield FoundModel(ModelKind.FOLDER, str(folder), folder.name, folder)
    yield from list_cache()
    for run in list_runs(runs_home):
        folder = run.path / MODEL
        if run.status is Status.DONE and folder.is_dir():
            yield FoundModel(ModelKind.RUN, str(folder), run.name, folder)


def _look_at(entry: FoundModel) -> FoundModel:
    try:
        info, error = read_model_info(entry.path), ""
    except QuantStudioError as problem:
        info, error = None, str(problem)
    return FoundModel(entry.kind, entry.id, entry.name, entry.path, info, error)


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
    repo = hub_cache() / f"models--{section.id.replace('/', '--')}"
    if not repo.is_dir():
        return None
    revision = section.revision or "main"
    folder = _snapshot(repo, revision)
    if folder is None and not section.revision:
        folder = _newest_snapshot(repo)
    if folder is None:
        raise ModelNotFound(
            f"{section.id} is in the Hugging Face cache, but not at revision {revision!r}.",
            hint="Leave the revision empty, or download that revision first.",
            field="model.revision",
        )
    return folder


def _snapshot(repo: Path, revision: str) -> Path | None:
    """The snapshot of a branch, tag or commit, or None."""
    if not re.fullmatch(r"[\w./-]{1,200}", revision) or ".." in revision:
        return None
    commit = revision
    ref = repo / "refs" / revision
    if ref.is_file() and ref.stat().st_size < 200:
        commit = ref.read_text(encoding="utf-8", errors="replace").strip()
    folder = repo / "snapshots" / commit
    return folder.absolute() if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def _newest_snapshot(repo: Path) -> Path | None:
    snapshots = repo / "snapshots"
    found = [folder for folder in snapshots.iterdir() if folder.is_dir()] if snapshots.is_dir() else []
    return max(found, key=lambda folder: folder.stat().st_mtime).absolute() if found else None


def _not_found(section: ModelSection, folder: Path) -> ModelNotFound:
    if _HUB_ID.fullmatch(section.id):
        return ModelNotFound(
            f"The model {section.id} is not on this machine.",
            why=f"It is neither in the Hugging Face cache ({hub_cache()}) nor a folder here.",
            hint=f"Download it first, for example with: hf download {section.id}",
            field="model.id",
        )
    hint = "Check the path of the model, or take 'starter', the one in the box."
    return ModelNotFound(f"There is no folder {folder}.", hint=hint, field="model.id")
