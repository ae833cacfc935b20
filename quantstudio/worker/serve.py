"""One worker process from its first word to its last: says hello, is told one job, carries it out, ends.

Three threads stand beside the job: the outbox writes, the reader takes commands, the heart beats. The reader also
notices that the window is gone, and then ends everything at once.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from quantstudio import __version__
from quantstudio.core import protocol
from quantstudio.core.protocol import Message
from quantstudio.engine import failures
from quantstudio.worker.channel import Channel, take_stdio
from quantstudio.worker.lifeline import die, guard_children, offer_to_oom_killer, tie_to_parent
from quantstudio.worker.outbox import Outbox
from quantstudio.worker.session import Session

HEARTBEAT_S = 1.0
Perform = Callable[[dict[str, Any], Session], Message]
"""Carries out the job in the payload of `start`; returns its terminal message, or raises."""


def serve(perform: Perform) -> NoReturn:
    """Be a worker on this process's stdin and stdout. Does not return."""
    parent = os.getppid()
    channel = take_stdio()
    # Written at once and by itself: everything below takes longer than the window should wait for a sign of life.
    _say_hello(channel)
    guard_children()
    tie_to_parent(parent)
    offer_to_oom_killer()
    faulthandler.enable()
    outbox = Outbox(channel.write, broken=die)
    session = Session(outbox)
    threading.Thread(target=_read, args=(channel, session), name="commands", daemon=True).start()
    threading.Thread(target=_beat, args=(outbox,), name="heartbeat", daemon=True).start()
    outbox.finish(_terminal(perform, session))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of libraries can hold an interpreter's end up for ever, and all is written.
    os._exit(0)


def _say_hello(channel: Channel) -> None:
    hello = protocol.Hello(t=time.time(), protocol=protocol.PROTOCOL_VERSION, version=__version__, pid=os.getpid())
    try:
        channel.write(protocol.encode(hello))
    except OSError:
        die()


def _read(channel: Channel, session: Session) -> None:
    try:
        for line in channel.lines():
            session.take(line)
    finally:
        die()


def _beat(outbox: Outbox) -> None:
    while True:
        time.sleep(HEARTBEAT_S)
        outbox(protocol.Heartbeat(t=time.time()))


def _terminal(perform: Perform, session: Session) -> Message:
    try:
        payload = session.wait_for_job()
        if payload is None:
            return protocol.CancelledMessage(t=time.time())
        return perform(payload, session)
    except BaseException as failure:  # panics of Rust libraries are not Exceptions
        print(failures.details(failure), file=sys.stderr)  # noqa: T201
        return failures.as_message(failure, time.time())
