"""LoRA's matrices on disk, as peft reads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from quantstudio.core.disk import partial_of, publish_folder, remove_tree
from quantstudio.engine.train.layers import LORA_ALPHA_PER_RANK, TrainedLinear
from quantstudio.engine.train.student import Student

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(student: Student, folder: Path, rank: int, base: str) -> None:
    """Write the adapter folder, replacing an earlier one. `base`: the original model's name. Raises OSError.

    Added to the original it gives the sum that was put on the grid; the grid itself is in the saved model alone.
    """
    tensors: dict[str, torch.Tensor] = {}
    targets = []
    for name, layer in student.model.named_modules():
        if isinstance(layer, TrainedLinear) and layer.lora_a is not None and layer.lora_b is not None:
            targets.append(name)
            tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_a.detach().cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_b.detach().cpu().contiguous()
    partial = partial_of(folder)
    remove_tree(partial)
    partial.mkdir(parents=True)
    save_file(tensors, partial / _WEIGHTS, {"format": "pt"})
    (partial / _CONFIG).write_text(json.dumps(_config(rank, targets, base), indent=2) + "\n", encoding="utf-8")
    remove_tree(folder)
    publish_folder(partial, folder)


def _config(rank: int, targets: list[str], base: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(rank * LORA_ALPHA_PER_RANK),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "inference_mode": True,
    }
