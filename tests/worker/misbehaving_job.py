"""The real worker with a job that misbehaves on request, in place of the engine."""

import ctypes
import os
import re
import subprocess
import sys
import threading
import time

from quantstudio.core import protocol
from quantstudio.core.errors import DiskProblem
from quantstudio.core.protocol import Log, Metric, Notice, Phase, Progress, Result, Tokens
from quantstudio.worker.serve import serve

WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def echo(payload, session):
    return Result(t=time.time(), data=payload)


@way
def cancellable(payload, session):
    session.sink(Phase(id="a", title="A", index=0, total=1))
    assert session.cancel.wait(60)
    return protocol.CancelledMessage(t=time.time())


@way
def known_error(payload, session):
    raise DiskProblem("The disk is full.", why="No room.", hint="Free some.", field="output")


@way
def unknown_error(payload, session):
    raise ZeroDivisionError("division by zero")


@way
def memory_error(payload, session):
    raise MemoryError


@way
def leaves(payload, session):
    sys.exit("a library thought it was alone")


class PanicException(BaseException):
    """As Rust libraries raise it: not an Exception."""


@way
def panic(payload, session):
    raise PanicException("called `Option::unwrap()` on a `None` value")


@way
def ends_twice(payload, session):
    session.sink(Result(data={"first": True}))
    session.sink(Notice(level="info", text="late"))
    return Result(data={"first": False})


@way
def nan(payload, session):
    session.sink(Metric(name="loss", value=float("nan"), step=3))
    return Result(data={"value": float("inf")})


@way
def prints(payload, session):
    """Everything that would break a protocol on stdout, and a question on stdin."""
    print("python print")
    ctypes.CDLL(None).puts(b"C puts")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "child echo"], check=True)
    os.write(1, b"raw write\n")
    try:
        input("Do you wish to run the custom code? [y/N] ")
        answered = True
    except EOFError:
        answered = False
    print("surrogate \udcff")
    return Result(data={"answered": answered})


@way
def torrent(payload, session):
    """More than any pipe holds, while nobody reads; tells how long the job took to say it."""
    started = time.perf_counter()
    for step in range(100_000):
        session.sink(Progress(done=step, total=100_000))
        session.sink(Metric(name="loss", value=1.0, step=step))
        session.sink(Log(level="info", text=f"line {step}"))
        session.sink(Tokens(text="ab", turn=0))
        if step % 10_000 == 0:
            session.sink(Notice(level="info", text=f"notice {step}"))
    return Result(data={"seconds": time.perf_counter() - started})


@way
def asked(payload, session):
    """Tells what a chat was asked by three requests, and which of them were stopped when the last one came."""
    turns = [session.requests.get(timeout=60) for _ in range(3)]
    return Result(data={"turns": [[turn.request.messages[0].content, turn.stop.is_set()] for turn in turns]})


@way
def imports(payload, session):
    return Result(data={"loaded": [name for name in ("torch", "transformers", "PySide6") if name in sys.modules]})


@way
def children(payload, session):
    """Starts a child with a child, names them, and works on."""
    code = "import subprocess,time; p=subprocess.Popen(['sleep','600']); print(p.pid, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    session.sink(Notice(level="info", text=f"{child.pid} {int(child.stdout.readline())}"))
    time.sleep(600)


@way
def deadlock(payload, session):
    """Holds the interpreter's lock for ever, so that no thread of the worker can do anything."""
    session.sink(Notice(level="info", text="stuck"))
    time.sleep(0.5)
    re.match(r"(a+)+$", "a" * 64 + "b")


@way
def threads_left(payload, session):
    """Leaves a thread that never ends, which an orderly exit of Python would wait for."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    return Result(data={})


if __name__ == "__main__":
    serve(WAYS[sys.argv[1]])
