"""Chats: how they are laid out, what counts for the loss, and that a shared system prompt ties nothing together."""

import json

import pytest
import torch

from quantstudio.core.conversation import Conversation
from quantstudio.core.errors import DataUnusable, ModelUnsafe
from quantstudio.core.jobs import ChatMessage, Sampling
from quantstudio.core.protocol import Answer
from quantstudio.core.recipe_data import OwnPrompts
from quantstudio.engine.data.layout import Layout
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.data.preview import preview_data
from quantstudio.engine.reporter import silent

NUMBERS = Answer(turn=0, reason="end", prompt_tokens=1, tokens=1, ttft_s=0.1, tokens_per_s=1.0)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}[{{ m['role'] }}] {% if loop.last or m['role'] == 'user' %}{{ m['content'] }}"
    "{% else %}{{ m['content'][:3] }}{% endif %}\n{% endfor %}"
)


def say(*contents, system=""):
    turns = [ChatMessage(role="user" if n % 2 == 0 else "assistant", content=text) for n, text in enumerate(contents)]
    return [*([ChatMessage(role="system", content=system)] if system else []), *turns]


class WithTemplate:
    """The starter's tokenizer with another template."""

    def __init__(self, tokenizer, template):
        self._tokenizer = tokenizer
        self.chat_template = template

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *args, **settings):
        return self._tokenizer(*args, **settings)

    def apply_chat_template(self, messages, **settings):
        return self._tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **settings)


def counted(piece):
    return [piece.text[start:end] for start, end in piece.counted]


def layout(tokenizer, loss="answers", warnings=None):
    return Layout(tokenizer, loss, silent(), (warnings if warnings is not None else []).append)


def test_answers_count_with_the_mark_that_ends_them(tokenizer):
    chatml = WithTemplate(tokenizer, CHATML)
    piece = layout(chatml).conversation(say("Who?", "I am.", "Why?", "Because.", system="Be brief."))
    assert counted(piece) == ["I am.<|im_end|>\n", "Because.<|im_end|>\n"]
    assert [piece.text[a:b] for a, b in piece.uncompared] == ["Be brief."]
    assert layout(chatml, "all").conversation(say("Who?", "I.")).counted is None


def test_answers_are_found_where_a_template_shortens_earlier_turns(tokenizer):
    piece = layout(WithTemplate(tokenizer, FORGETFUL)).conversation(
        say("One?", "First answer", "Two?", "Second answer")
    )
    assert counted(piece) == ["Second answer"]


def test_a_prompt_ends_where_the_answer_would_begin_and_counts_as_a_whole(tokenizer):
    warnings = []
    piece = layout(tokenizer, warnings=warnings).conversation(say("Tell me a tale."))
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tell me a tale."}], tokenize=False, add_generation_prompt=True
    )
    assert piece.text == expected
    assert piece.counted is None
    assert warnings == ["Where a prompt has no answer, every word of it counts."]


def test_a_model_without_a_template_gets_plain_text(tokenizer):
    warnings = []
    plain = layout(WithTemplate(tokenizer, None), warnings=warnings)
    assert plain.conversation(say("One?", "Two.")).text == "One?\n\nTwo."
    plain.conversation(say("Three?", "Four."))
    assert len(warnings) == 1
    assert "no chat template" in warnings[0]


def test_a_template_that_wastes_time_is_stopped(tokenizer, monkeypatch):
    monkeypatch.setattr("quantstudio.engine.chat_template.render.__defaults__", (0.05,))
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelUnsafe, match="not used"):
        layout(WithTemplate(tokenizer, loops)).conversation(say("Who?", "I."))


@pytest.fixture
def chats(tmp_path, prose):
    """A file of conversations that all have the same long system prompt."""
    path = tmp_path / "chats.jsonl"
    system = prose(999, 1, 60)
    with path.open("w", encoding="utf-8") as file:
        for number in range(60):
            talk = say(prose(2 * number, 1, 20), prose(2 * number + 1, 1, 40), system=system)
            file.write(json.dumps({"messages": [message.model_dump() for message in talk]}) + "\n")
    return path


def test_the_mask_marks_the_answers_of_the_packed_text(chats, section, tokenizer):
    data = prepare_data(section(chats, sequence_length=256), tokenizer, 0, silent())
    answers = [row["messages"][2]["content"] for row in map(json.loads, chats.read_text().splitlines())]
    marked = tokenizer.decode(data.training[data.training_mask])
    pieces = [piece for piece in marked.replace("\n", "").split("<|end|>") if piece]
    whole = sum(any(piece == answer for answer in answers) for piece in pieces)
    assert whole > 0.3 * len(pieces)  # the rest is cut by the end of a sequence: then its two halves lie apart
    assert not any("<|user|>" in piece or tokenizer.eos_token in piece for piece in pieces)
    assert data.summary.training_loss_tokens == int(data.training_mask.sum()) < data.training.numel() / 2


