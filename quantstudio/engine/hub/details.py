"""One model of the Hub, looked at from outside: what it is, what it weighs, what could be made of it. No weights."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantstudio.core.errors import AccessNeeded, HubRefused, QuantStudioError
from quantstudio.core.fit import scheme_sizes
from quantstudio.core.hub import (
    Access,
    HubFile,
    LayerKind,
    ModelDetails,
    ModelSummary,
    PartSize,
    SchemeSize,
    pack_info,
)
from quantstudio.core.humanize import plural
from quantstudio.core.jobs import DetailsJob
from quantstudio.core.model_info import ModelInfo, read_model_info
from quantstudio.core.safety import check_folder
from quantstudio.core.schemes import fitting_group_sizes
from quantstudio.engine.hub.answers import read_base_model, read_commit, read_summary
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.cache import blob_path
from quantstudio.engine.hub.needed import choose, is_pickle_only, pickles_only
from quantstudio.engine.hub.skeleton import MAX_TEXT, read_shards, whole, write_skeleton

_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*\n", re.DOTALL)
_LICENCE_FILE = re.compile(r"(?i)LICEN[CS]E[\w.-]*")


def look_at(job: DetailsJob, api: HubApi) -> ModelDetails:
    """All that can be known of a model without its weights.

    A model that cannot be used is described as far as it goes, with the reason in `problem`. Raises HubRefused,
    HubUnreachable, HubAnswerUnusable, Offline, Cancelled.
    """
    api.reporter.phase("look", "Looking at the model", 0, 1)
    described = api.describe(job.model, job.revision)
    commit = read_commit(described)
    summary = read_summary(described) or ModelSummary(id=job.model)
    files = api.files(job.model, commit)
    details = ModelDetails(
        summary=summary,
        commit=commit,
        revision=job.revision or "main",
        files=tuple(files),
        page=f"{api.connection.endpoint}/{job.model}",
        base_model=read_base_model(described),
        access=Access.GRANTED if summary.gated or summary.private else Access.OPEN,
        pickle_only=is_pickle_only(files),
    )
    try:
        found = _from_contents(job.model, details, api)
    except AccessNeeded as error:
        access = Access.ASK if api.connection.token else Access.SIGN_IN
        found = {"access": access, "problem": str(error)}
    except HubRefused:
        raise
    except QuantStudioError as error:
        found = {"problem": str(error)}
    found["quantizations"] = _quantizations(job.model, api)
    return details.model_copy(update=found)


def preview(model: str, revision: str, api: HubApi) -> ModelInfo:
    """What `read_model_info` will say of a model once it is downloaded. Raises as that, and as `HubApi`."""
    commit = read_commit(api.describe(model, revision))
    files = api.files(model, commit)
    needed = choose(files, read_shards(api, model, commit, files)) if not is_pickle_only(files) else []
    if not needed:
        raise pickles_only(model)
    with tempfile.TemporaryDirectory(prefix="quantstudio-") as name:
        write_skeleton(api, model, commit, needed, Path(name))
        return read_model_info(Path(name))


def _from_contents(model: str, details: ModelDetails, api: HubApi) -> dict[str, Any]:
    """What configuration and headers add to the description."""
    shards = read_shards(api, model, details.commit, details.files, pickles=details.pickle_only)
    needed = choose(details.files, shards, pickles=details.pickle_only)
    found = _sizes(model, details, needed, api)
    with tempfile.TemporaryDirectory(prefix="quantstudio-") as name:
        folder = Path(name)
        write_skeleton(api, model, details.commit, needed, folder)
        found |= _texts(folder, needed)
        if details.pickle_only:
            return found | {"problem": _pickle_sentence()}
        found["notes"] = tuple(finding.text for finding in check_folder(folder))
        try:
            info = read_model_info(folder)
        except QuantStudioError as error:
            return found | {"problem": str(error)}
        if not any(_LICENCE_FILE.fullmatch(file.path) for file in needed):
            found["licence_text"] = _licence_elsewhere(model, details, api)
    return found | _from_info(info, model)


def _sizes(model: str, details: ModelDetails, needed: list[HubFile], api: HubApi) -> dict[str, Any]:
    names = {file.path for file in needed}
    here = {file.path for file in needed if _is_here(api, model, file)}
    marked = [
        file.model_copy(update={"needed": file.path in names, "present": file.path in here}) for file in details.files
    ]
    return {
        "files": tuple(marked),
        "total_bytes": sum(file.size for file in needed),
        "download_bytes": sum(file.size for file in needed if file.path not in here),
    }


def _is_here(api: HubApi, model: str, file: HubFile) -> bool:
    path = blob_path(api.connection.cache, model, file)
    return path.is_file() and path.stat().st_size == file.size


def _texts(folder: Path, needed: Iterable[HubFile]) -> dict[str, Any]:
    licence = next((file.path for file in needed if _LICENCE_FILE.fullmatch(file.path)), "")
    card = _text(folder / "README.md")
    return {"card": _FRONT_MATTER.sub("", card), "licence_text": _text(folder / licence) if licence else ""}


def _licence_elsewhere(model: str, details: ModelDetails, api: HubApi) -> str:
    """The text of a licence file that a download would not fetch, because of its place."""
    for file in details.files:
        if _LICENCE_FILE.fullmatch(file.path.rpartition("/")[2]) and file.size <= MAX_TEXT:
            return whole(api, model, details.commit, file, MAX_TEXT).decode("utf-8", "replace")
    return ""


def _text(path: Path) -> str:
    return path.read_bytes()[:MAX_TEXT].decode("utf-8", "replace") if path.is_file() else ""


def _from_info(info: ModelInfo, model: str) -> dict[str, Any]:
    return {
        "context_length": info.context_length,
        "parts": tuple(_parts(info)),
        "layer_kinds": tuple(_layer_kinds(info)),
        "schemes": tuple(_schemes(info)),
        "packed_info": pack_info(info),
    }


def _parts(info: ModelInfo) -> Iterable[PartSize]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for tensor in info.tensors:
        weights = 1
        for length in tensor.shape:
            weights *= length
        entry = counts[tensor.part.value]
        entry[0] += weights
        entry[1] += tensor.nbytes
    return [PartSize(part=part, parameters=weights, nbytes=nbytes) for part, (weights, nbytes) in counts.items()]


def _layer_kinds(info: ModelInfo) -> Iterable[LayerKind]:
    kinds: dict[tuple[str, int, int, bool, str], int] = defaultdict(int)
    for slot in info.slots:
        name = slot.module.rpartition(".")[2]
        kinds[name, slot.rows, slot.columns, slot.quantizable, slot.why_not] += 1
    return [
        LayerKind(
            name=name,
            count=count,
            rows=rows,
            columns=columns,
            group_sizes=tuple(sorted(fitting_group_sizes(columns, 128))),
            quantizable=quantizable,
            why_not=why_not,
        )
        for (name, rows, columns, quantizable, why_not), count in kinds.items()
    ]


def _schemes(info: ModelInfo) -> Iterable[SchemeSize]:
    for kind, label, nbytes, smaller in scheme_sizes(info):
        problem = f"{plural(smaller, 'layer')} in smaller groups: the usual ones do not divide the rows."
        if info.quantized:
            problem = f"The model is quantized already ({info.quantized})."
        yield SchemeSize(kind=kind, label=label, nbytes=nbytes, problem=problem if smaller or info.quantized else "")


def _quantizations(model: str, api: HubApi) -> tuple[ModelSummary, ...]:
    try:
        return tuple(row for row in api.quantizations(model).models if row.id != model)
    except QuantStudioError as error:
        api.reporter.log(f"Quantized versions could not be listed: {error}", "warning")
        return ()


def _pickle_sentence() -> str:
    return (
        "The weights exist only as pickle files, which can run programs when they are read. They can be fetched, read "
        "in a safe mode that refuses programs, and converted, if you agree."
    )
