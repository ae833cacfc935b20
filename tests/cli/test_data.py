"""`quantstudio data`: the preview in the terminal, in this process."""

import json
import random

import pytest

from quantstudio.cli.main import run_command

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


def prose(seed, words):
    return " ".join(random.Random(seed).choices(WORDS, k=words))  # noqa: S311 - no secret


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(40):
            talk = [
                {"role": "user", "content": prose(number, 20)},
                {"role": "assistant", "content": prose(-number - 1, 40)},
            ]
            file.write(json.dumps({"messages": talk}) + "\n")
    return path


def test_it_prints_counts_and_marks_what_counts(chats, capsys):
    flags = ["--data.source.kind", "file", "--data.source.path", str(chats), "--data.sequence_length", "64"]
    assert run_command(["data", "starter", *flags]) == 0
    shown = capsys.readouterr().out
    assert "chats.jsonl" in shown
    assert "documents      40" in shown
    assert "what counts for the loss stands in ⟦ ⟧" in shown
    assert "The text is short" in shown
    assert run_command(["data", "starter", *flags, "--data.loss", "all", "--json"]) == 0
    preview = json.loads(capsys.readouterr().out)
    assert preview["summary"]["training_loss_tokens"] == preview["summary"]["training_sequences"] * 64


def test_what_is_wrong_is_said(tmp_path, capsys):
    flags = ["--data.source.kind", "file", "--data.source.path", str(tmp_path / "none.txt")]
    assert run_command(["data", "starter", *flags]) == 1
    assert "There is no file" in capsys.readouterr().err