def test_a_shared_system_prompt_ties_nothing_together(chats, section, tokenizer, listener):
    data = prepare_data(section(chats), tokenizer, 0, listener)
    assert len(data.held_out) == 4
    assert len(data.calibration) == 6
    assert listener.warnings == []


def test_no_answer_is_in_two_splits(chats, section, tokenizer):
    """The same answer to different questions, and the same conversation under another system prompt."""
    rows = [json.loads(line)["messages"] for line in chats.read_text().splitlines()]
    for number in range(0, 40, 4):
        rows[number + 1][2] = rows[number][2]
        rows.append([{"role": "system", "content": "Be kind."}, *rows[number + 2][1:]])
    chats.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    for seed in range(3):
        data = prepare_data(section(chats), tokenizer, seed, silent())
        texts = [" ".join(map(tokenizer.decode, ids)) for ids in (data.calibration, data.training, data.held_out)]
        for row in rows:
            start = " ".join(row[2]["content"].split()[:20])
            assert sum(start in text for text in texts) <= 1


def test_a_form_that_all_documents_share_ties_nothing_together(tmp_path, section, tokenizer, listener, prose):
    form = prose(999, 1, 40)
    path = tmp_path / "alpaca.jsonl"
    path.write_text("".join(json.dumps({"text": f"{form}\n\n{prose(n, 1, 150)}"}) + "\n" for n in range(80)))
    data = prepare_data(section(path), tokenizer, 0, listener)
    assert len(data.held_out) == 4
    assert ["Most documents share some words" in warning for warning in listener.warnings] == [True]
    texts = [" ".join(map(tokenizer.decode, ids)) for ids in (data.calibration, data.training, data.held_out)]
    for n in range(80):
        start = " ".join(prose(n, 1, 150).split()[:20])
        assert sum(start in text for text in texts) <= 1, n


@pytest.fixture
def saved(tmp_path, monkeypatch, prose):
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path / "home"))
    for number in range(12):
        chat = Conversation(model="starter", sampling=Sampling())
        chat.say(prose(100 + number, 1, 40))
        chat.answer(prose(200 + number, 1, 60), NUMBERS)
        chat.say("A question without an answer?")
        chat.save()
    return tmp_path / "home" / "chats"


def test_prompts_and_saved_chats(saved, section, tokenizer, listener, prose):
    (saved / "broken.jsonl").write_text("{")
    prompts = tuple(prose(300 + number, 1, 30) for number in range(5))
    source = OwnPrompts(prompts=(*prompts, " "))
    preview = preview_data(section(source=source), tokenizer, 0, listener)
    assert preview.summary.documents == 17
    assert preview.summary.source == "your prompts and chats"
    assert any("A saved chat was left out" in warning for warning in preview.warnings)
    data = prepare_data(section(source=source), tokenizer, 0, silent())
    everything = tokenizer.decode(torch.cat([data.calibration, data.training, data.held_out]).flatten())
    assert "A question without an answer?" not in everything
    assert preview.sequences[0].counted != ((0, len(preview.sequences[0].text)),)
    only = prepare_data(section(source=OwnPrompts(chats_folder=str(saved), prompts=())), tokenizer, 0, silent())
    assert only.summary.documents == 12


def test_nothing_to_learn_from_is_said(saved, section, tokenizer):
    with pytest.raises(DataUnusable, match="no prompts"):
        prepare_data(section(source=OwnPrompts(saved_chats=False)), tokenizer, 0, silent())
    with pytest.raises(DataUnusable, match="no folder"):
        prepare_data(section(source=OwnPrompts(chats_folder=str(saved / "no"))), tokenizer, 0, silent())


def test_plain_completions_stay_plain_text(saved, section, tokenizer, prose):
    for path in saved.iterdir():
        path.unlink()
    for number in range(12):
        chat = Conversation(model="starter", template=False)
        chat.say(prose(number, 1, 60))
        chat.answer(prose(50 + number, 1, 60), NUMBERS)
        chat.save()
    data = prepare_data(section(source=OwnPrompts()), tokenizer, 0, silent())
    assert data.training_mask.all()
    assert "<|user|>" not in tokenizer.decode(data.training.flatten())
