"""Text files, read in pieces so that a file of any size or shape takes little memory. Files are hostile input."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from quantstudio.core.errors import DataUnusable
from quantstudio.engine.data.document import Budget, Document, Warn, refuse

FIELD = "data.source.path"
PIECE = 1 << 20
PART = 4 << 20
"""A longer text is handed over in parts of about so many characters, cut between paragraphs or lines."""
MAX_LINE = 1 << 20
"""Characters. The longest paragraph of the built-in books has about 20,000."""
_MAGIC = {
    b"\x1f\x8b": ("compressed with gzip", "Unpack it first."),
    b"BZh": ("compressed with bzip2", "Unpack it first."),
    b"\xfd7zXZ\x00": ("compressed with xz", "Unpack it first."),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Unpack it first."),
    b"PK\x03\x04": ("a zip archive or an office document", "Unpack it, or save the document as plain text."),
    b"%PDF": ("a PDF", "Save its text as a plain text file (.txt)."),
    b"PAR1": ("a Parquet file", "Give it the ending .parquet."),
    b"\xff\xfe": ("UTF-16 text", "Save it as UTF-8 in a text editor."),
    b"\xfe\xff": ("UTF-16 text", "Save it as UTF-8 in a text editor."),
}


def read_text(path: Path, budget: Budget, warn: Warn) -> Iterator[Document]:
    """One document: the file's text, in parts where it is long. Raises DataUnusable."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, begins, read = "", True, 0
    with open_text(path) as file:
        while raw := file.read(min(PIECE, budget.left)):
            budget.spend(len(raw))
            rest += _decode(decoder, raw, path, read)
            read += len(raw)
            _check_lines(rest, path)
            while len(rest) >= PART:
                part, rest = _cut(rest)
                yield Document(part, begins=begins)
                begins = False
        if file.read(1):
            warn(f"Only the first {budget.words()} of {path.name} are read.")
        else:
            rest += _decode(decoder, b"", path, read, final="yes")
    if not rest.strip() and begins:
        raise refuse(
            f"{path.name} is empty.", hint="Choose a file with a few pages of text, or the built-in books.", field=FIELD
        )
    yield Document(rest, begins=begins)


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """The file, opened; refused when its first bytes say that it is something else than text. Raises DataUnusable."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            for magic, (kind, hint) in _MAGIC.items():
                if head.startswith(magic):
                    raise refuse(f"{path.name} is not a text file.", why=f"It is {kind}.", hint=hint, field=FIELD)
            if b"\0" in head:
                raise _binary(path)
            file.seek(0)
            yield file
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataUnusable:
    """The operating system's answer in a person's words."""
    if isinstance(error, FileNotFoundError):
        return refuse(f"There is no file {path}.", hint="Choose a file that exists.", field=FIELD)
    if isinstance(error, IsADirectoryError) or path.is_dir():
        hint = "Choose a file in it, or 'A folder of files'."
        return refuse(f"{path} is a folder, not a file.", hint=hint, field=FIELD)
    why = f"{error.strerror or error}."
    return refuse(f"{path} cannot be read.", why=why, hint="Check the file, or choose another one.", field=FIELD)


def not_utf8(path: Path, position: int, where: str = "") -> DataUnusable:
    """The text is in another encoding than UTF-8; `position` counts bytes from 0."""
    return refuse(
        f"{path.name} is not UTF-8 text.",
        why=f"Byte {position:,}{where} belongs to no UTF-8 character.",
        hint="Save it as UTF-8 in a text editor, or convert it: iconv -f latin1 -t utf-8 OLD > NEW.",
        field=FIELD,
    )


def _decode(decoder: codecs.IncrementalDecoder, raw: bytes, path: Path, read: int, final: str = "") -> str:
    pending = len(decoder.getstate()[0])
    try:
        text = decoder.decode(raw, final=bool(final))
    except UnicodeDecodeError as error:
        raise not_utf8(path, read - pending + error.start) from error
    if "\0" in text:
        raise _binary(path)
    return text


def _binary(path: Path) -> DataUnusable:
    return refuse(
        f"{path.name} is not a text file.",
        why="It holds zero bytes, which text does not have.",
        hint="Choose a text file; if it is UTF-16 or UTF-32, save it as UTF-8.",
        field=FIELD,
    )


def _check_lines(text: str, path: Path) -> None:
    """Refuse a line of a megabyte: minified data or a file without line ends, which is no prose to learn from."""
    longest = max(map(len, text.split("\n"))) if len(text) > MAX_LINE else 0
    if longest > MAX_LINE:
        raise refuse(
            f"{path.name} has a line of more than {MAX_LINE:,} characters.",
            why="That is data or text without line ends, and its paragraphs cannot be told apart.",
            hint="Break it into lines or paragraphs, or turn it into JSON lines with a text in each.",
            field=FIELD,
        )


def _cut(text: str) -> tuple[str, str]:
    """`PART` characters or a little less, up to the end of a paragraph or at least of a line; and the rest."""
    for end in ("\n\n", "\n", " "):
        place = text.rfind(end, PART // 2, PART)
        if place > 0:
            return text[:place], text[place:]
    return text[:PART], text[PART:]
