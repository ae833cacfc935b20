"""Files and folders: what is read, and how everything that can be wrong with a file is said."""

import builtins
import gzip
import json
import sys
import tracemalloc

import pytest

from quantstudio.core.errors import DataUnusable, PackageMissing
from quantstudio.core.recipe_data import DataSection, FileData, FolderData
from quantstudio.engine.data import textfile
from quantstudio.engine.data.document import Budget
from quantstudio.engine.data.files import read_file, read_folder
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.reporter import silent

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXT = "It was a dark night, and nobody knew the way home. " * 20


class Reading:
    """Reads a file as a source does, and keeps its warnings."""

    def __init__(self, read, path, column="", limit=1 << 24):
        self.warnings = []
        self.budget = Budget(limit)
        self.documents = list(read(path, column, self.budget, self.warnings.append))

    @property
    def texts(self):
        return [document.text for document in self.documents]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_text_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.MD"
    path.write_bytes(b"\xef\xbb\xbf# Title\r\n\r\nna\xc3\xafve text")
    assert Reading(read_file, path).texts == ["# Title\r\n\r\nnaïve text"]


def test_a_long_text_comes_in_parts_that_join_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(textfile, "PART", 5000)
    monkeypatch.setattr(textfile, "PIECE", 999)  # so that characters of several bytes are cut in two
    text = "\n\n".join(f"{number}: «ünïcödé» " * 9 for number in range(300))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    found = Reading(read_file, path)
    assert len(found.documents) > 5
    assert "".join(found.texts) == text
    assert [document.begins for document in found.documents] == [True] + [False] * (len(found.documents) - 1)


def test_only_as_much_as_allowed_is_read_and_that_is_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word\n" * 100_000, encoding="utf-8")
    found = Reading(read_file, path, limit=1000)
    assert sum(map(len, found.texts)) == 1000
    assert found.warnings == ["Only the first 1 kB of a.txt are read."]
    path = tmp_path / "b.jsonl"
    path.write_bytes(lines(*({"text": "word " * 50} for _ in range(1000))))
    found = Reading(read_file, path, limit=1000)
    assert len(found.texts) == 3
    assert found.warnings == ["Only the first 1 kB of b.jsonl are read."]


BAD = {
    "empty.txt": (b"", "is empty", "built-in"),
    "blank.txt": (b" \n\n ", "is empty", "built-in"),
    "latin1.txt": ("naïve".encode("latin-1") * 9, "not UTF-8", "iconv"),
    "late_latin1.txt": (b"fine\n" * 400_000 + b"na\xefve", "not UTF-8", "iconv"),
    "cut_off.txt": ("naï".encode()[:-1], "not UTF-8", "iconv"),
    "utf16.txt": ("text".encode("utf-16"), "not a text file", "UTF-8"),
    "gzip.txt": (gzip.compress(TEXT.encode()), "not a text file", "Unpack"),
    "gzip.jsonl": (gzip.compress(lines({"text": "a"})), "not a text file", "Unpack"),
    "word.txt": (b"PK\x03\x04" + b"x" * 99, "not a text file", "plain text"),
    "pdf.md": (b"%PDF-1.7\n", "not a text file", ".txt"),
    "parquet.txt": (b"PAR1....", "not a text file", ".parquet"),
    "zeros.txt": (b"text\0text", "not a text file", "UTF-8"),
    "late_zeros.txt": (b"text\n" * 2000 + b"\0", "not a text file", "UTF-8"),
    "one_line.txt": (b"word " * 400_000, "more than 1,048,576 characters", "paragraphs"),
    "data.csv": (b"a,b\n1,2\n", "not of a kind", "JSON lines"),
    "data.json": (b"[]", "not of a kind", "jq"),
    "text.gz": (gzip.compress(b"a"), "not of a kind", "gunzip"),
    "nothing": (b"text", "not of a kind", ".txt"),
    "empty.jsonl": (b"\n\n", "is empty", "each line"),
    "broken.jsonl": (lines({"text": "a"}) + b'{"text": "b"\n', "Line 2", "that line"),
    "list.jsonl": (b'[\n{"text": "a"}\n]', "Line 1", "jq"),
    "number.jsonl": (b"17\n", "Line 1", "jq"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "Line 1", "jq"),
    "latin1.jsonl": ('{"text": "naïve"}\n'.encode("latin-1"), "not UTF-8", "iconv"),
    "no_text.jsonl": (lines({"a": 1, "b": [2]}), "no column of text", "column"),
    "two_texts.jsonl": (lines({"a": "x", "b": "y"}), "more than one column", "column"),
    "nulls.jsonl": (lines({"text": "", "b": 2}, {"text": None}), "no text in its column", "column"),
    "roles.jsonl": (lines({"messages": [{"role": "tool", "content": "x"}]}), "no text in its column", "column"),
    "text.parquet": (TEXT.encode(), "cannot be read as Parquet", "ending"),
    "cut.parquet": (b"PAR1" + b"x" * 50 + b"PAR1", "cannot be read as Parquet", "again"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_with_the_nearest_fix(tmp_path, name):
    content, what, fix = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataUnusable) as caught:
        Reading(read_file, path)
    assert what in caught.value.what
    assert fix in caught.value.hint
    assert caught.value.field.startswith("data.")


def test_a_missing_file_a_folder_and_no_choice(tmp_path, tokenizer):
    for path, what in ((tmp_path / "no.txt", "no file"), (tmp_path, "is a folder"), ("", "No file is chosen")):
        with pytest.raises(DataUnusable, match=what):
            prepare_data(DataSection(source=FileData(path=str(path))), tokenizer, 0, silent())
    for folder, what in ((tmp_path / "no", "no folder"), (tmp_path, "no text in"), ("", "No folder is chosen")):
        with pytest.raises(DataUnusable, match=what):
            prepare_data(DataSection(source=FolderData(folder=str(folder))), tokenizer, 0, silent())


@pytest.mark.parametrize("name", ["huge.jsonl", "huge.txt"])
def test_a_line_of_two_gigabytes_costs_little_memory(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b'{"text": "' + b"x" * 5000)
        file.truncate(2 << 30)  # sparse: takes no room on the disk
    tracemalloc.start()
    with pytest.raises(DataUnusable):
        Reading(read_file, path, limit=16 << 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 << 20  # a line's limit of 32 MB, and what reading it piece by piece needs beside it


def test_columns_are_found_or_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"id": 1, "story": "one"}, {"id": 2, "story": "two"}, {"id": 3}))
    found = Reading(read_file, path)
    assert found.texts == ["one", "two"]
    assert found.warnings[0].startswith("1 rows of a.jsonl were left out")
    path.write_bytes(lines({"text": "one", "other": "two"}))
    assert Reading(read_file, path).texts == ["one"]
    assert Reading(read_file, path, column="other").texts == ["two"]
    with pytest.raises(DataUnusable, match="no column 'third'") as caught:
        Reading(read_file, path, column="third")
    assert "'text', 'other'" in caught.value.why


