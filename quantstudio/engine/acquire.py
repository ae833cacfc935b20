"""A recipe's model on this machine, whole and verified, wherever it has to come from.

Before weights are fetched, the recipe is checked against their headers: what cannot fit is said before the download.
"""

from __future__ import annotations

import os
from pathlib import Path

from quantstudio.core import protocol
from quantstudio.core.cache import is_snapshot
from quantstudio.core.errors import ModelDamaged, ModelNotFound, QuantStudioError
from quantstudio.core.estimate import check_machine
from quantstudio.core.hub import DownloadResult
from quantstudio.core.job_environment import is_offline
from quantstudio.core.jobs import DownloadJob
from quantstudio.core.library import is_hub_id, resolve_model
from quantstudio.core.model_info import read_model_info
from quantstudio.core.recipe import ModelSection, Recipe
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.connection import Connection, read_connection
from quantstudio.engine.hub.details import preview
from quantstudio.engine.hub.download import download
from quantstudio.engine.hub.verify import require_verified
from quantstudio.engine.reporter import Reporter


def must_download(section: ModelSection) -> bool:
    """Whether a model has to come from the Hub (or be repaired from there), and the Hub may be asked."""
    if not is_hub_id(section.id) or is_offline(os.environ):
        return False
    try:
        read_model_info(resolve_model(section))
    except (ModelNotFound, ModelDamaged):
        return True
    except QuantStudioError:
        return False  # another download would not change that; whoever reads the model says it
    return False


def acquire(recipe: Recipe, run_folder: Path, reporter: Reporter) -> Path:
    """The folder of a recipe's model; what is missing is downloaded. Reports progress, but no phases of its own.

    Raises the errors of `resolve_model`, `download` and `check_machine`.
    """
    section = recipe.model
    quiet = Reporter(lambda message: _pass_on(message, reporter), reporter.cancel)
    if must_download(section):
        return _fetch(recipe, run_folder, quiet)
    folder = resolve_model(section)
    if is_snapshot(folder):
        try:
            require_verified(folder, quiet)
        except ModelDamaged as error:
            if is_offline(os.environ):
                raise
            reporter.notice(f"{error.what} It is downloaded again.", "warning")
            return _fetch(recipe, run_folder, quiet)
    return folder


def carry_out(job: DownloadJob, connection: Connection, reporter: Reporter) -> DownloadResult:
    """A download, and after it the conversion of weights that came as pickles. Raises as both."""
    result = download(job, connection, reporter)
    if not result.converted:
        return result
    from quantstudio.engine.convert_pickles import convert_pickles

    reporter.phase("convert", "Converting pickles to safetensors", 2, 3)
    return result.model_copy(update={"folder": str(convert_pickles(Path(result.folder), reporter))})


def _fetch(recipe: Recipe, run_folder: Path, reporter: Reporter) -> Path:
    connection = read_connection()
    section = recipe.model
    info = preview(section.id, section.revision, HubApi(connection, reporter))
    costs = check_machine(info, recipe, run_folder)
    # On another disk than the cache, the room for the output was just checked.
    output = costs.disk_bytes if _same_disk(connection.cache, run_folder) else 0
    job = DownloadJob(model=section.id, revision=section.revision, output_bytes=output)
    return Path(download(job, connection, reporter).folder)


def _same_disk(cache: Path, run_folder: Path) -> bool:
    cache.mkdir(parents=True, exist_ok=True)
    return cache.stat().st_dev == run_folder.stat().st_dev


def _pass_on(message: protocol.Message, reporter: Reporter) -> None:
    if not isinstance(message, (protocol.Phase, protocol.Artifact)):
        reporter.emit(message)
