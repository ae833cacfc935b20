"""Whether ONNX Runtime can run a model here, found out before any weight is loaded."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from quantstudio.core.engines import onnx_runtime_is_installed
from quantstudio.core.safety import require_safe
from quantstudio.core.schemes import WeightSpec
from quantstudio.engine.formats.compressed_tensors import read_config
from quantstudio.engine.llama_step import FAMILY
from quantstudio.engine.load_quantized import empty_model
from quantstudio.engine.onnx.blocks import block_size

ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that are the same whatever the text's length."""


def why_not(folder: Path) -> str:
    """Why this engine cannot run a model folder; empty when it can. Loads no weights. Raises what preflight raises."""
    model = empty_if_fit(folder)
    return model if isinstance(model, str) else ""


def empty_if_fit(folder: Path) -> PreTrainedModel | str:
    """The folder's model, empty, or why this engine cannot run it. Raises what preflight raises."""
    if not onnx_runtime_is_installed():
        return "ONNX Runtime is not installed (pip install 'quantstudio[onnx]')"
    require_safe(folder)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    if getattr(config, "quantization_config", None) is None:
        return "the model is not quantized"
    stored = read_config(folder)
    model = empty_model(config)
    return _why_not_model(model) or _why_not_weights(model, stored.specs) or model


def _why_not_model(model: PreTrainedModel) -> str:
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    checks = (
        (type(model) in FAMILY, f"{type(model).__name__} is none of the model families that it knows"),
        (getattr(config, "hidden_act", "") == "silu", "its layers have another activation than SiLU"),
        (kinds == {"full_attention"} and not _slides(config), "it has sliding windows"),
        (rotation in ROTATIONS, f"its rotary embedding is of the kind {rotation}"),
    )
    return next((reason for fine, reason in checks if not fine), "")


def _slides(config: PretrainedConfig) -> bool:
    # Mistral has a window and no list of layer kinds; Qwen has a list, and a window that counts only where it says so.
    return not getattr(config, "layer_types", None) and bool(getattr(config, "sliding_window", None))


def _why_not_weights(model: PreTrainedModel, specs: dict[str, WeightSpec]) -> str:
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name not in specs:
            return f"{name} is not quantized"
        if block_size(specs[name], module.in_features) is None:
            return f"the groups of {name} fit none of its blocks"
    return ""
