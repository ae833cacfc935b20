"""What a person sets once for the whole program: folders, device, threads, theme, language.

Declared like the recipe: every field carries a title and a help text, and the Settings page is made of them. A settings
file that cannot be read never stops the program: it is put aside and the defaults are used, and the program says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantstudio.core.disk import disk_problem, write_atomically
from quantstudio.core.errors import DiskProblem
from quantstudio.core.paths import data_home, runs_home

SETTINGS_VERSION = 1
MAX_SETTINGS_BYTES = 1 << 20


class Settings(BaseModel):
    """The program's settings. Unknown keys are ignored, so that an older program reads a newer file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(
        default=SETTINGS_VERSION,
        title="Settings version",
        description="Version of the format of this file.",
        json_schema_extra={"hidden": True},
    )
    runs_folder: str = Field(
        default="",
        title="Folder for runs",
        description="Where runs and quantized models are kept. Empty: the usual place on this system.",
        json_schema_extra={"editor": "folder"},
    )
    model_folders: tuple[str, ...] = Field(
        default=(),
        title="Model folders",
        description="Folders that hold a model, or several models side by side. They appear on the Models page.",
        json_schema_extra={"editor": "folders"},
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        title="Device",
        description="Automatic takes the GPU when there is one. What new recipes start with.",
        json_schema_extra={"labels": {"auto": "Automatic", "cpu": "CPU", "cuda": "GPU (CUDA)"}},
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        title="Threads",
        description="CPU threads that new recipes start with. 0 uses every physical core.",
        json_schema_extra={"zero": "Every core"},
    )
    theme: Literal["system", "light", "dark"] = Field(
        default="system",
        title="Theme",
        description="Colours of the window.",
        json_schema_extra={"labels": {"system": "As the system", "light": "Light", "dark": "Dark"}},
    )
    language: str = Field(
        default="",
        max_length=20,
        pattern=r"^([a-z]{2,3}([_-][A-Za-z]{2,4})?)?$",
        title="Language",
        description="Language of the window; a change takes effect after a restart. Empty: as the system.",
        json_schema_extra={"choices": ["", "en"], "labels": {"": "As the system", "en": "English"}},
    )
    notice: str = Field(
        default="",
        exclude=True,
        title="Notice",
        description="What went wrong when the settings were read; empty when all is well.",
        json_schema_extra={"hidden": True},
    )

    @property
    def runs_path(self) -> Path:
        """The folder that holds one folder for each run."""
        return Path(self.runs_folder).expanduser().absolute() if self.runs_folder else runs_home()


def settings_file() -> Path:
    """Where the settings are kept."""
    return data_home() / "settings.json"


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings. Never raises: a broken file is renamed to `.bad`, and `notice` says what happened."""
    path = path or settings_file()
    try:
        return _checked(path)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        return Settings(notice=f"The settings in {path} cannot be read ({error.strerror}). The defaults are used.")
    except (ValueError, RecursionError):
        return Settings(notice=_put_aside(path))


def save_settings(settings: Settings, path: Path | None = None) -> None:
    """Replace the settings file in one step. Raises DiskProblem."""
    path = path or settings_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, settings.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise disk_problem(error) or DiskProblem(
            f"The settings cannot be saved to {path}.", why=f"{error.strerror or error}."
        ) from error


def _checked(path: Path) -> Settings:
    with path.open("rb") as file:
        raw = file.read(MAX_SETTINGS_BYTES + 1)
    if len(raw) > MAX_SETTINGS_BYTES:
        raise ValueError("too large")
    data: Any = json.loads(raw.decode("utf-8"))
    if not isinstance(data, dict):
        raise ValueError("not an object")
    data.pop("notice", None)
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        return _without(data, {str(item["loc"][0]) for item in error.errors() if item["loc"]})


def _without(data: dict[str, Any], wrong: set[str]) -> Settings:
    """The settings without the fields that hold nonsense: one bad value should not cost the person all others."""
    kept = Settings.model_validate({key: value for key, value in data.items() if key not in wrong})
    titles = sorted(Settings.model_fields[name].title or name for name in wrong)
    return kept.model_copy(update={"notice": f"Some settings could not be used and were reset: {', '.join(titles)}."})


def _put_aside(path: Path) -> str:
    bad = path.with_name(path.name + ".bad")
    try:
        path.replace(bad)
    except OSError:
        return f"The settings in {path} are damaged. The defaults are used."
    return f"The settings were damaged. They were put aside as {bad}, and the defaults are used."
