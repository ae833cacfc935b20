"""The real worker process, with jobs that misbehave in place of the engine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from quantstudio.core.protocol import PROTOCOL_VERSION, TERMINAL, Command, Hello, decode

TESTS = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS.parent)}
START = Command(name="start", payload={"kind": "measure", "model": "starter"})


@pytest.fixture
def worker():
    """Start a worker in a group of its own: `worker("echo")`; a process with pipes."""
    processes = []

    def start(way):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-P", str(TESTS / "worker" / "misbehaving_job.py"), way],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def tell(process, *commands):
    for command in commands:
        process.stdin.write(command if isinstance(command, bytes) else command.encode())
    process.stdin.flush()


def until_end(process):
    """Every message up to the end of the worker's output, and what it wrote to its log."""
    messages = [decode(line) for line in process.stdout]
    log = process.stderr.read().decode()
    assert process.wait(20) == 0
    assert isinstance(messages[0], Hello)
    assert isinstance(messages[-1], TERMINAL)
    assert sum(isinstance(message, TERMINAL) for message in messages) == 1
    return messages, log


def test_hello_start_result(worker):
    process = worker("echo")
    hello = decode(process.stdout.readline())
    assert (hello.protocol, hello.pid) == (PROTOCOL_VERSION, process.pid)
    tell(process, START)
    line = process.stdout.readlines()[-1]
    assert decode(line).data == START.payload


def test_hello_comes_before_anything_heavy(worker):
    process = worker("imports")
    tell(process, START)
    messages, _ = until_end(process)
    assert messages[-1].data == {"loaded": []}


def test_cancel(worker):
    process = worker("cancellable")
    tell(process, START)
    while decode(process.stdout.readline()).type != "phase":
        pass
    tell(process, Command(name="cancel"))
    assert decode(process.stdout.readlines()[-1]).type == "cancelled"


def test_cancel_before_start(worker):
    process = worker("echo")
    tell(process, Command(name="cancel"), START)
    messages, _ = until_end(process)
    assert messages[-1].type == "cancelled"


@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [
        ("known_error", "disk", "The disk is full."),
        ("unknown_error", "internal", "division by zero"),
        ("memory_error", "out_of_memory", "memory"),
        ("leaves", "internal", "SystemExit"),
        ("panic", "internal", "PanicException"),
        ("nan", "internal", "could not be sent"),
    ],
)
def test_whatever_escapes_becomes_one_error(worker, way, kind, words):
    process = worker(way)
    tell(process, START)
    messages, _ = until_end(process)
    assert messages[-1].kind == kind
    assert words in f"{messages[-1].what} {messages[-1].why}"


def test_only_the_first_end_is_sent(worker):
    process = worker("ends_twice")
    tell(process, START)
    messages, _ = until_end(process)
    assert messages[-1].data == {"first": True}


def test_nothing_that_a_library_prints_reaches_the_protocol(worker):
    process = worker("prints")
    tell(process, START)
    messages, log = until_end(process)
    assert messages[-1].data == {"answered": False}
    for words in ("python print", "C puts", "child echo", "raw write", r"surrogate \udcff"):
        assert words in log


def test_a_window_that_reads_late_loses_no_state_and_holds_nothing_up(worker):
    process = worker("torrent")
    tell(process, START)
    time.sleep(1.0)
    messages, _ = until_end(process)
    notices = [message.text for message in messages if message.type == "notice"]
    assert notices == [f"notice {step}" for step in range(0, 100_000, 10_000)]
    assert "".join(message.text for message in messages if message.type == "tokens") == "ab" * 100_000
    assert [message for message in messages if message.type == "progress"][-1].done == 99_999
    assert messages[-1].data["seconds"] < 30  # about 1 s; it would never end if it waited for the pipe


def test_broken_and_unknown_commands_are_passed_over(worker):
    process = worker("echo")
    tell(process, b"nonsense\n", b"[1]\n", b'{"cmd":7}\n', b'{"cmd":"dance"}\n', b"[" * 100_000 + b"\n")
    tell(process, b'{"cmd":"generate","messages":7}\n', START)
    messages, _ = until_end(process)
    warnings = [message.text for message in messages if message.type == "log"]
    assert len(warnings) == 6
    assert any("'dance'" in text for text in warnings)
    assert messages[-1].type == "result"


def ask(text):
    return Command(name="generate", payload={"messages": [{"role": "user", "content": text}]})


def test_stop_concerns_the_questions_before_it_only(worker):
    process = worker("asked")
    tell(process, START, ask("one"), ask("two"), Command(name="stop"), ask("three"))
    messages, _ = until_end(process)
    assert messages[-1].data == {"turns": [["one", True], ["two", True], ["three", False]]}


def test_the_heart_beats(worker):
    process = worker("cancellable")
    tell(process, START)
    while decode(process.stdout.readline()).type != "heartbeat":
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_the_end_of_stdin_ends_worker_and_children_at_once(worker):
    process = worker("children")
    tell(process, START)
    while (message := decode(process.stdout.readline())).type != "notice":
        pass
    children = [psutil.Process(int(pid)) for pid in message.text.split()]
    process.stdin.close()
    assert process.wait(20) == -9
    rest = [decode(line) for line in process.stdout]
    assert not any(isinstance(message, TERMINAL) for message in rest)
    assert all(is_gone(child) for child in children)


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_children_go_with_a_killed_worker(worker):
    process = worker("children")
    tell(process, START)
    while (message := decode(process.stdout.readline())).type != "notice":
        pass
    children = [psutil.Process(int(pid)) for pid in message.text.split()]
    process.kill()
    assert all(is_gone(child) for child in children)


def test_a_thread_that_never_ends_holds_nothing_up(worker):
    process = worker("threads_left")
    tell(process, START)
    messages, _ = until_end(process)
    assert messages[-1].type == "result"


def is_gone(process, timeout=20.0):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_the_module_runs_and_names_what_it_cannot_do():
    """`python -m quantstudio.worker` itself, with a job that no engine is needed to refuse."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "quantstudio.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    process.stdin.write(json.dumps({"cmd": "start", "kind": "dance"}).encode() + b"\n")
    process.stdin.flush()
    messages = [decode(line) for line in process.stdout]
    assert process.wait(20) == 0
    process.stdin.close()
    process.stdout.close()
    assert [message.type for message in messages if message.type != "heartbeat"] == ["hello", "error"]
    assert messages[-1].kind == "recipe"
