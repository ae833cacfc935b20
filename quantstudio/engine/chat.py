"""Conversations: one loaded model answers request after request until it is told to end.

A request that cannot be answered (a chat template that fails, a prompt that is too long) costs its own turn only: the
person reads why, and the model stays loaded. A conversation that outgrows the model's context loses its oldest turns,
and the person is told.
"""

from __future__ import annotations

import queue
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import torch

from quantstudio.core import protocol
from quantstudio.core.engines import NAMES, ONNX_RUNTIME, preferred_engine
from quantstudio.core.errors import PromptTooLong, QuantStudioError
from quantstudio.core.jobs import ChatJob, ChatRequest, Turn
from quantstudio.core.library import resolve_model
from quantstudio.core.model_info import read_model_info
from quantstudio.core.recipe import KvCache, MachineSection, ModelSection
from quantstudio.core.run_store import result_of_model
from quantstudio.core.speed_words import kernel_line, kernel_words
from quantstudio.core.usage import mark_used
from quantstudio.engine.chat_template import render
from quantstudio.engine.generate import PROMPT_CHUNK, Generator, Stats
from quantstudio.engine.load import load_model, resolve_device
from quantstudio.engine.onnx.model import OnnxModel, load_onnx
from quantstudio.engine.onnx.support import why_not
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.sequence import Running

POLL_S = 0.1


def run_chat(job: ChatJob, requests: queue.Queue[Turn | None], reporter: Reporter) -> None:
    """Load the model, then answer requests in order until None comes. Turns are counted from 0.

    Every request gets exactly one `Answer`, after its `Tokens`. Raises `Cancelled`, and what loading a model raises.
    """
    reporter.phase("load", "Loading the model", 0, 2)
    folder = resolve_model(ModelSection(id=job.model))
    mark_used(folder)
    read_model_info(folder)  # says better than any loader what is missing
    if job.machine.threads:
        torch.set_num_threads(job.machine.threads)
    loaded = _load(folder, job.machine, reporter)
    if isinstance(loaded, OnnxModel):
        reporter.emit(protocol.Engine(t=time.time(), text=NAMES[ONNX_RUNTIME]))
    for use in loaded.kernel_uses:
        reporter.emit(
            protocol.Engine(t=time.time(), text=kernel_line(use), detail=f"{kernel_words(use)}; run by {use.operator}")
        )
    reporter.phase("chat", "Ready", 1, 2)
    converse(loaded, requests, reporter, job.machine.kv_cache)


def _load(folder: Path, machine: MachineSection, reporter: Reporter) -> Running:
    """The model on the engine that was asked for; left to choose, on the one that its run found to be faster."""
    engine = preferred_engine(result_of_model(folder)) if machine.engine == "auto" else machine.engine
    # Kernels and an int8 cache are torch's; whoever wants one of them wants torch, unless they say otherwise.
    for_torch = (
        machine.kernel != "auto" or machine.kv_cache is not KvCache.BF16 or resolve_device(machine.device) != "cpu"
    )
    if engine == ONNX_RUNTIME and (machine.engine == engine or not (for_torch or why_not(folder))):
        return load_onnx(folder, reporter)
    return load_model(folder, machine.device, reporter, machine.kernel, compiled=machine.compile)


def converse(
    loaded: Running, requests: queue.Queue[Turn | None], reporter: Reporter, kv_cache: KvCache = KvCache.BF16
) -> None:
    """Answer requests in order until None comes. Raises `Cancelled`."""
    chat = Chat(loaded, reporter, kv_cache)
    number = 0
    while (turn := _next(requests, reporter)) is not None:
        chat.answer(turn, number)
        number += 1


def _next(requests: queue.Queue[Turn | None], reporter: Reporter) -> Turn | None:
    while True:
        reporter.check_cancel()
        try:
            return requests.get(timeout=POLL_S)
        except queue.Empty:
            continue


