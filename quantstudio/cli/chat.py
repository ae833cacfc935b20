"""`chat`: a conversation in the terminal, over the same engine as the window's."""

from __future__ import annotations

import argparse
import queue
import sys
import threading

from quantstudio.cli.flags import given_values, with_flags
from quantstudio.cli.terminal import interrupt_cancels, quiet_libraries
from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled
from quantstudio.core.job_environment import prepare_this_process
from quantstudio.core.jobs import ChatJob, ChatMessage, ChatRequest, Sampling, Turn
from quantstudio.core.library import resolve_model
from quantstudio.core.recipe import ModelSection, Recipe


class Conversation:
    """Sends what the person types to the engine's thread and prints what comes back."""

    def __init__(self, job: ChatJob, sampling: Sampling, *, template: bool) -> None:
        self._job, self._sampling, self._template = job, sampling, template
        self._requests: queue.Queue[Turn | None] = queue.Queue()
        self._cancel = threading.Event()
        self._turn_over = threading.Event()
        self._messages: list[ChatMessage] = []
        self._answer = ""
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Talk until the input ends. Raises what the engine raised."""
        engine = threading.Thread(target=self._engine, name="chat engine")
        engine.start()
        try:
            while self._failure is None and (text := self._ask()):
                self._turn_over.clear()
                self._messages.append(ChatMessage(role="user", content=text))
                request = ChatRequest(messages=tuple(self._messages), template=self._template, sampling=self._sampling)
                turn = Turn(request)
                self._requests.put(turn)
                self._wait(turn)
        finally:
            self._cancel.set()
            self._requests.put(None)
            engine.join()
        if self._failure is not None:
            raise self._failure

    def _engine(self) -> None:
        from quantstudio.engine.chat import run_chat
        from quantstudio.engine.reporter import Reporter

        try:
            run_chat(self._job, self._requests, Reporter(self._show, self._cancel))
        except Cancelled:
            pass  # how a conversation ends
        except BaseException as error:  # handed to the thread that owns the terminal
            self._failure = error
        finally:
            self._turn_over.set()

    def _wait(self, turn: Turn) -> None:
        with interrupt_cancels(turn.stop):  # Ctrl+C ends the answer, not the conversation
            self._turn_over.wait()

    def _ask(self) -> str:
        try:
            return input("\nYou: ").strip()
        except EOFError:
            return ""

    def _show(self, message: protocol.Message) -> None:
        match message:
            case protocol.Tokens():
                self._answer += message.text
                print(message.text, end="", flush=True)
            case protocol.Answer():
                print(f"\n  [{message.tokens} tokens, {message.tokens_per_s:.1f} per second, first after ", end="")
                print(f"{message.ttft_s:.2f} s]")
                self._messages.append(ChatMessage(role="assistant", content=self._answer))
                self._answer = ""
                self._turn_over.set()
            case protocol.Notice():
                print(f"  {message.text}", file=sys.stderr)
            case protocol.Engine():
                print(f"  {message.detail or message.text}", file=sys.stderr)
            case _:
                pass


def chat(options: argparse.Namespace) -> int:
    """Load the model and talk."""
    resolve_model(ModelSection(id=options.model))  # before anybody is asked to say something
    prepare_this_process()
    quiet_libraries()
    given = {name: getattr(options, name) for name in Sampling.model_fields if getattr(options, name) is not None}
    machine = with_flags(Recipe(), given_values(options)).machine
    job = ChatJob(model=options.model, machine=machine)
    Conversation(job, Sampling(**given), template=not options.plain).run()
    return 0
