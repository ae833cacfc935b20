"""Two bars on one scale: the bytes of the original and of the result, by part of the model."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPainterPath, QPaintEvent
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QSizePolicy, QVBoxLayout, QWidget

from quantstudio.core.humanize import human_bytes
from quantstudio.core.result import Sizes
from quantstudio.gui.language import tr
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.tokens import Tokens
from quantstudio.gui.widgets.basics import label

PARTS = (
    ("layers", "Layers", 1.0),
    ("head", "Head", 0.7),
    ("embedding", "Embedding", 0.5),
    ("rest", "Rest", 0.3),
)
"""Part, its words, and how strongly it takes its bar's colour."""
BAR_HEIGHT = 12


def part_bytes(sizes: Sizes) -> dict[str, int]:
    """Bytes by part, in the order in which bars show them."""
    return {"layers": sizes.layers, "head": sizes.head, "embedding": sizes.embedding, "rest": sizes.rest}


class SizeBar(QWidget):
    """One bar. `scale` is the number of bytes that fills it."""

    def __init__(self, colour: str) -> None:
        super().__init__()
        self._colour = colour
        self._sizes: Sizes | None = None
        self._scale = 1
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFixedHeight(BAR_HEIGHT)

    def show_sizes(self, name: str, sizes: Sizes | None, scale: int) -> None:
        """Show these sizes; an empty bar for None."""
        self._sizes, self._scale = sizes, max(1, scale)
        told = ", ".join(_part_texts(sizes)) if sizes else ""
        self.setAccessibleName(f"{name}: {human_bytes(sizes.total)} ({told})" if sizes else name)
        self.setToolTip("\n".join(_part_texts(sizes)) if sizes else "")
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        return QSize(160, BAR_HEIGHT)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        tokens = active_tokens()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        outline = QPainterPath()
        outline.addRoundedRect(QRectF(self.rect()), 4, 4)
        painter.setClipPath(outline)
        painter.fillRect(self.rect(), QColor(tokens.pressed))
        x = 0.0
        for part, count in part_bytes(self._sizes).items() if self._sizes else ():
            width = self.width() * count / self._scale
            # A gap of one pixel keeps neighbours apart without relying on colour alone.
            painter.fillRect(QRectF(x, 0, max(0.0, width - 1), BAR_HEIGHT), part_colour(tokens, self._colour, part))
            x += width
        painter.end()


class SizeComparison(QWidget):
    """Original above result, and a legend with the bytes of each part of the result."""

    def __init__(self) -> None:
        super().__init__()
        self._original, self._result = SizeBar("original"), SizeBar("result")
        self._original_text, self._result_text = label("", "caption"), label("", "caption")
        self._legend = QGridLayout()
        self._legend.setHorizontalSpacing(12)
        self._legend.setVerticalSpacing(2)
        self._entries = {part: _Legend(part, words) for part, words, _ in PARTS}
        for index, entry in enumerate(self._entries.values()):
            self._legend.addWidget(entry, index // 2, index % 2)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        for words, text, bar in (
            ("Original", self._original_text, self._original),
            ("Result", self._result_text, self._result),
        ):
            line = QHBoxLayout()
            line.addWidget(label(words, "caption"), 1)
            line.addWidget(text)
            layout.addLayout(line)
            layout.addWidget(bar)
            layout.addSpacing(4)
        layout.addLayout(self._legend)

    def show_sizes(self, original: Sizes | None, result: Sizes | None) -> None:
        """Show both; empty bars for None."""
        scale = max(original.total if original else 0, result.total if result else 0)
        self._original.show_sizes(tr("Original"), original, scale)
        self._result.show_sizes(tr("Result"), result, scale)
        self._original_text.setText(human_bytes(original.total) if original else "–")
        self._result_text.setText(human_bytes(result.total) if result else "–")
        for part, entry in self._entries.items():
            entry.say(part_bytes(result)[part] if result else None)


class _Legend(QWidget):
    """A swatch, a part's name and its bytes."""

    def __init__(self, part: str, words: str) -> None:
        super().__init__()
        self._words = words
        self._swatch = _Swatch(part)
        self._text = label("", "caption")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(6)
        layout.addWidget(self._swatch)
        layout.addWidget(self._text, 1)

    def say(self, count: int | None) -> None:
        self._text.setText(f"{tr(self._words)} {human_bytes(count)}" if count else tr(self._words))
        self.setEnabled(bool(count))


class _Swatch(QWidget):
    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part
        self.setFixedSize(10, 10)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(part_colour(active_tokens(), "result", self._part))
        painter.drawRoundedRect(QRectF(self.rect()), 3, 3)
        painter.end()


def part_colour(tokens: Tokens, bar: str, part: str) -> QColor:
    """The colour of a part: the bar's own (grey for the original, accent for the result), weaker for lesser parts."""
    strong = QColor(tokens.series[0 if bar == "original" else 1])
    weak = QColor(tokens.card)
    share = next(strength for name, _, strength in PARTS if name == part)
    pairs = ((strong.red(), weak.red()), (strong.green(), weak.green()), (strong.blue(), weak.blue()))
    return QColor(*(round(a * share + b * (1 - share)) for a, b in pairs))


def _part_texts(sizes: Sizes) -> list[str]:
    counts = part_bytes(sizes)
    return [f"{tr(words)} {human_bytes(counts[part])}" for part, words, _ in PARTS if counts[part]]
