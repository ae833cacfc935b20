"""How `training.txt.xz` was made: passages of every book of a collection, drawn by a seed.

    python resources/text/sample.py BOOKS.txt.xz resources/text/training.txt.xz

BOOKS.txt.xz holds books as UTF-8 text with `<|endoftext|>` between them. A passage is a chapter, or several short ones,
or a part of a long one; it begins and ends with a paragraph. Passages are separated by a form feed and stand in a
random order, so that any part of the file is a sample of the whole.
"""

from __future__ import annotations

import lzma
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 20250101
BYTES = 12_000_000
SHORTEST, LONGEST = 6_000, 30_000
FRONT_MATTER = 12_000
"""Characters at the beginning of a book that is longer than ten times this: title pages and lists of chapters."""
SEPARATOR = "\n\f\n"
HEADING = re.compile(r"(?i:chapter|book|part|act|scene|letter|canto|section)\b.{0,70}|[IVXLC]+\.?(?: .{0,60})?")


def passages(book: str) -> Iterator[str]:
    """The book's passages in order; what is shorter than `SHORTEST` is left out."""
    piece: list[str] = []
    size = 0
    for paragraph in book.split("\n\n"):
        begins_chapter = HEADING.fullmatch(paragraph.strip()) is not None
        if size and (size + len(paragraph) > LONGEST or (begins_chapter and size >= SHORTEST)):
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(paragraph.strip())
        size += len(paragraph) + 2
    if size >= SHORTEST:
        yield "\n\n".join(piece)


def sample(books: list[str], chance: random.Random) -> list[str]:
    """The same share of every book, at least one passage of each, in random order."""
    share = BYTES / sum(len(book.encode()) for book in books)
    chosen: list[str] = []
    for book in books:
        start = FRONT_MATTER if len(book) > 10 * FRONT_MATTER else 0
        found = [passage for passage in passages(book[start:].partition("\n\n")[2]) if len(passage) <= LONGEST]
        wanted, have = share * len(book), 0
        for passage in chance.sample(found, len(found)):
            if have >= wanted - len(passage) / 2 and have:
                break
            chosen.append(passage)
            have += len(passage)
    chance.shuffle(chosen)
    return chosen


def main(source: Path, target: Path) -> None:
    text = lzma.decompress(source.read_bytes()).decode("utf-8").replace("\f", " ").replace("\xa0", " ")
    books = [book.strip() for book in text.split("<|endoftext|>") if book.strip()]
    chosen = sample(books, random.Random(SEED))  # noqa: S311 - a sample, no secret
    data = SEPARATOR.join(chosen).encode() + b"\n"
    target.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