def test_halves_of_characters_do_not_reach_the_tokenizer(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\\ud800b"}\n')
    assert Reading(read_file, path).texts == ["a?b"]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(600), "body": [f"text {n}" if n % 7 else None for n in range(600)]}), path)
    found = Reading(read_file, path)
    assert found.texts == [f"text {n}" for n in range(600) if n % 7]
    assert "86 rows" in found.warnings[0]
    assert len(Reading(read_file, path, limit=60).texts) == 9  # 1-6, 8, 9: 6 bytes each; 10: 7 bytes
    with pytest.raises(DataUnusable, match="no text in its column"):
        Reading(read_file, path, column="id")


def test_conversations_in_parquet_and_in_lines_are_the_same(tmp_path):
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    pq.write_table(pa.table({"messages": [talk], "text": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(lines({"messages": talk, "text": "x"}))
    first, second = (Reading(read_file, tmp_path / name).documents for name in ("a.parquet", "a.jsonl"))
    assert first == second
    assert [message.role for message in first[0].messages] == ["user", "assistant"]


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    original = builtins.__import__

    def absent(name, *args, **settings):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return original(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", absent)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(PackageMissing) as caught:
        Reading(read_file, path)
    assert "pip install 'quantstudio[data]'" in caught.value.hint


def test_a_folder_is_read_in_order_and_says_what_it_left_out(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "second.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.jsonl").write_bytes(lines({"text": "three"}) + b"broken\n")
    (tmp_path / "d.bin").write_bytes(b"\0")
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "link.txt").symlink_to("/etc/hostname")
    found = Reading(read_folder, tmp_path)
    assert found.texts == ["one", "three", "two"]
    assert len(found.warnings) == 1
    assert "c.jsonl was left out" in found.warnings[0]
    assert "Line 2" in found.warnings[0]


def test_a_folder_in_which_nothing_can_be_read_says_why(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xff")
    with pytest.raises(DataUnusable, match="not UTF-8"):
        Reading(read_folder, tmp_path)


def test_copies_of_a_document_are_left_out_and_counted(tmp_path, tokenizer, section, listener, prose):
    path = tmp_path / "a.jsonl"
    texts = [prose(seed, 2) for seed in range(30)]
    path.write_bytes(lines(*({"text": text} for text in [*texts, *texts[:7]])))
    data = prepare_data(section(path), tokenizer, 0, listener)
    assert data.summary.documents == 30
    assert "7 documents are copies of others and were left out." in listener.warnings
