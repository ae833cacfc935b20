"""Writing text with any causal language model of transformers: prompt, then token by token.

transformers' `generate` is general and pays for it on every token. This loop calls the model's own forward with a
cache that writes in place, asks for the last position's scores only, checks for a stop between any two tokens, and
hands out whole characters. It covers one sequence at a time, greedy or sampled; no beams, no batches.

What a new prompt has in common with the sequence in the cache need not be read again, so a follow-up question costs its
own tokens, not the conversation's. The numbers then come from pieces of other lengths, which bf16 rounds otherwise, and
a near-tie may fall the other way; an answer with a seed promises to be repeatable and therefore reads everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from quantstudio.core.errors import PromptTooLong, QuantStudioError
from quantstudio.core.jobs import Sampling
from quantstudio.core.recipe import KvCache
from quantstudio.engine.detokenize import Detokenizer
from quantstudio.engine.interrupt import Interrupted
from quantstudio.engine.sampling import Sampler
from quantstudio.engine.sequence import Running, make_sequence
from quantstudio.engine.stop_texts import StopTexts

PROMPT_CHUNK = 512
"""A prompt is read in pieces of this many tokens, so that scores and masks stay small and progress can be told."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How an answer went. `reason`: end (the model finished), length (a limit was reached) or stopped (by the person).

    `ttft_s`: seconds from the request to the first token. `tokens_per_s`: rate of the tokens after the first, 0 when
    there are none. `tokens` counts those written, the one that ends the answer not included. `reused_tokens` of the
    prompt were in the cache already, from the conversation before, and were not read again.
    """

    prompt_tokens: int
    tokens: int
    ttft_s: float
    tokens_per_s: float
    reason: str
    reused_tokens: int = 0


class Generator:
    """Keeps one sequence: `prefill` starts it anew, `decode_step` lengthens it, `stream` does both as an answer."""

    def __init__(self, loaded: Running, kv_cache: KvCache = KvCache.BF16) -> None:
        self._loaded = loaded
        self._sequence = make_sequence(loaded, kv_cache)
        self._tokens: list[int] = []
        self._reused = 0

    @property
    def position(self) -> int:
        """Number of tokens in the sequence."""
        return len(self._tokens)

    @property
    def context_length(self) -> int:
        """The longest sequence that the model was made for, in tokens."""
        return self._sequence.context_length

    @torch.inference_mode()
    def prefill(
        self,
        ids: Sequence[int],
        *,
        reserve: int = 0,
        cancel: threading.Event | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Start a new sequence with a prompt. Returns the logits `[vocabulary]` of the token that follows it.

        `reserve`: how many more tokens are expected, so that the cache need not grow. `on_progress` hears after each
        piece how many tokens have been read. When `cancel` is set the rest is left out, and there are no logits.
        Raises PromptTooLong.
        """
        self._require_room(ids)
        self._start(len(ids) + reserve)
        return self._read(ids, cancel, on_progress)

    @torch.inference_mode()
    def resume(
        self,
        ids: Sequence[int],
        *,
        reserve: int = 0,
        cancel: threading.Event | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """As `prefill`, but what the prompt has in common with the present sequence stays and is not read again.

        The last token always is, for its logits. Models whose layers cannot forget (recurrent ones) start anew.
        """
        self._require_room(ids)
        if not self._keep(ids, len(ids) + reserve):
            self._start(len(ids) + reserve)
        return self._read(ids[self.position :], cancel, on_progress)

    @torch.inference_mode()
    def decode_step(self, token: int) -> torch.Tensor:
        """Lengthen the sequence by one token. Returns the logits `[vocabulary]` of the next. Raises PromptTooLong."""
        if self.position >= self.context_length:
            raise self._too_long(self.position + 1)
        if self.position >= self._sequence.capacity:
            # A static cache cannot grow. Reading the text once more is rare: callers reserve what they will need.
            return self.prefill([*self._tokens, token], reserve=self.position)
        return self._append([token], None)

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        cancel: threading.Event,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[str | Stats]:
        """Answer a prompt: pieces of text as they are complete, then, last, the `Stats`.

        Stops at a token or text that ends the answer, at `sampling.max_tokens`, at the model's context length, or
        within one token (while the prompt is read: one layer) of `cancel` being set. `on_progress`: as in `prefill`.
        Raises PromptTooLong, and BadWeights when the model's scores are not numbers.
        """
        if self._loaded.tokenizer is None:
            raise QuantStudioError("This model has no tokenizer, so it cannot write text.")
        started = time.perf_counter()
        sampler, text = Sampler(sampling, list(prompt)), Detokenizer(self._loaded.tokenizer)
        stops = StopTexts(sampling.stop)
        limit = min(sampling.max_tokens, self.context_length - len(prompt))
        read = self.resume if sampling.seed is None else self.prefill
        logits = read(prompt, reserve=limit, cancel=cancel, on_progress=on_progress)
        reused = self._reused
        times: list[float] = []
        reason = "stopped"
        while not cancel.is_set():
            token = sampler.pick(logits)
            if token in self._loaded.end_tokens:
                reason = "end"
                break
            times.append(time.perf_counter())
            if piece := stops.add(text.add(token)):
                yield piece
            if stops.found:
                reason = "end"
                break
            if len(times) >= limit:
                reason = "length"
                break
            logits = self.decode_step(token)
        if piece := stops.add(text.finish()) + stops.finish():
            yield piece
        yield _stats(len(prompt), started, times, reason, reused)

    def _keep(self, ids: Sequence[int], length: int) -> bool:
        """Shorten the sequence to what it has in common with a prompt; False: with room for `length` it must be new."""
        known = min(len(self._tokens), len(ids) - 1)
        common = next((at for at in range(known) if self._tokens[at] != ids[at]), known)
        if not common or not self._shorten(common, length):
            return False
        self._reused = common
        return True

    def _shorten(self, tokens: int, room: int) -> bool:
        kept = self._sequence.cut(tokens, room)
        if kept:
            del self._tokens[tokens:]
        return kept

    def _start(self, length: int) -> None:
        """An empty sequence with room for `length` tokens."""
        self._tokens, self._reused = [], 0
        self._sequence.start(length)

    def _read(
        self, ids: Sequence[int], cancel: threading.Event | None, on_progress: Callable[[int], None] | None
    ) -> torch.Tensor:
        """Lengthen the sequence by a prompt, piece by piece; the logits after it, or none when cancelled."""
        logits = torch.empty(0)
        for start in range(0, len(ids), PROMPT_CHUNK):
            if cancel is not None and cancel.is_set():
                return torch.empty(0)
            try:
                logits = self._append(list(ids[start : start + PROMPT_CHUNK]), cancel)
            except Interrupted:
                if not self._shorten(self.position, self.position):
                    self._start(0)
                return torch.empty(0)
            if on_progress is not None:
                on_progress(self.position)
        return logits

    def _append(self, ids: list[int], cancel: threading.Event | None) -> torch.Tensor:
        logits = self._sequence.read(ids, cancel)
        self._tokens += ids
        return logits

    def _require_room(self, ids: Sequence[int]) -> None:
        if not ids:
            raise QuantStudioError("The prompt is empty.", hint="Write at least one word for the model to go on from.")
        if len(ids) >= self.context_length:
            raise self._too_long(len(ids))

    def _too_long(self, tokens: int) -> PromptTooLong:
        return PromptTooLong(
            f"The text is {tokens:,} tokens long; this model can read {self.context_length:,}.",
            hint="Shorten the text or start a new conversation.",
        )


def _stats(prompt_tokens: int, started: float, times: list[float], reason: str, reused: int) -> Stats:
    first = times[0] - started if times else time.perf_counter() - started
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    return Stats(prompt_tokens, len(times), first, rate, reason, reused)
