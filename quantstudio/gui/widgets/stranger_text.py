"""A stranger's Markdown, such as a model card, shown without doing anything that it says.

No HTML, no images, nothing loaded from anywhere; a link is opened in the browser, and only if it leads to the web.
Very long cards are cut: Qt lays a text out in the window's thread.
"""

from __future__ import annotations

import re
from typing import Any

from PySide6.QtCore import QUrl
from PySide6.QtGui import (
    QDesktopServices,
    QFont,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QTextTable,
)
from PySide6.QtWidgets import QFrame, QTextBrowser

from quantstudio.gui.language import tr

MAX_SHOWN = 60_000
MAX_LINE = 4_000
PARAGRAPH_SPACE = 8
_FENCE = re.compile(r"^\s*(```|~~~)")
_COMMENT = re.compile(r"<!--.*?(-->|\Z)", re.DOTALL)
_HIDDEN = re.compile(r"<(script|style|svg|iframe|object)\b.*?(</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,2000}>")
_LINKED_IMAGE = re.compile(r"\[!\[([^\[\]]{0,200})\]\([^()\s]{0,2000}[^()]{0,300}\)\]")
_IMAGE = re.compile(r"!\[([^\[\]]{0,200})\](\([^()]{0,2000}\)|\[[^\[\]]{0,200}\])")


class StrangerText(QTextBrowser):
    """Shows Markdown or plain text of unknown origin."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setOpenLinks(False)
        self.setOpenExternalLinks(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setProperty("role", "plain")
        self.setAccessibleName(tr(name))
        self.setToolTip("")
        self.document().setUndoRedoEnabled(False)
        self.anchorClicked.connect(open_web)

    def show_markdown(self, text: str) -> None:
        """Show a card."""
        features = QTextDocument.MarkdownFeature.MarkdownDialectGitHub | QTextDocument.MarkdownFeature.MarkdownNoHTML
        self.document().setMarkdown(without_html(text), features)
        _space_out(self.document())
        self.moveCursor(self.textCursor().MoveOperation.Start)

    def loadResource(self, kind: int, name: QUrl | str) -> Any:  # noqa: N802 - Qt's name
        """Nothing: neither from the network nor from the disk."""
        return None


def _space_out(document: QTextDocument) -> None:
    """Put space around tables and under paragraphs, which Qt's Markdown leaves to none, and lines between cells."""
    block = document.begin()
    while block.isValid():
        if QTextCursor(block).currentTable() is None:
            cursor, space = QTextCursor(block), QTextBlockFormat()
            space.setBottomMargin(max(block.blockFormat().bottomMargin(), PARAGRAPH_SPACE))
            cursor.mergeBlockFormat(space)
        block = block.next()
    for frame in document.rootFrame().childFrames():
        if isinstance(frame, QTextTable):
            look = frame.format()
            look.setBorderCollapse(True)
            look.setCellPadding(4)
            look.setTopMargin(PARAGRAPH_SPACE)
            look.setBottomMargin(PARAGRAPH_SPACE)
            frame.setFormat(look)
            first = frame.cellAt(0, 0).firstCursorPosition()
            if not first.block().text() and first.block().next().isValid():
                first.deleteChar()  # Qt begins a table with an empty line in its first cell
                _make_bold(first)


def _make_bold(start: QTextCursor) -> None:
    """The rest of the paragraph, which took its look from the empty line before it."""
    bold = QTextCharFormat()
    bold.setFontWeight(QFont.Weight.Bold)
    start.movePosition(QTextCursor.MoveOperation.EndOfBlock, QTextCursor.MoveMode.KeepAnchor)
    start.mergeCharFormat(bold)


def open_web(url: QUrl) -> bool:
    """Open an address of the web in the browser; anything else (files, programs, scripts) is not opened. Whether."""
    if url.scheme().lower() not in ("http", "https") or not url.host():
        return False
    return QDesktopServices.openUrl(url)


def without_html(text: str) -> str:
    """The Markdown without tags, comments and images, outside of code blocks; no longer than is shown."""
    shown = text[:MAX_SHOWN]
    if len(text) > MAX_SHOWN:
        shown += "\n\n…\n"
    pieces: list[str] = []
    plain: list[str] = []
    in_code = False
    for line in shown.splitlines():
        fence = bool(_FENCE.match(line))
        if fence and not in_code:
            pieces.append(_clean("\n".join(plain)))
            plain = []
        (pieces if in_code or fence else plain).append(line[:MAX_LINE])
        in_code ^= fence
    pieces.append(_clean("\n".join(plain)))
    return "\n".join(pieces)


def _clean(text: str) -> str:
    text = _HIDDEN.sub("", _COMMENT.sub("", text))
    text = _IMAGE.sub(r"\1", _LINKED_IMAGE.sub(r"[\1]", text))
    return "\n".join(_TAG.sub("", line).strip() if _TAG.search(line) else line for line in text.split("\n"))
