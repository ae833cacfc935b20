"""One worker as the window sees it: a stream of messages that ends in exactly one terminal message, come what may.

The process may be killed, hang, speak another protocol, or end without a word; whoever listens here sees a job that
starts, reports, and ends once. Every message is taken into `state` at once and in order, but the window hears of them
in batches, at most every `BATCH_MS`: 20,000 messages a second must not become 20,000 repaints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QCoreApplication, QObject, QProcess, QTimer, Signal

from quantstudio.client.line_reader import LineReader
from quantstudio.client.process_group import kill_group, start_in_own_group
from quantstudio.client.process_outcome import ProcessOutcome
from quantstudio.client.worker_command import LogFile, worker_command, worker_environment
from quantstudio.core import protocol
from quantstudio.core.errors import ProtocolMismatch, WorkerLost
from quantstudio.core.jobs import AnyJob
from quantstudio.core.protocol import Command, Message
from quantstudio.core.run_state import RunState, Status

BATCH_MS = 40
CHUNK = 1 << 16
"""Bytes taken from the pipe before the event loop gets its turn: about 3 ms of work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long each step may take, in seconds, before the next and ruder one."""

    hello: float = 30.0
    cancel: float = 4.0
    terminate: float = 3.0
    exit: float = 10.0


class WorkerProcess(QObject):
    """Starts a worker for one job. Use once; make another for the next job.

    `received` carries batches of messages (a list), `finished` comes last and once, when the process and all its
    children are gone and `state` is final. `command` replaces the real worker in tests.
    """

    received = Signal(object)
    finished = Signal()

    def __init__(
        self,
        parent: QObject | None = None,
        *,
        command: Sequence[str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(parent)
        self.state = RunState()
        self._command = list(command or worker_command())
        self._patience = patience or Patience()
        self._reader = LineReader()
        self._batch: list[Message] = []
        self._memory: protocol.Memory | None = None
        self._greeted = False
        self._closed = False
        self._told_broken = False
        self._pid = 0
        self._exit: tuple[int, QProcess.ExitStatus] | None = None
        self._job: AnyJob | None = None
        self._log: LogFile | None = None
        self._process = self._make_process()
        self._batch_timer = self._timer(self._emit_batch)
        self._drain_timer = self._timer(self._drain)
        self._step: Callable[[WorkerProcess], None] = WorkerProcess._no_hello
        self._ladder = self._timer(self._take_step)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._pid != 0 and self._exit is None and not self._closed

    @property
    def pid(self) -> int:
        """Id of the process and of its group; 0 before the start."""
        return self._pid

    def start(self, job: AnyJob) -> None:
        """Start the process; the job is sent when it has said hello. What goes wrong arrives as an error message."""
        self._job = job
        self._log = LogFile.for_job(job)
        self._process.setStandardErrorFile(str(self._log.path), QProcess.OpenModeFlag.Append)
        self.state.status = Status.STARTING
        self._climb(self._patience.hello, WorkerProcess._no_hello)
        self._process.start(self._command[0], self._command[1:])
        self._pid = self._process.processId()

    def send(self, command: Command) -> None:
        """Send a command. Nothing when the process does not run."""
        if self.running:
            self._process.write(command.encode())

    def cancel(self) -> None:
        """Ask the job to stop and clean up; after a while, end it by force. Asking again changes nothing."""
        if self.state.status.final or self.state.status is Status.CANCELLING or not self.running:
            return
        self.state.status = Status.CANCELLING
        self.send(Command(name="cancel"))
        self._climb(self._patience.cancel, WorkerProcess._terminate)

    def kill(self) -> None:
        """End the process and all its children at once; `finished` comes when they are gone.

        Does not wait: the system may take seconds to give a large process's memory back.
        """
        if not self.running:
            return
        if not self.state.status.final:
            self.state.status = Status.CANCELLING
        kill_group(self._pid)
        self._process.kill()

    def shutdown(self) -> None:
        """As `kill`, and wait until it is gone; for the end of the program, when no event loop will tell."""
        self.kill()
        if self.running:
            self._process.waitForFinished(5000)
        while self._exit is not None and not self._closed:
            self._drain()

    def retire(self) -> None:
        """As `kill`, for an owner that does not care any more: the object looks after itself and then goes."""
        self.setParent(QCoreApplication.instance())
        self.finished.connect(self.deleteLater)
        if self.running:
            self.kill()
        else:
            self.deleteLater()

    def _make_process(self) -> QProcess:
        process = QProcess(self)
        process.setProcessEnvironment(worker_environment())
        start_in_own_group(process)
        process.readyReadStandardOutput.connect(self._drain)
        process.errorOccurred.connect(self._on_process_error)
        process.finished.connect(self._on_exit)
        if application := QCoreApplication.instance():
            application.aboutToQuit.connect(self.shutdown)
        return process

    def _timer(self, slot: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.timeout.connect(slot)
        return timer

    def _climb(self, seconds: float, step: Callable[[WorkerProcess], None]) -> None:
        """Do `step` in so many seconds, instead of whatever was to be done before."""
        self._step = step
        self._ladder.start(round(seconds * 1000))

    def _take_step(self) -> None:
        self._step(self)

    def _terminate(self) -> None:
        # Without a handler in the worker this ends it; if a library has put one in place, it may still clean up.
        self._process.terminate()
        self._climb(self._patience.terminate, WorkerProcess._force)

    def _force(self) -> None:
        if not self.state.status.final:
            text = "The job did not stop when asked, so its process was ended by force."
            self._apply(protocol.Notice(t=time.time(), level="warning", text=text))
        kill_group(self._pid)
        self._process.kill()

    def _no_hello(self) -> None:
        what = "The process that does the work did not start in time."
        why = f"It said nothing for {self._patience.hello:.0f} seconds."
        self._fail(WorkerLost.kind, what, why, "The machine may be very busy. Try again.")

    def _drain(self) -> None:
        """Take in one piece of what waits in the pipe; the event loop comes between two pieces."""
        if self._closed:
            return
        for message in self._reader.feed(bytes(self._process.read(CHUNK).data())):
            self._take(message)
        if self._reader.broken and not self._told_broken:
            self._told_broken = True
            text = "The worker sent a line that is no message; it was passed over, as any further ones will be."
            self._apply(protocol.Log(t=time.time(), level="warning", text=text))
        if self._process.bytesAvailable():
            self._drain_timer.start(0)
        elif self._exit is not None:
            self._close()

    def _take(self, message: Message) -> None:
        if not self._greeted:
            self._greet(message)
            return
        if isinstance(message, protocol.Memory):
            self._memory = message
        self._apply(message)

    def _greet(self, message: Message) -> None:
        if self.state.status.final:
            return
        if not isinstance(message, protocol.Hello):
            why = f"Its first word was {message.type}, not hello."
            self._fail(ProtocolMismatch.kind, "The process that does the work did not introduce itself.", why)
        elif message.protocol != protocol.PROTOCOL_VERSION:
            self._fail(
                ProtocolMismatch.kind,
                "Window and worker come from different versions of QuantStudio.",
                f"The window speaks protocol {protocol.PROTOCOL_VERSION}, the worker {message.protocol}.",
                "Close the window and start it again; if that does not help, install QuantStudio anew.",
            )
        else:
            self._greeted = True
            self._apply(message)
            if self._job is not None and self.state.status is not Status.CANCELLING:
                self._ladder.stop()
                self.send(Command(name="start", payload=self._job.model_dump(mode="json")))

    def _apply(self, message: Message) -> None:
        if self.state.status.final:
            return
        cancelling = self.state.status is Status.CANCELLING
        self.state.apply(message)
        if cancelling and not self.state.status.final:
            self.state.status = Status.CANCELLING
        self._batch.append(message)
        if isinstance(message, protocol.TERMINAL):
            self._climb(self._patience.exit, WorkerProcess._force)
        if isinstance(message, protocol.Answer):
            self._batch_timer.start(0)  # who stopped an answer waits for it
        elif not self._batch_timer.isActive():
            self._batch_timer.start(BATCH_MS)

    def _fail(self, kind: str, what: str, why: str, hint: str = "") -> None:
        self._apply(protocol.Error(t=time.time(), kind=kind, what=what, why=why, hint=hint))
        self._force()

    def _emit_batch(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self.received.emit(batch)

    def _on_process_error(self, error: QProcess.ProcessError) -> None:
        if error is not QProcess.ProcessError.FailedToStart:
            return  # a crash also arrives as an exit, a broken pipe as one soon after
        why = f"{self._process.errorString()}."
        hint = "Check that Python and QuantStudio are still installed where they were."
        self._apply(
            protocol.Error(
                t=time.time(), kind=WorkerLost.kind, what="The work could not be started.", why=why, hint=hint
            )
        )
        self._close()

    def _on_exit(self, code: int, status: QProcess.ExitStatus) -> None:
        self._exit = (code, status)
        # Children that the worker left behind; its group's id stays taken while one of them lives.
        kill_group(self._pid)
        self._drain()

    def _close(self) -> None:
        self._closed = True
        self._drain_timer.stop()
        if not self.state.status.final:
            self._apply(self._ending())
        self._ladder.stop()
        self._batch_timer.stop()
        self._emit_batch()
        if self._log is not None:
            self._log.close()
        self.finished.emit()

    def _ending(self) -> Message:
        """The terminal message that the worker did not send."""
        if self.state.status is Status.CANCELLING:
            return protocol.CancelledMessage(t=time.time())
        code, status = self._exit or (0, QProcess.ExitStatus.NormalExit)
        outcome = ProcessOutcome(
            code=code,
            crashed=status is QProcess.ExitStatus.CrashExit,
            memory=self._memory,
            log_tail=self._log.tail() if self._log else "",
        )
        return outcome.error()
