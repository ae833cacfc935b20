"""One token through a model that has no short way on a GPU, compiled by torch: an opt-in.

transformers' own code recorded as a graph (`cuda_graph`) still is some forty small programs a layer; torch.compile
joins them into a few. It does so for the whole step and for one size of cache, which takes up to a minute: once when
a model first writes, and again when a conversation outgrows its cache. What is compiled is then recorded like any step.
"""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel, StaticCache

from quantstudio.core.humanize import human_seconds
from quantstudio.engine import compiling
from quantstudio.engine.cuda_graph import Step, fits_graph
from quantstudio.engine.kv_cache import cache_argument
from quantstudio.engine.reporter import Reporter


class CompiledStep:
    """Callable: token `[1, 1]` and cache → logits `[vocabulary]`, the cache one position longer.

    Says what compiling took, or why it failed; raises RuntimeError then, and from then on.
    """

    def __init__(self, model: PreTrainedModel, reporter: Reporter) -> None:
        self._reporter = reporter
        self._ready: set[int] = set()
        """Sizes of caches for which there is a program."""
        self._failed = False
        self._model = model
        self._program: Step = self._plain

    def __call__(self, token: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        if self._failed:
            raise RuntimeError("this model could not be compiled")
        if cache.layers[0].max_cache_len in self._ready:
            return self._program(token, cache)
        return self._first(token, cache)

    def _first(self, token: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        self._reporter.notice("The model is being compiled for writing: up to a minute, the next time less.")
        compiling.forget_counts()
        started = time.monotonic()
        try:
            with compiling.settings_for_steps():
                logits = self._compiled()(token, cache)
        except Exception as error:
            if not compiling.is_failure(error):
                raise
            self._failed = True
            self._reporter.notice(f"The model writes without being compiled: {compiling.reason(error)}.", "warning")
            raise RuntimeError("this model could not be compiled") from error
        self._ready.add(cache.layers[0].max_cache_len)
        seconds, kept = human_seconds(time.monotonic() - started), compiling.words_if_kept()
        self._reporter.notice(f"The model was compiled for writing in {seconds}{kept}.")
        return logits

    def _plain(self, token: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        output = self._model(input_ids=token, logits_to_keep=1, **cache_argument(self._model, cache))
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _compiled(self) -> Step:
        """The program, which torch makes when it is first called for a size of cache."""
        if self._program == self._plain:
            compiling.keep_programs()
            self._program = torch.compile(self._plain, backend=compiling.BACKEND, dynamic=False)
        return self._program


def make_compiled_step(model: PreTrainedModel, device: str, reporter: Reporter) -> CompiledStep | None:
    """A compiled step for a model on `device` (cpu or cuda), whose short way, if any, is known to be missing.

    None where nothing can be compiled, which is said.
    """
    why = compiling.why_not(device)
    if not why and not fits_graph(model.config):
        why = "its layers see a window of the text that slides along, and so does its cache."
    if why:
        reporter.notice(f"The model writes without being compiled: {why}")
        return None
    return CompiledStep(model, reporter)
