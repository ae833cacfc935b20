"""Splits, packing, fingerprints and the kept result, on text files and the built-in books."""

import hashlib

import numpy as np
import pytest
import torch

from quantstudio.core.errors import Cancelled, DataUnusable
from quantstudio.core.recipe_data import DataSection
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.reporter import silent

RUN = 32


def runs(ids, separator):
    """Every run of 32 tokens in these sequences that lies within one document, found the slow and obvious way."""
    found = set()
    for row in ids.tolist():
        for start in range(len(row) - RUN + 1):
            run = tuple(row[start : start + RUN])
            if separator not in run:
                found.add(run)
    return found


def assert_apart(data, tokenizer):
    parts = [runs(ids, tokenizer.eos_token_id) for ids in (data.calibration, data.training, data.held_out)]
    assert parts[1]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


@pytest.fixture
def book(tmp_path, prose):
    path = tmp_path / "book.txt"
    path.write_text(prose(1, 60), encoding="utf-8")
    return path


def test_shapes_types_and_counts(book, section, tokenizer):
    data = prepare_data(section(book), tokenizer, 0, silent())
    summary = data.summary
    assert data.calibration.shape == (6, 64)
    assert data.held_out.shape == data.held_out_mask.shape == (4, 64)
    assert data.training.shape == data.training_mask.shape == (summary.training_sequences, 64)
    assert {data.calibration.dtype, data.training.dtype, data.held_out.dtype} == {torch.int64}
    assert data.training_mask.dtype is torch.bool
    assert data.training_mask.all()
    assert data.held_out_mask.all()
    assert summary.source == "book.txt"
    assert summary.documents == 1
    assert summary.tokens == (6 + 4 + summary.training_sequences) * 64
    assert summary.training_loss_tokens == data.training.numel()
    # All of the text is there but for the ends of passages: nothing is lost on the way.
    assert summary.left_out_tokens < 0.15 * len(tokenizer(book.read_text())["input_ids"])


def test_what_is_packed_is_the_text(book, section, tokenizer):
    text = book.read_text()
    data = prepare_data(section(book), tokenizer, 0, silent())
    for row in [*data.calibration, *data.training, *data.held_out]:
        for piece in tokenizer.decode(row).split(tokenizer.eos_token):
            assert piece in text


def test_no_passage_is_in_two_splits(tmp_path, section, tokenizer, prose):
    """A text that quotes itself at odd places, and documents that are near copies of others."""
    quoted = prose(5, 1, 60)
    chapters = [prose(seed, 6) for seed in range(10, 24)]
    chapters[2] += f"\n\nHe said: {quoted}"
    chapters[9] = f"It was written, {quoted} " + chapters[9]
    chapters.append(chapters[4].replace("people", "persons", 3))
    path = tmp_path / "quotes.txt"
    path.write_text("\n\n".join(chapters), encoding="utf-8")
    for seed in range(4):
        assert_apart(prepare_data(section(path), tokenizer, seed, silent()), tokenizer)


def test_the_test_for_overlap_would_notice_one(book, section, tokenizer):
    data = prepare_data(section(book), tokenizer, 0, silent())
    data.training[0] = data.held_out[1].roll(3)
    with pytest.raises(AssertionError):
        assert_apart(data, tokenizer)


def test_the_seed_decides(book, section, tokenizer):
    one, same, other = (prepare_data(section(book), tokenizer, seed, silent()) for seed in (1, 1, 2))
    assert torch.equal(one.training, same.training)
    assert one.summary == same.summary
    assert one.summary.fingerprint != other.summary.fingerprint


def test_the_fingerprint_is_over_every_token(book, section, tokenizer):
    data = prepare_data(section(book), tokenizer, 0, silent())
    digest = hashlib.sha256()
    for part in (data.calibration, data.training, data.held_out):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.numpy().astype("<i4").tobytes())
    assert data.summary.fingerprint == digest.hexdigest()


def test_a_short_text_is_shared_out_and_said(tmp_path, section, tokenizer, listener, prose):
    path = tmp_path / "short.txt"
    path.write_text(prose(3, 20), encoding="utf-8")
    data = prepare_data(section(path, calibration_sequences=60, held_out_sequences=40), tokenizer, 0, listener)
    total = len(data.held_out) + len(data.calibration) + len(data.training)
    assert total / 5 <= len(data.held_out) <= total / 3
    assert total / 3 <= len(data.calibration) <= total / 1.8
    assert len(data.training) >= total / 6
    assert "The text is short" in listener.warnings[0]
    assert_apart(data, tokenizer)


