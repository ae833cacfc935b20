"""Where things are kept: what ships with the program, and what belongs to the person."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def resources() -> Path:
    """The folder of shipped files: inside the package when installed from a wheel, beside it in a checkout."""
    inside = PACKAGE / "resources"
    return inside if inside.is_dir() else PACKAGE.parent / "resources"


def starter_model() -> Path:
    """The model in the box."""
    return resources() / "starter"


def data_home() -> Path:
    """Folder of runs, chats and settings. `QUANTSTUDIO_HOME` overrides the platform's usual place."""
    if override := os.environ.get("QUANTSTUDIO_HOME"):
        return Path(override).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "QuantStudio"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "QuantStudio"
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "quantstudio"


def runs_home() -> Path:
    """Folder that holds one folder for each run, unless the settings name another."""
    return data_home() / "runs"


def downloads_file() -> Path:
    """Where a window leaves the downloads that are not finished for the next one."""
    return data_home() / "downloads.json"


def hub_cache() -> Path:
    """The Hugging Face cache, found by the variables that the library itself reads."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"


def converted_cache() -> Path:
    """Models that came as pickles, converted to safetensors; laid out like the Hugging Face cache, which must not be
    given contents that the Hub does not have."""
    return data_home() / "converted"


def compiled_cache() -> Path:
    """Programs that torch.compile has made for this machine; may be deleted at any time."""
    return data_home() / "compiled"


def native_cache() -> Path:
    """Where this program's own C++ lies when it was built for this machine's processor (Linux); may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "quantstudio" / "native"
