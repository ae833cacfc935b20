"""A window that reads slowly costs the job nothing and loses nothing that counts."""

import threading
import time
from dataclasses import replace

import pytest

from quantstudio.core import protocol
from quantstudio.core.protocol import Heartbeat, Log, Memory, Metric, Notice, Phase, Progress, Result, Tokens, decode
from quantstudio.worker import outbox as outbox_module
from quantstudio.worker.outbox import MAX_STREAM, Outbox


class Pipe:
    """Takes what is written; blocks while `gate` is closed."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.writes = []

    def __call__(self, data):
        assert self.gate.wait(20)
        self.writes.append(data)

    @property
    def messages(self):
        return [decode(line) for line in b"".join(self.writes).splitlines()]


@pytest.fixture
def pipe():
    return Pipe()


@pytest.fixture
def outbox(pipe):
    return Outbox(pipe, broken=lambda: pytest.fail("broken"))


def block(outbox, pipe):
    """Close the pipe and let the writer run into it, so that everything after waits."""
    pipe.gate.clear()
    outbox(Notice(level="info", text="first"))
    deadline = time.monotonic() + 20
    while outbox._pending and time.monotonic() < deadline:
        time.sleep(0.001)


def test_messages_come_in_order(outbox, pipe):
    sent = [Notice(level="info", text=str(number)) for number in range(100)]
    for message in sent:
        outbox(message)
    outbox.finish(Result())
    assert pipe.messages == [*sent, Result()]


def test_of_a_gauge_only_the_latest_waits_and_stands_where_it_was_said(outbox, pipe):
    block(outbox, pipe)
    for step in range(1000):
        outbox(Progress(done=step, total=1000))
        outbox(Memory(rss=step))
        outbox(Heartbeat(t=step))
    outbox(Phase(id="b", title="B", index=1, total=2))
    outbox(Progress(done=1, total=5))
    pipe.gate.set()
    outbox.finish(Result())
    assert [message.type for message in pipe.messages] == [
        "notice",
        "memory",
        "heartbeat",
        "phase",
        "progress",
        "result",
    ]
    assert pipe.messages[4] == Progress(done=1, total=5)


def test_state_is_never_dropped_and_a_stream_says_what_it_dropped(outbox, pipe):
    block(outbox, pipe)
    notices = [Notice(level="info", text=str(number)) for number in range(200)]
    for number in range(3 * MAX_STREAM):
        outbox(Metric(name="loss", value=number, step=number))
        outbox(Log(level="info", text=str(number)))
        if number < len(notices):
            outbox(notices[number])
    pipe.gate.set()
    outbox.finish(Result())
    messages = pipe.messages
    assert [message for message in messages if isinstance(message, Notice)][1:] == notices
    streams = [message for message in messages[1:] if isinstance(message, Metric | Log)]
    told, kept = streams[0], streams[1:]
    assert told.text.startswith(f"{6 * MAX_STREAM - MAX_STREAM:,} log lines")
    assert len(kept) == MAX_STREAM
    assert kept[-1] == Log(level="info", text=str(3 * MAX_STREAM - 1))


def test_text_of_one_answer_is_joined_but_never_across_answers(outbox, pipe):
    block(outbox, pipe)
    for turn in (0, 1):
        for _ in range(1000):
            outbox(Tokens(text="ab", turn=turn))
        outbox(protocol.Answer(turn=turn, reason="end", prompt_tokens=1, tokens=1, ttft_s=0, tokens_per_s=0))
    pipe.gate.set()
    outbox.finish(Result())
    texts = [message for message in pipe.messages if isinstance(message, Tokens)]
    assert texts == [Tokens(text="ab" * 1000, turn=0), Tokens(text="ab" * 1000, turn=1)]


def test_the_job_does_not_wait_for_a_window_that_does_not_read(outbox, pipe):
    block(outbox, pipe)
    started = time.perf_counter()
    for step in range(20_000):
        outbox(Progress(done=step, total=20_000))
    assert time.perf_counter() - started < 5  # 20 ms on an idle machine; for ever if it waited
    pipe.gate.set()
    outbox.finish(Result())


def test_only_the_first_end_is_sent(outbox, pipe):
    outbox(Result(data={"first": True}))
    outbox(Notice(level="info", text="late"))
    outbox.finish(Result(data={"first": False}))
    assert pipe.messages == [Result(data={"first": True})]


def test_batches_are_few(outbox, pipe):
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        outbox(Log(level="info", text="x"))
        time.sleep(0.0002)
    outbox.finish(Result())
    assert len(pipe.writes) <= 0.5 / outbox_module.FLUSH_S + 3


def test_what_json_cannot_say_is_said_in_words(outbox, pipe):
    outbox(Metric(name="loss", value=float("nan")))
    outbox.finish(Result(t=5, data={"value": float("inf")}))
    log, error = pipe.messages
    assert "metric could not be sent" in log.text
    assert (error.kind, error.t) == ("internal", 5)
    assert "could not be sent" in error.what


def test_a_message_beyond_the_limit_is_said_in_words(outbox, pipe, monkeypatch):
    monkeypatch.setattr(protocol, "MAX_LINE_BYTES", 300)
    outbox(Log(level="info", text="x" * 500))
    outbox.finish(Result(data={"text": "x" * 500}))
    assert [message.type for message in pipe.messages] == ["log", "error"]


def test_a_reader_that_is_gone_is_told():
    broken = threading.Event()

    def refuse(data):
        raise BrokenPipeError

    outbox = Outbox(refuse, broken=broken.set)
    outbox(Heartbeat())
    assert broken.wait(20)


def test_an_answer_does_not_wait_for_the_next_batch(monkeypatch, pipe):
    monkeypatch.setattr(outbox_module, "FLUSH_S", 3600.0)
    outbox = Outbox(pipe, broken=lambda: pytest.fail("broken"))
    answer = protocol.Answer(turn=0, reason="stopped", prompt_tokens=1, tokens=1, ttft_s=0.1, tokens_per_s=1.0)
    for message in (Notice(level="info", text="first"), answer, replace(answer, turn=1)):
        outbox(message)
        deadline = time.monotonic() + 20
        while message not in pipe.messages and time.monotonic() < deadline:
            time.sleep(0.001)
    assert pipe.messages[1:] == [answer, replace(answer, turn=1)]
    outbox.finish(Result())