def test_too_short_names_a_length_that_works(tmp_path, section, tokenizer, prose):
    path = tmp_path / "short.txt"
    path.write_text(prose(3, 5), encoding="utf-8")
    with pytest.raises(DataUnusable, match="too short") as caught:
        prepare_data(section(path, sequence_length=1024), tokenizer, 0, silent())
    length = int(caught.value.hint.rstrip(".").split()[-1])
    prepare_data(section(path, sequence_length=length), tokenizer, 0, silent())


def test_text_that_only_repeats_itself_is_refused(tmp_path, section, tokenizer):
    path = tmp_path / "refrain.txt"
    path.write_text("All work and no play makes Jack a dull boy.\n\n" * 800, encoding="utf-8")
    with pytest.raises(DataUnusable, match="cannot be split"):
        prepare_data(section(path), tokenizer, 0, silent())


def test_what_is_kept_is_not_tokenized_again(book, section, tokenizer, tmp_path):
    cache = tmp_path / "run" / "data"
    first = prepare_data(section(book), tokenizer, 0, silent(), cache)

    class NoTokenizer:
        """The same tokenizer to look at, but it cannot tokenize."""

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *args, **settings):
            raise AssertionError("tokenized again")

    NoTokenizer.__name__ = type(tokenizer).__name__
    again = prepare_data(section(book), NoTokenizer(), 0, silent(), cache)
    assert again.summary == first.summary
    for name in ("calibration", "training", "training_mask", "held_out", "held_out_mask"):
        assert torch.equal(getattr(again, name), getattr(first, name))
        assert getattr(again, name).dtype is getattr(first, name).dtype
    for changed in (section(book, sequence_length=32), section(book, loss="all")):
        with pytest.raises(AssertionError, match="tokenized again"):
            prepare_data(changed, NoTokenizer(), 0, silent(), cache)
    book.write_text(book.read_text() + "\n\nOne more.", encoding="utf-8")
    with pytest.raises(AssertionError, match="tokenized again"):
        prepare_data(section(book), NoTokenizer(), 0, silent(), cache)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_kept_file_is_made_again(book, section, tokenizer, tmp_path, damage):
    first = prepare_data(section(book), tokenizer, 0, silent(), tmp_path / "data")
    (path,) = (tmp_path / "data").iterdir()
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes({"cut": bytes(raw[:-100]), "flipped": bytes(raw), "empty": b""}[damage])
    again = prepare_data(section(book), tokenizer, 0, silent(), tmp_path / "data")
    assert torch.equal(again.held_out, first.held_out)
    assert torch.equal(again.training, first.training)


def test_cancelling_ends_it(book, section, tokenizer, listener):
    listener.cancel.set()
    with pytest.raises(Cancelled):
        prepare_data(section(book), tokenizer, 0, listener)


def test_a_start_token_begins_every_sequence_where_the_tokenizer_puts_one(book, section, tokenizer):
    class Starting:
        bos_token_id = 3

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, add_special_tokens=True, **settings):
            encoded = tokenizer(text, add_special_tokens=False, **settings)
            return {"input_ids": [3, *encoded["input_ids"]]} if add_special_tokens else encoded

    data = prepare_data(section(book), Starting(), 0, silent())
    assert (data.training[:, 0] == 3).all()
    assert (data.training[:, 1:] != 3).all()
    assert not data.training_mask[:, 0].any()
    assert data.training_mask[:, 1:].all()


def test_the_built_in_books_hold_nothing_of_the_evaluation_text(tokenizer):
    from quantstudio.core.paths import resources
    from quantstudio.engine.data.builtin import read_books
    from quantstudio.engine.data.document import Budget

    def words(text):
        return np.asarray([hash(word) for word in text.split()], np.int64)

    def grams(text, size=12):
        hashed = words(text)
        mixed = sum(hashed[place : len(hashed) - size + place + 1] * (2 * place + 3) ** 7 for place in range(size))
        return set(mixed.tolist())

    measured = grams((resources() / "text" / "evaluation.txt").read_text(encoding="utf-8"))
    learnt = "\n\n".join(document.text for document in read_books(Budget(1 << 40), print))
    assert len(learnt) > 11_000_000
    assert len(measured) > 50_000
    assert not measured & grams(learnt)


def test_the_built_in_books_come_from_the_whole_collection(tokenizer, listener):
    data = prepare_data(DataSection(size_limit_mb=1), tokenizer, 0, listener)
    assert data.calibration.shape == (128, 512)
    assert data.held_out.shape == (64, 512)
    assert len(data.training) > 250
    assert data.summary.licence
    assert listener.warnings == ["Only the first 1 MB of the built-in books are read."]
