"""One text inside a running model: what it has read, kept so that the next token costs one step.

`Generator` keeps the tokens and decides what is read again; a sequence only computes. There is one over torch, here,
and one over ONNX Runtime, in `engine.onnx`.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch

from quantstudio.core.recipe import KvCache
from quantstudio.engine.cuda_graph import GraphDecoder, fits_graph
from quantstudio.engine.interrupt import interrupted_by
from quantstudio.engine.kv_cache import cache_argument, cut, make_cache
from quantstudio.engine.load import LoadedModel
from quantstudio.engine.onnx.model import OnnxModel
from quantstudio.engine.onnx.sequence import OnnxSequence

_GRAPH_STEP = 1024
"""Static caches on a GPU hold a multiple of this many tokens, so that one graph serves most of a conversation."""


class Sequence(Protocol):
    """Use under `torch.inference_mode`."""

    @property
    def context_length(self) -> int:
        """The longest text that the model was made for, in tokens."""
        ...

    @property
    def position(self) -> int:
        """Tokens read so far."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that it can hold; for more it must be started anew."""
        ...

    def start(self, length: int) -> None:
        """Forget everything and make room for `length` tokens."""
        ...

    def cut(self, tokens: int, room: int) -> bool:
        """Forget what comes after the first `tokens`. False, with nothing done: it cannot, or lacks room for `room`."""
        ...

    def read(self, ids: list[int], cancel: threading.Event | None) -> torch.Tensor:
        """Append tokens. Returns the logits `[vocabulary]` of the one that follows.

        Raises Interrupted soon after `cancel` is set; it must be cut or started before it reads on.
        """
        ...


Running = LoadedModel | OnnxModel
"""A model that can write text, whichever engine runs it."""


def make_sequence(model: Running, kv_cache: KvCache) -> Sequence:
    """An empty sequence; ONNX Runtime keeps keys and values in fp32, whatever `kv_cache` says."""
    return OnnxSequence(model) if isinstance(model, OnnxModel) else TorchSequence(model, kv_cache)


class TorchSequence:
    """A sequence over transformers' own modules, a recorded graph (GPU) or the short way for one token (CPU).

    `kv_cache`: how keys and values are kept; on a GPU, int8 gives up the recorded graph.
    """

    def __init__(self, loaded: LoadedModel, kv_cache: KvCache) -> None:
        self._loaded = loaded
        self._kv_cache = kv_cache
        self._model = loaded.model
        self._device = torch.device(loaded.device)
        self._cache = make_cache(loaded.model.config, reserve=0, kind=kv_cache)
        static = kv_cache is KvCache.BF16  # what a graph replays holds no other cache
        self._uses_graph = self._device.type == "cuda" and static and fits_graph(loaded.model.config)
        self._graph: GraphDecoder | None = None
        self._position = 0

    @property
    def context_length(self) -> int:
        config = self._model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", 0) or 1 << 20)

    @property
    def position(self) -> int:
        return self._position

    @property
    def capacity(self) -> int:
        return self._graph.capacity if self._graph is not None else self.context_length

    def start(self, length: int) -> None:
        self._position = 0
        if not self._uses_graph:
            self._cache = make_cache(self._model.config, reserve=length, kind=self._kv_cache)
        elif self._graph is not None and length <= self._graph.capacity:
            self._graph.restart()
        else:
            capacity = min(-(-length // _GRAPH_STEP) * _GRAPH_STEP, self.context_length)
            way = self._loaded.gpu_step or self._loaded.compiled_step
            self._graph = GraphDecoder(self._model, capacity, way)

    def cut(self, tokens: int, room: int) -> bool:
        if self._graph is None:
            done = not self._uses_graph and cut(self._cache, tokens)
        elif done := room <= self._graph.capacity:
            self._graph.cut(tokens)
        if done:
            self._position = tokens
        return done

    def read(self, ids: list[int], cancel: threading.Event | None) -> torch.Tensor:
        with interrupted_by(cancel, self._model):
            logits = self._forward(ids)
        self._position += len(ids)
        return logits

    def _forward(self, ids: list[int]) -> torch.Tensor:
        if self._graph is not None:
            return self._graph.step(ids[0]) if self._position and len(ids) == 1 else self._graph.read(ids)
        if self._loaded.step is not None and len(ids) == 1:
            return self._loaded.step(ids[0], self._cache)
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            logits_to_keep=1,
            **cache_argument(self._model, self._cache),
        )
        last: torch.Tensor = output.logits[0, -1]
        return last
