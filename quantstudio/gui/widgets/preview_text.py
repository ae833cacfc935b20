"""One sequence as the model sees it: what counts for the loss is marked, and borders of documents can be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from PySide6.QtGui import QColor, QFont, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import QTextEdit

from quantstudio.core.data_preview import PreviewSequence
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens

_MARK = re.compile(r"<\|[^|<>\s]{1,60}\|>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[(?:SEP|CLS)\]")
"""Tokens that stand for no text, as tokenizers write them."""
_BORDER = re.compile(r"<\|(?:endoftext|end_of_text|im_end|eot_id|end)\|>|</s>|<eos>|<end_of_turn>|\[SEP\]")
"""Of these, the ones that end a document or a turn."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a sequence of one kind."""

    text: str
    counted: bool
    mark: bool = False
    ends: bool = False
    """A mark after which a new document or turn begins."""


def pieces(sequence: PreviewSequence) -> Iterator[Piece]:
    """The sequence cut where its kind changes; put together again it is the sequence's text."""
    place = 0
    for start, end in (*sequence.counted, (len(sequence.text), len(sequence.text))):
        yield from _marked(sequence.text[place:start], counted=False)
        yield from _marked(sequence.text[start:end], counted=True)
        place = end


def counts_wholly(sequence: PreviewSequence) -> bool:
    """Whether every character counts, so that marking would mark nothing off."""
    return all(piece.counted or piece.mark for piece in pieces(sequence))


class SequenceView(QTextEdit):
    """Read-only. Plain text in, whatever it contains: markup stays text."""

    def __init__(self) -> None:
        super().__init__()
        self.setReadOnly(True)
        self.setTabChangesFocus(True)
        self.setAccessibleName(tr("Text as the model sees it"))
        self._sequence: PreviewSequence | None = None

    def show_sequence(self, sequence: PreviewSequence) -> None:
        """Show this from its beginning."""
        self._sequence = sequence
        self._write(sequence)

    def changeEvent(self, event: object) -> None:  # noqa: N802 - Qt's name
        super().changeEvent(event)  # type: ignore[arg-type]
        if getattr(self, "_sequence", None) is not None and not self.document().isEmpty():
            self._write(self._sequence)  # another theme

    def _write(self, sequence: PreviewSequence | None) -> None:
        if sequence is None:
            return
        formats = _formats(wholly=counts_wholly(sequence))
        self.clear()
        cursor = QTextCursor(self.document())
        cursor.beginEditBlock()
        for piece in pieces(sequence):
            cursor.insertText(piece.text, formats["mark" if piece.mark else "counted" if piece.counted else "read"])
            cursor.insertText("\n\n" if piece.ends else "", formats["read"])
        if sequence.cut:
            cursor.insertText(" …", formats["read"])
        cursor.endEditBlock()
        self.moveCursor(QTextCursor.MoveOperation.Start)


def _marked(text: str, *, counted: bool) -> Iterator[Piece]:
    place = 0
    for found in _MARK.finditer(text):
        if found.start() > place:
            yield Piece(text[place : found.start()], counted)
        yield Piece(found.group(), counted, mark=True, ends=bool(_BORDER.fullmatch(found.group())))
        place = found.end()
    if text[place:]:
        yield Piece(text[place:], counted)


def _formats(*, wholly: bool) -> dict[str, QTextCharFormat]:
    tokens = active_tokens()
    made = {name: QTextCharFormat() for name in ("read", "counted", "mark")}
    made["read"].setForeground(QColor(tokens.text if wholly else tokens.muted))
    made["counted"].setForeground(QColor(tokens.text))
    if not wholly:
        made["counted"].setBackground(QColor(tokens.accent_soft))
    made["mark"].setForeground(QColor(tokens.warning))
    made["mark"].setBackground(QColor(tokens.warning_soft))
    made["mark"].setFontWeight(QFont.Weight.DemiBold)
    return made
