"""The built-in books: passages of 116 public-domain books, see resources/text/README.md."""

from __future__ import annotations

import lzma
from collections.abc import Iterator

from quantstudio.core.paths import resources
from quantstudio.engine.data.document import Budget, Document, Warn

NAME = "built-in books"
LICENCE = "public domain in the United States"
PATH = resources() / "text" / "training.txt.xz"
NBYTES = 12_111_832
SEPARATOR = "\n\f\n"


def read_books(budget: Budget, warn: Warn) -> Iterator[Document]:
    """Each passage is a document, in the file's order, which is random; `budget` bytes of them at most."""
    with lzma.open(PATH, "rt", encoding="utf-8", newline="") as file:
        text = file.read()
    for passage in text.strip("\n").split(SEPARATOR):
        nbytes = len(passage.encode())
        if nbytes > budget.left:
            warn(f"Only the first {budget.words()} of the built-in books are read.")
            return
        budget.spend(nbytes)
        yield Document(passage)
