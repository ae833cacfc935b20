"""What a method has chosen before a file of the result is written: a folder that grows part by part.

Rounding to nearest chooses as it writes. Other methods first put their choices here, one part (usually one block of the
model) at a time: quantized weights by the names that modules have in the source's files, and other tensors that the
method has changed (norms that took up scales, trained weights) by their full names there. Each part is one safetensors
file, written beside its place, flushed and renamed: after a kill the finished parts are there, whole, and the method
goes on with the next. Names of parts come from us, names of modules from strangers; the latter are only keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quantstudio.core.disk import partial_of
from quantstudio.core.schemes import ActivationKind, WeightSpec
from quantstudio.engine.quantized_weight import QuantizedWeight

_CODES, _SCALES, _ZEROS, _TENSOR = "codes:", "scales:", "zeros:", "tensor:"


class Chosen:
    """The choices in one folder. Nothing is kept in memory; tensors are read when asked for."""

    def __init__(self, folder: Path) -> None:
        """`folder` is created; what earlier processes finished in it counts."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._where: dict[str, Path] = {}
        self._specs: dict[str, WeightSpec] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._index(path)

    def has(self, part: str) -> bool:
        """Whether this part was finished, now or before a kill."""
        return self._path(part).is_file()

    def put(
        self,
        part: str,
        weights: Mapping[str, QuantizedWeight],
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Finish a part: module name → weight, and full name → tensor for what else has changed. Raises OSError."""
        flat: dict[str, torch.Tensor] = {}
        specs: dict[str, list[object]] = {}
        for module, weight in weights.items():
            flat[_CODES + module] = weight.codes.cpu().contiguous()
            flat[_SCALES + module] = weight.scales.cpu().contiguous()
            if weight.zero_points is not None:
                flat[_ZEROS + module] = weight.zero_points.cpu().contiguous()
            spec = weight.spec
            specs[module] = [spec.bits, spec.group_size, spec.symmetric, str(spec.activations)]
        flat |= {_TENSOR + name: value.detach().cpu().contiguous() for name, value in (tensors or {}).items()}
        path = self._path(part)
        partial = partial_of(path)
        save_file(flat, partial, {"specs": json.dumps(specs)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        self._index(path)

    def spec(self, module: str) -> WeightSpec | None:
        """The grid that a module was put on; None when no part holds it."""
        return self._specs.get(module)

    def weight(self, module: str) -> QuantizedWeight | None:
        """What was chosen for a module; None when nothing was."""
        path = self._where.get(_CODES + module)
        if path is None:
            return None
        with safe_open(path, framework="pt") as file:
            zeros = file.get_tensor(_ZEROS + module) if _ZEROS + module in self._where else None
            codes, scales = file.get_tensor(_CODES + module), file.get_tensor(_SCALES + module)
        return QuantizedWeight(codes, scales, zeros, self._specs[module])

    def tensor(self, name: str) -> torch.Tensor | None:
        """The new value of an unquantized tensor; None when it has not changed."""
        path = self._where.get(_TENSOR + name)
        if path is None:
            return None
        with safe_open(path, framework="pt") as file:
            value: torch.Tensor = file.get_tensor(_TENSOR + name)
            return value

    def _path(self, part: str) -> Path:
        return self._folder / f"{part}.safetensors"

    def _index(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self._where |= dict.fromkeys(file.keys(), path)
            specs = json.loads((file.metadata() or {}).get("specs", "{}"))
        for module, (bits, group_size, symmetric, activations) in specs.items():
            self._specs[module] = WeightSpec(bits, group_size, symmetric, ActivationKind(activations))
