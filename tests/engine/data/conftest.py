"""The starter model's tokenizer, made-up text, and a reporter that keeps what it is told."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer

from quantstudio.core import protocol
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe_data import DataSection, FileData
from quantstudio.engine.reporter import Reporter

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(starter_model(), trust_remote_code=False)


class Listener(Reporter):
    def __init__(self):
        self.messages: list[protocol.Message] = []
        super().__init__(self.messages.append)

    @property
    def warnings(self) -> list[str]:
        return [message.text for message in self.messages if isinstance(message, protocol.Notice)]


@pytest.fixture
def listener():
    return Listener()


def prose(seed: int, paragraphs: int, words: int = 80) -> str:
    """Paragraphs of random words, different for each seed: no run of 32 tokens comes twice."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    return "\n\n".join(" ".join(chance.choices(WORDS, k=words)) + "." for _ in range(paragraphs))


@pytest.fixture(name="prose")
def _prose():
    return prose


@pytest.fixture
def section():
    """A small data section over a file (or another source)."""

    def make(path=None, **fields):
        if path is not None:
            fields["source"] = FileData(path=str(path), column=fields.pop("column", ""))
        small = {"sequence_length": 64, "calibration_sequences": 6, "held_out_sequences": 4}
        return DataSection(**(small | fields))

    return make
