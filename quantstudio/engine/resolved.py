"""What a recipe stood for on the day it was carried out: defaults, the very model and text, and the versions.

Weight files are named with their sizes, not hashed: reading 15 GB again to name it costs more than quantizing it. A
model from the Hugging Face cache is pinned by its commit, and there the blobs' names are their checksums anyway.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from quantstudio.core.model_info import ModelInfo
from quantstudio.core.recipe import Recipe
from quantstudio.core.result import Environment
from quantstudio.engine.measure.text import read_text


def resolved_recipe(recipe: Recipe, info: ModelInfo, environment: Environment) -> str:
    """JSON text, sorted. Raises RecipeError when the evaluation text cannot be read, OSError."""
    resolved = {
        "recipe": recipe.model_dump(mode="json"),
        "model": _model(info),
        "text": _text(recipe) if recipe.measure.enabled else None,
        "versions": environment.versions,
    }
    return json.dumps(resolved, indent=1, sort_keys=True) + "\n"


def _model(info: ModelInfo) -> dict[str, Any]:
    weights = sorted({tensor.file for tensor in info.tensors})
    return {
        "folder": str(info.path),
        "commit": info.path.name if info.path.parent.name == "snapshots" else "",
        "config_sha256": hashlib.sha256((info.path / "config.json").read_bytes()).hexdigest(),
        "weight_files": {name: Path(info.path / name).stat().st_size for name in weights},
    }


def _text(recipe: Recipe) -> dict[str, str]:
    text = read_text(recipe.measure.text, recipe.measure.quality_tokens)
    return {"name": text.name, "sha256": hashlib.sha256(text.content.encode()).hexdigest()}
