"""One text inside a model that runs on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from quantstudio.engine.interrupt import Interrupted
from quantstudio.engine.onnx.graph import key_name, value_name
from quantstudio.engine.onnx.model import OnnxModel

_STEP = 256
"""Buffers hold a multiple of this many positions and at least double when they grow."""
_LOOK_S = 0.02
"""How often a cancelled request is noticed while a prompt is read."""


class OnnxSequence:
    """A `Sequence`: keys and values lie in fp32 buffers that the graph writes in place, so cutting costs nothing."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._binding = model.session.io_binding()
        self._last_logits = _value(torch.empty(1, 1, model.shape.vocabulary))
        names = [name(layer) for layer in range(model.shape.layers) for name in (key_name, value_name)]
        self._buffers = {name: torch.empty(1, model.shape.shared_heads, 0, model.shape.head_size) for name in names}
        self._room = 0
        self._position = 0

    @property
    def context_length(self) -> int:
        return self._model.context_length

    @property
    def position(self) -> int:
        return self._position

    @property
    def capacity(self) -> int:
        return self._model.context_length

    def start(self, length: int) -> None:
        self._position = 0
        self._grow(length)

    def cut(self, tokens: int, room: int) -> bool:
        self._position = tokens
        return True

    def read(self, ids: list[int], cancel: threading.Event | None) -> torch.Tensor:
        self._binding.bind_cpu_input("wanted", np.array([-1]))
        self._binding.bind_ortvalue_output("logits", self._last_logits)
        self._run(ids, cancel)
        return torch.from_numpy(self._last_logits.numpy()[0, 0].copy())

    def read_all(self, ids: list[int], logits: torch.Tensor) -> None:
        """As `read`; the logits after each of the tokens go into `logits`, fp32 `[tokens, vocabulary]` and dense."""
        self._binding.bind_cpu_input("wanted", np.arange(len(ids)))
        self._binding.bind_ortvalue_output("logits", _value(logits[None]))
        self._run(ids, None)

    def _run(self, ids: list[int], cancel: threading.Event | None) -> None:
        end = self._position + len(ids)
        self._grow(end)
        hidden = self._model.embedding(torch.tensor([ids])).float()
        self._binding.bind_ortvalue_input("hidden", _value(hidden))
        self._binding.bind_cpu_input("last_position", np.array([end - 1], dtype=np.int32))
        self._binding.bind_cpu_input("length", np.array(end, dtype=np.int32))
        with _ended_by(cancel if len(ids) > 1 else None) as options:
            self._model.session.run_with_iobinding(self._binding, options)
        self._position = end

    def _grow(self, length: int) -> None:
        """Make room for `length` positions; what was read stays."""
        if length <= self._room:
            return
        self._room = min(-(-max(length, 2 * self._room) // _STEP) * _STEP, -(-self.capacity // _STEP) * _STEP)
        for name, old in self._buffers.items():
            new = old.new_zeros((*old.shape[:2], self._room, old.shape[3]))
            new[:, :, : self._position] = old[:, :, : self._position]
            self._buffers[name] = new
            value = _value(new)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(f"new_{name}", value)
        self._bind_rotation()

    def _bind_rotation(self) -> None:
        """Cosines and sines of every position that there is room for; the halves of a head turn alike."""
        half = self._model.shape.head_size // 2
        tables = self._model.rotary(torch.empty(1, dtype=torch.float32), torch.arange(self._room)[None])
        for name, table in zip(("cosines", "sines"), tables, strict=True):
            self._binding.bind_ortvalue_input(name, _value(table[0, :, :half].float().contiguous()))


def window_logits(model: OnnxModel, ids: torch.Tensor, piece: int) -> Iterator[torch.Tensor]:
    """Logits `[windows, piece, vocabulary]` for ids `[windows, length]`, piece after piece along the windows.

    Large, so they are written where they are handed over, and there is one piece at a time.
    """
    sequences = [OnnxSequence(model) for _ in ids]
    for sequence in sequences:
        sequence.start(ids.shape[1])
    for start in range(0, ids.shape[1], piece):
        pieces = ids[:, start : start + piece]
        logits = torch.empty(*pieces.shape, model.shape.vocabulary)
        for sequence, row, place in zip(sequences, pieces.tolist(), logits, strict=True):
            sequence.read_all(row, place)
        yield logits


@contextmanager
def _ended_by(cancel: threading.Event | None) -> Iterator[Any]:
    """Options for a run that ends soon after `cancel` is set, which then raises Interrupted."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    if cancel is None:
        yield options
        return
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if cancel.wait(_LOOK_S):
                options.terminate = True
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield options
    except Exception as error:  # the library has no class of its own for it
        if options.terminate:
            raise Interrupted from error
        raise
    finally:
        done.set()
        watcher.join()


def _value(tensor: torch.Tensor) -> Any:
    """The tensor's own memory, as the library holds values."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())
