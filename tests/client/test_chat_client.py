"""One worker, many questions."""

import pytest

from quantstudio.client.chat_client import ChatClient
from quantstudio.core.jobs import ChatMessage, ChatRequest

LONG_MS = 30_000


class Ears:
    """Everything that a chat says."""

    def __init__(self, chat):
        self.text, self.notices, self.answers, self.failures, self.closed = "", [], [], [], 0
        chat.piece.connect(self.hear)
        chat.notice.connect(self.notices.append)
        chat.answered.connect(self.answers.append)
        chat.failed.connect(self.failures.append)
        chat.closed.connect(self.count)

    def hear(self, piece):
        self.text += piece

    def count(self):
        self.closed += 1


@pytest.fixture
def chat(qtbot, fake, new_children):
    """An open conversation with a fake worker, and its listener."""
    client = ChatClient(command=fake("chat"))
    ears = Ears(client)
    with qtbot.waitSignal(client.ready, timeout=LONG_MS):
        client.open("starter")
    yield client, ears
    client.close()
    qtbot.waitUntil(lambda: not new_children(), timeout=LONG_MS)


def ask(text):
    return ChatRequest(messages=(ChatMessage(role="user", content=text),))


def test_questions_and_answers_in_order(chat, qtbot):
    client, ears = chat
    for number, text in enumerate(("one two", "three")):
        with qtbot.waitSignal(client.answered, timeout=LONG_MS):
            client.generate(ask(text))
            assert client.is_answering
        assert not client.is_answering
        assert ears.answers[-1].turn == number
    assert ears.text == "one two three "


def test_stop_ends_the_answer_and_keeps_the_model(chat, qtbot):
    client, ears = chat
    with qtbot.waitSignal(client.piece, timeout=LONG_MS):
        client.generate(ask("forever"))
    with qtbot.waitSignal(client.answered, timeout=LONG_MS):
        client.stop()
    assert ears.answers[-1].reason == "stopped"
    with qtbot.waitSignal(client.answered, timeout=LONG_MS):
        client.generate(ask("again"))
    assert ears.answers[-1].reason == "end"


def test_a_worker_that_dies_is_told_once(chat, qtbot):
    client, ears = chat
    with qtbot.waitSignal(client.closed, timeout=LONG_MS):
        client.generate(ask("die"))
    assert [error.kind for error in ears.failures] == ["worker_lost"]
    assert ears.closed == 1
    assert not client.is_ready
    assert not client.is_answering
    assert client.model == ""
    client.generate(ask("anyone?"))
    client.close()
    assert ears.closed == 1


def test_closing_is_at_once_and_says_no_failure(chat, qtbot):
    client, ears = chat
    client.generate(ask("forever"))
    client.close()
    qtbot.wait(50)
    assert (ears.closed, ears.failures) == (1, [])


def test_opening_another_model_ends_the_first_worker(chat, qtbot):
    client, ears = chat
    with qtbot.waitSignal(client.ready, timeout=LONG_MS):
        client.open("another")
    assert client.model == "another"
    assert (ears.closed, ears.failures) == (1, [])


def test_a_model_that_cannot_be_loaded(qtbot, fake):
    client = ChatClient(command=fake("fail"))
    ears = Ears(client)
    with qtbot.waitSignal(client.closed, timeout=LONG_MS):
        client.open("starter")
    assert [error.kind for error in ears.failures] == ["disk"]
    assert not client.is_ready


def test_what_runs_the_model_and_how_far_the_prompt_is_read(qtbot, fake):
    client = ChatClient(command=fake("chat"))
    lines, shares = [], []
    client.engine.connect(lines.append)
    client.reading.connect(shares.append)
    with qtbot.waitSignal(client.ready, timeout=LONG_MS):
        client.open("starter")
    assert [line.text for line in lines] == ["int4 weights 3.1 times as fast as bf16"]
    with qtbot.waitSignal(client.reading, timeout=LONG_MS):
        client.generate(ask("long"))
    with qtbot.waitSignal(client.answered, timeout=LONG_MS):
        client.stop()
    assert shares == [0.4]
    client.close()