class Chat:
    """A loaded model and the means to answer with it."""

    def __init__(self, loaded: Running, reporter: Reporter, kv_cache: KvCache = KvCache.BF16) -> None:
        if loaded.tokenizer is None:
            raise QuantStudioError("This model has no tokenizer, so it cannot write text.")
        self._tokenizer = loaded.tokenizer
        self._generator = Generator(loaded, kv_cache)
        self._reporter = reporter

    def answer(self, turn: Turn, number: int) -> None:
        """Answer one request; what cannot be answered becomes a notice and an answer with the reason `failed`."""
        try:
            prompt = self._prompt(turn)
            unasked = turn.stop.is_set() and not prompt
            stats = Stats(0, 0, 0.0, 0.0, "stopped") if unasked else self._stream(prompt, turn, number)
        except QuantStudioError as error:
            self._reporter.notice(str(error), level="warning")
            stats = Stats(0, 0, 0.0, 0.0, "failed")
        self._reporter.emit(
            protocol.Answer(
                t=time.time(),
                turn=number,
                reason=stats.reason,
                prompt_tokens=stats.prompt_tokens,
                tokens=stats.tokens,
                ttft_s=stats.ttft_s,
                tokens_per_s=stats.tokens_per_s,
                reused_tokens=stats.reused_tokens,
            )
        )

    def _stream(self, prompt: Sequence[int], turn: Turn, number: int) -> Stats:
        def on_progress(done: int) -> None:
            if len(prompt) > PROMPT_CHUNK:  # others are read in one piece
                self._reporter.progress(done, len(prompt), "tokens", "Reading the conversation")

        for piece in self._generator.stream(prompt, turn.request.sampling, turn.stop, on_progress):
            if isinstance(piece, Stats):
                return piece
            self._reporter.emit(protocol.Tokens(t=time.time(), text=piece, turn=number))
            self._reporter.check_cancel()
        raise AssertionError("a stream ends with its statistics")

    def _prompt(self, turn: Turn) -> list[int]:
        """Token ids of what the model is to read, cut to what it can read; empty when stopped meanwhile."""
        request = turn.request
        if not request.messages:
            raise QuantStudioError("There is nothing to answer.", hint="Write something first.")
        if not request.template:
            return self._continuation(request)
        return self._conversation(turn)

    def _room(self, request: ChatRequest) -> int:
        """The longest prompt that leaves room for the answer, or for a quarter of the context if that is less."""
        context = self._generator.context_length
        return context - min(request.sampling.max_tokens, max(1, context // 4))

    def _continuation(self, request: ChatRequest) -> list[int]:
        ids = self._tokenize(request.messages[-1].content, add_special_tokens=True)
        room = self._room(request)
        if len(ids) > room:
            self._reporter.notice(
                f"The text is longer than the model can read; only its last {room:,} tokens are used."
            )
        return ids[-room:]

    def _conversation(self, turn: Turn) -> list[int]:
        """The newest part of the conversation that fits; a system message at the start is always kept."""
        messages, room = turn.request.messages, self._room(turn.request)
        system = [message for message in messages[:1] if message.role == "system"]
        rest = messages[len(system) :]
        starts = [index for index, message in enumerate(rest) if message.role == "user"] or [0]
        starts[0] = 0

        def ids_from(start: int) -> list[int]:
            text = render(self._tokenizer, [*system, *rest[start:]], turn.stop)
            return self._tokenize(text, add_special_tokens=False)

        ids = ids_from(0)
        if len(ids) <= room or turn.stop.is_set():
            return [] if turn.stop.is_set() else ids
        # Later starts give shorter prompts: the first that is no longer than the room.
        first = bisect_left(starts, -room, key=lambda start: -len(ids_from(start)))
        if first == len(starts):
            raise self._too_long(len(ids_from(starts[-1])), room)
        self._reporter.notice(
            f"The conversation is longer than the model can read; its first {starts[first]} messages are left out."
        )
        return ids_from(starts[first])

    def _too_long(self, tokens: int, room: int) -> PromptTooLong:
        return PromptTooLong(
            f"The last message alone is {tokens:,} tokens long; this model can read {room:,} beside its answer.",
            hint="Shorten it, or ask for a shorter answer.",
        )

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids
