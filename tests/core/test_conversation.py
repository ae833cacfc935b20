"""Conversations: saved after every turn, read back whole, hostile files refused in words."""

import json

import pytest

from quantstudio.core.conversation import (
    Conversation,
    Turn,
    continued_text,
    has_chat_template,
    load_conversation,
    recent_conversations,
)
from quantstudio.core.errors import DiskProblem, QuantStudioError
from quantstudio.core.jobs import Sampling
from quantstudio.core.protocol import Answer

NUMBERS = Answer(turn=0, reason="end", prompt_tokens=7, tokens=3, ttft_s=0.05, tokens_per_s=200.0)


@pytest.fixture
def talk():
    made = Conversation(model="starter", system="Be brief.", sampling=Sampling(temperature=0.2, seed=5))
    made.say("Who was\nAlice? “ü” \u2028 </b>")
    made.answer("A girl.", NUMBERS)
    return made


def test_a_conversation_comes_back_as_it_was(talk, tmp_path):
    path = talk.save(tmp_path)
    again = load_conversation(path)
    assert (again.model, again.system, again.sampling, again.template) == ("starter", "Be brief.", talk.sampling, True)
    assert again.turns == talk.turns
    assert again.turns[1].tokens_per_s == 200.0
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line).get("role") for line in lines if line] == [None, "user", "assistant"]


def test_saving_again_replaces_the_same_file(talk, tmp_path):
    first = talk.save(tmp_path)
    talk.say("And then?")
    assert talk.save(tmp_path) == first
    assert len(load_conversation(first).turns) == 3
    other = Conversation(model="starter", created=talk.created)
    other.say("Who was Alice? “ü” </b>")
    assert other.save(tmp_path) != first
    assert set(recent_conversations(tmp_path)) == {first, other.path}


def test_requests_carry_system_prompt_and_turns(talk):
    talk.say("More")
    roles = [message.role for message in talk.request().messages]
    assert roles == ["system", "user", "assistant", "user"]
    talk.system = "  "
    assert talk.request().messages[0].role == "user"
    assert talk.request().sampling.seed == 5


def test_plain_completion_continues_one_text():
    turns = [
        Turn(role="user", content="Once upon"),
        Turn(role="assistant", content=" a time"),
        Turn(role="user", content=""),
    ]
    assert continued_text(turns) == "Once upon a time"
    turns.append(Turn(role="user", content="there"))
    assert continued_text(turns) == "Once upon a time\nthere"
    talk = Conversation(template=False, system="ignored", turns=turns)
    request = talk.request()
    assert (len(request.messages), request.template) == (1, False)


def test_an_answer_can_be_taken_back(talk):
    assert talk.take_back_answer()
    assert not talk.take_back_answer()
    assert [turn.role for turn in talk.turns] == ["user"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b"[1]\n",
        b'{"type":"run"}\n',
        b'{"type":"conversation","model":"a","created":1}\n{"role":"root","content":"x"}\n',
        b'{"type":"conversation","model":"a","created":1,"sampling":{"temperature":-4}}\n',
        b"\xff\xfe\n",
        b"[" * 100_000,
    ],
)
def test_other_files_are_refused_in_words(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(QuantStudioError, match="is not a saved conversation"):
        load_conversation(path)


def test_files_from_the_future_and_missing_files_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"type":"conversation","version":99,"model":"a","created":1}\n')
    with pytest.raises(QuantStudioError, match="newer version"):
        load_conversation(path)
    with pytest.raises(QuantStudioError, match="cannot be read"):
        load_conversation(tmp_path / "none.jsonl")


def test_a_folder_that_cannot_be_written_is_told(talk, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskProblem):
        talk.save(tmp_path / "file")


def test_chat_templates_are_found(tmp_path):
    assert not has_chat_template(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for text, expected in (('{"chat_template":"{{x}}"}', True), ('{"chat_template":""}', False), ("[", False)):
        config.write_text(text)
        assert has_chat_template(tmp_path) is expected
    (tmp_path / "chat_template.jinja").write_text("x")
    assert has_chat_template(tmp_path)
