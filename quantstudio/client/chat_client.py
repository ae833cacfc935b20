"""A conversation as the window sees it: one worker keeps one model loaded and answers request after request."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QObject, Signal

from quantstudio.client.worker_process import Patience, WorkerProcess
from quantstudio.core import protocol
from quantstudio.core.jobs import ChatJob, ChatRequest
from quantstudio.core.protocol import Command, Message
from quantstudio.core.recipe import MachineSection

READY_PHASE = "chat"


class ChatClient(QObject):
    """Opens one model at a time. Closing or opening another ends the worker.

    After `open`: `ready`, or `failed`. After `generate`: any number of `reading`, then of `piece`, perhaps `notice`,
    then one `answered`. `failed` and `closed` mean that the model is no longer loaded; open it again to go on.
    """

    phase = Signal(str)
    ready = Signal()
    piece = Signal(str)
    notice = Signal(str)
    answered = Signal(object)
    reading = Signal(float)
    """Share of the prompt that has been read, 0 to 1."""
    engine = Signal(object)
    """What runs a part of the model (a `protocol.Engine`), before `ready`."""
    memory = Signal(object)
    failed = Signal(object)
    closed = Signal()

    def __init__(
        self,
        parent: QObject | None = None,
        *,
        command: Sequence[str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(parent)
        self._command, self._patience = command, patience
        self._worker: WorkerProcess | None = None
        self.model = ""
        """The model that is open or being opened; empty when none is."""
        self.is_ready = False
        self.is_answering = False

    def open(self, model: str, machine: MachineSection | None = None) -> None:
        """Load a model ('starter', a folder, or owner/name from the cache) in a new worker."""
        self.close()
        worker = WorkerProcess(self, command=self._command, patience=self._patience)
        worker.received.connect(self._on_received)
        worker.finished.connect(self._on_finished)
        self._worker, self.model = worker, model
        worker.start(ChatJob(model=model, machine=machine or MachineSection()))

    def generate(self, request: ChatRequest) -> None:
        """Ask for an answer. Nothing when no model is open."""
        if self._worker is not None:
            self.is_answering = True
            self._worker.send(Command(name="generate", payload=request.model_dump(mode="json")))

    def stop(self) -> None:
        """End the current answer; what was written so far stays, and `answered` comes with the reason `stopped`."""
        if self._worker is not None:
            self._worker.send(Command(name="stop"))

    def close(self) -> None:
        """End the worker at once; nothing in it needs to be saved."""
        worker = self._worker
        if worker is None:
            return
        worker.received.disconnect(self._on_received)
        worker.finished.disconnect(self._on_finished)
        self._forget()
        worker.retire()
        self.closed.emit()

    def _forget(self) -> None:
        self._worker, self.model = None, ""
        self.is_ready = self.is_answering = False

    def _on_received(self, batch: list[Message]) -> None:
        worker = self._worker
        text: list[str] = []
        for message in batch:
            if worker is not self._worker:
                return  # closed by someone who listens here
            if isinstance(message, protocol.Tokens):
                text.append(message.text)
                continue
            self._say(text)
            self._tell(message)
        self._say(text)

    def _say(self, text: list[str]) -> None:
        """Pass on what has gathered as one piece: a fast model writes several tokens between two repaints."""
        if text:
            joined = "".join(text)
            text.clear()
            self.piece.emit(joined)

    def _tell(self, message: Message) -> None:
        match message:
            case protocol.Phase(id=id, title=title):
                self.phase.emit(title)
                if id == READY_PHASE:
                    self.is_ready = True
                    self.ready.emit()
            case protocol.Notice(text=text):
                self.notice.emit(text)
            case protocol.Progress(done=done, total=total) if self.is_answering and total > 0:
                self.reading.emit(min(1.0, done / total))
            case protocol.Engine():
                self.engine.emit(message)
            case protocol.Memory():
                self.memory.emit(message)
            case protocol.Answer():
                self.is_answering = False
                self.answered.emit(message)
            case _:
                pass  # the end is told when the process is gone

    def _on_finished(self) -> None:
        worker = self._worker
        if worker is None:
            return
        self._forget()
        worker.deleteLater()
        if worker.state.error is not None:
            self.failed.emit(worker.state.error)
        self.closed.emit()
