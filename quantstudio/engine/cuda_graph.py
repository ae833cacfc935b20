"""Decoding on a GPU as one recorded graph, replayed for every token.

A small model is launch-bound on a GPU: a token is hundreds of kernels of a few microseconds each, and starting them
from Python takes longer than running them (0.5B in bf16 on an H200: 19 tokens/s eager, 346 under a graph). A graph
needs fixed addresses and shapes, hence a static cache. It is recorded once for each cache, and its first result is
compared with an eager step; when recording fails or the results differ, decoding stays eager and the log says so.
Where there is a short way for one token (`gpu_step`), or a compiled one (`compiled_step`), that is recorded first.
Models with sliding windows decide in Python what their cache shows, so they stay eager, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from quantstudio.engine.kv_cache import cache_argument

Step = Callable[[torch.Tensor, StaticCache], torch.Tensor]
"""Token `[1, 1]` and a cache that is in use → logits `[vocabulary]`, the cache one position longer."""

_WARM_UPS = 2
_SAME, _ALIKE = 0.02, 0.08
"""Largest relative difference between a replayed and an eager step: of the same operators, and of others, which round
elsewhere, and once more in every layer. A step that is wrong in one layer is off by half and more."""
_log = logging.getLogger(__name__)


def fits_graph(config: PretrainedConfig) -> bool:
    """Whether all layers of the model keep a plain static cache."""
    return all(type(layer) is StaticLayer for layer in StaticCache(config=config, max_cache_len=1).layers)


class GraphDecoder:
    """One sequence in a static cache of `capacity` tokens. Use under `torch.inference_mode`.

    `short`: a shorter or compiled way for one token, tried first.
    """

    def __init__(self, model: PreTrainedModel, capacity: int, short: Step | None = None) -> None:
        self.capacity = capacity
        self._model = model
        self._short = short
        self._cache = StaticCache(config=model.config, max_cache_len=capacity)
        self._token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        self._may_record = model.device.type == "cuda"

    def restart(self) -> None:
        """Forget the sequence; cache and graph stay."""
        self._cache.reset()

    def cut(self, length: int) -> None:
        """Forget what comes after the first `length` positions; later ones are hidden and written anew."""
        for layer in self._cache.layers:
            layer.cumulative_length.clamp_(max=length)

    def read(self, ids: list[int]) -> torch.Tensor:
        """Append a piece of a prompt. Returns the logits `[vocabulary]` after it."""
        return self._eager(torch.tensor([ids], device=self._token.device))

    def step(self, token: int) -> torch.Tensor:
        """Append one token. Returns the logits `[vocabulary]` after it; the next step overwrites them."""
        self._token.fill_(token)
        if self._may_record and self._graph is None:
            self._may_record = False
            return self._first_step()
        if self._graph is None:
            return self._eager(self._token)
        self._graph.replay()
        return self._logits

    def _eager(self, ids: torch.Tensor) -> torch.Tensor:
        output = self._model(input_ids=ids, logits_to_keep=1, **cache_argument(self._model, self._cache))
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _first_step(self) -> torch.Tensor:
        """An eager step, then the same step recorded and replayed in its place."""
        lengths = [layer.cumulative_length.clone() for layer in self._cache.layers]
        if (short := self._short) is not None:
            self._record(lambda: short(self._token, self._cache), lengths, _ALIKE)
        if self._graph is None:
            self._record(lambda: self._eager(self._token), lengths, _SAME)
        if self._graph is not None:
            return self._logits
        self._rewind(lengths)
        return self._eager(self._token)

    def _record(self, way: Callable[[], torch.Tensor], lengths: list[torch.Tensor], tolerance: float) -> None:
        """Keep the step as a graph, if it can be recorded and its result is that of an eager step."""
        graph = torch.cuda.CUDAGraph()
        try:
            self._warm_up(way, lengths)
            with torch.cuda.graph(graph):
                self._logits = way()
        except RuntimeError as error:
            _log.warning("Decoding without a CUDA graph: %s", error)
            self._rewind(lengths)
            return
        self._rewind(lengths)
        expected = self._eager(self._token).float()
        self._rewind(lengths)
        graph.replay()
        difference = float((self._logits.float() - expected).norm() / expected.norm())
        if difference <= tolerance:
            self._graph = graph
        else:
            _log.warning("Decoding without a CUDA graph: its result is %.1f %% off.", 100 * difference)

    def _warm_up(self, way: Callable[[], torch.Tensor], lengths: list[torch.Tensor]) -> None:
        """Run the step on another stream, as recording requires, so that libraries set themselves up."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                way()
                self._rewind(lengths)
        torch.cuda.current_stream().wait_stream(stream)

    def _rewind(self, lengths: list[torch.Tensor]) -> None:
        """Back to the length before the step; what was written behind it is written anew."""
        for layer, length in zip(self._cache.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)
