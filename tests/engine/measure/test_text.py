"""Evaluation text: clear refusals, exact bytes, windows that the seed decides."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from quantstudio.core.errors import RecipeError
from quantstudio.core.recipe import BuiltinText, FileText
from quantstudio.engine.measure.text import Text, cut_windows, prompt_ids, read_text

PROSE = "The old house stood at the end of the lane, and nobody had lived in it for years. "


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return AutoTokenizer.from_pretrained(str(tiny_folder), trust_remote_code=False)


def file_text(tmp_path, data):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    return FileText(path=str(path))


def test_the_builtin_text_is_there_and_long_enough_for_the_defaults():
    assert len(read_text(BuiltinText(), 32768).content) > 32768 * 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"Short.", "too short"),
        (PROSE.encode("utf-16") * 100, "not UTF-8"),
        (PROSE.encode() * 40 + b"\xff", "not UTF-8"),
        (b"\x00\x01" * 4000, "not a text file"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_in_words(tmp_path, data, words):
    with pytest.raises(RecipeError, match=words) as caught:
        read_text(file_text(tmp_path, data), 32768)
    assert caught.value.field == "measure.text.path"
    assert caught.value.hint


def test_a_missing_file_a_folder_and_no_choice_are_refused_in_words(tmp_path):
    for path, words in (
        (tmp_path / "nowhere.txt", "no such file"),
        (tmp_path, "cannot be read"),
        ("", "No evaluation"),
    ):
        with pytest.raises(RecipeError, match=words):
            read_text(FileText(path=str(path)), 32768)


def test_a_long_file_is_cut_between_characters(tmp_path):
    text = read_text(file_text(tmp_path, "ü".encode() * 700_001), 1024)
    assert set(text.content) == {"ü"}
    assert len(text.content) == (1 << 20) // 2


def test_a_byte_order_mark_is_not_text(tmp_path):
    assert read_text(file_text(tmp_path, b"\xef\xbb\xbf" + PROSE.encode() * 40), 1024).content.startswith("The old")


def test_windows_do_not_overlap_and_follow_the_seed(tokenizer):
    text = read_text(BuiltinText(), 4096)
    windows = cut_windows(text, tokenizer, 64, 2048, seed=3)
    assert windows.ids.shape == (32, 64)
    assert windows.scored.shape == windows.nbytes.shape == (32, 63)
    again = cut_windows(text, tokenizer, 64, 2048, seed=3)
    assert (windows.ids == again.ids).all()
    assert not np.array_equal(windows.ids, cut_windows(text, tokenizer, 64, 2048, seed=4).ids)
    assert len({tuple(window) for window in windows.ids}) == 32


@pytest.mark.parametrize("content", [PROSE * 60, "Größe über Öl, 日本語のテキスト、🙂🙃 naïve. " * 60])
def test_scored_tokens_spell_exactly_the_bytes_that_are_counted(tokenizer, content):
    """Characters of several bytes are split over tokens: windows then count whole characters only."""
    windows = cut_windows(Text("t", content), tokenizer, 37, 1_000_000, seed=0)
    assert windows.scored.mean() > 0.9
    for ids, scored, nbytes in zip(windows.ids, windows.scored, windows.nbytes, strict=True):
        spelled = tokenizer.decode(ids[1:][scored], clean_up_tokenization_spaces=False)
        assert "\N{REPLACEMENT CHARACTER}" not in spelled
        assert len(spelled.encode()) == nbytes[scored].sum()


def test_a_start_token_leads_every_window_and_is_not_scored(tokenizer):
    class Starting:
        bos_token_id = 1

        def __call__(self, content, add_special_tokens=True, **options):
            encoded = tokenizer(content, add_special_tokens=False, **options)
            if add_special_tokens:
                encoded["input_ids"] = [1, *encoded["input_ids"]]
            return encoded

    text = Text("t", PROSE * 60)
    windows = cut_windows(text, Starting(), 32, 512, seed=0)
    assert (windows.ids[:, 0] == 1).all()
    assert (windows.ids[:, 1:] != 1).all()
    assert not windows.scored[:, 0].any()  # the first token of text has nothing before it but the start token
    assert windows.scored[:, 1:].all()
    assert prompt_ids(text, Starting(), 10, seed=0)[0] == 1


def test_a_text_of_too_few_tokens_is_refused(tokenizer):
    with pytest.raises(RecipeError, match=r"too short: it has only \d+ tokens"):
        cut_windows(Text("mine.txt", PROSE), tokenizer, 64, 2048, seed=0)


def test_a_prompt_has_exactly_the_length_asked_for_even_from_a_short_text(tokenizer):
    for tokens in (1, 17, 3000):
        assert len(prompt_ids(Text("t", PROSE), tokenizer, tokens, seed=0)) == tokens
    text = read_text(BuiltinText(), 4096)
    assert prompt_ids(text, tokenizer, 50, seed=1) == prompt_ids(text, tokenizer, 50, seed=1)
    assert prompt_ids(text, tokenizer, 50, seed=1) != prompt_ids(text, tokenizer, 50, seed=2)
