"""What to search the Hub for: words, and filters that a person understands."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QGridLayout, QLineEdit, QSizePolicy, QVBoxLayout, QWidget

from quantstudio.core.hub import SearchQuery, Sort
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import GAP, button, row

SIZES = tuple(
    (round(float(text[:-1]) * {"M": 1e6, "B": 1e9}[text[-1]]), text)
    for text in ("100M", "500M", "1B", "3B", "7B", "15B", "35B", "75B")
)
LICENCES = ("apache-2.0", "mit", "llama3.2", "llama3.1", "gemma", "qwen-research", "cc-by-4.0", "openrail", "other")
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "mistral", "gpt_neox", "olmo", "smollm3", "granite")
SORTS = (
    (Sort.TRENDING, "Trending"),
    (Sort.DOWNLOADS, "Most downloaded"),
    (Sort.LIKES, "Most liked"),
    (Sort.MODIFIED, "Changed last"),
    (Sort.CREATED, "Newest"),
)
_SHARES = (6, 6, 5, 5, 5)
"""How the fields share the width: "Up to any size" needs the most."""
ACCESS = ((None, "Any access"), (False, "Open to all"), (True, "Gated"))


class HubFilters(QWidget):
    """`asked`: the person wants this searched. Choices ask at once, texts with Enter or the button."""

    asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.text = _line("Name of a model, such as qwen or smollm", "Words that the model's name holds.")
        self.author = _line("Author", "Person or organization that published the model.")
        self.smallest = _choice("At least so many parameters.", [(None, "From any size"), *_sized("From")])
        self.largest = _choice("At most so many parameters.", [(None, "Up to any size"), *_sized("Up to")])
        self.licence = _open_choice("Any licence", LICENCES, "Licence, by the Hub's short name.")
        self.family = _open_choice("Any family", FAMILIES, "Architecture family, as config.json names it.")
        self.access = _choice("Whether you have to ask for access first.", ACCESS)
        self.sort = _choice("Order of the results.", SORTS)
        self.search = button(
            "Search", self.asked.emit, icon="search", variant="primary", tooltip="Ask the Hub for these models."
        )
        self._lay_out()
        for line in (self.text, self.author):
            line.returnPressed.connect(self.asked)
        for choice in (self.smallest, self.largest, self.access, self.sort):
            choice.activated.connect(lambda _: self.asked.emit())
        for open_choice in (self.licence, self.family):
            open_choice.activated.connect(lambda _: self.asked.emit())
            if (edit := open_choice.lineEdit()) is not None:
                edit.returnPressed.connect(self.asked)

    def query(self) -> SearchQuery:
        """What the fields say. Texts are cut to what the Hub takes."""
        return SearchQuery(
            text=self.text.text().strip()[:200],
            author=self.author.text().strip()[:96],
            min_parameters=self.smallest.currentData(),
            max_parameters=self.largest.currentData(),
            licence=_chosen(self.licence),
            gated=self.access.currentData(),
            family=_chosen(self.family),
            sort=self.sort.currentData(),
        )

    def look_for_smaller(self, author: str, parameters: int) -> None:
        """Ask for this author's models of at most so many parameters."""
        self.text.clear()
        self.author.setText(author)
        self.smallest.setCurrentIndex(0)
        below = [number for number, _ in SIZES if number <= parameters]
        self.largest.setCurrentIndex(self.largest.findData(below[-1]) if below else 1)
        self.asked.emit()

    def _lay_out(self) -> None:
        grid = QGridLayout()
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(GAP)
        fields = (self.smallest, self.largest, self.licence, self.family, self.access)
        for place, (field, share) in enumerate(zip(fields, _SHARES, strict=True)):
            grid.addWidget(field, 0, place)
            grid.setColumnStretch(place, share)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(GAP)
        top = row(self.text, self.author, self.sort, self.search)
        top.setStretch(0, 4)
        top.setStretch(1, 2)
        top.setStretch(2, 2)
        layout.addLayout(top)
        layout.addLayout(grid)


def _sized(word: str) -> list[tuple[int, str]]:
    return [(number, f"{tr(word)} {text}") for number, text in SIZES]


def _line(hint: str, tip: str) -> QLineEdit:
    made = QLineEdit()
    made.setPlaceholderText(tr(hint))
    made.setAccessibleName(tr(hint))
    made.setToolTip(tr(tip))
    made.setClearButtonEnabled(True)
    made.setMaxLength(200)
    made.setMinimumWidth(60)
    made.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return made


def _choice(tip: str, entries: Sequence[tuple[object, str]]) -> QComboBox:
    made = QComboBox()
    for data, text in entries:
        made.addItem(tr(text), data)
    _dress(made, tip)
    return made


def _open_choice(anything: str, known: Sequence[str], tip: str) -> QComboBox:
    """A choice in which another word may be written too."""
    made = QComboBox()
    made.setEditable(True)
    made.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
    made.addItem(tr(anything))
    made.addItems(list(known))
    _dress(made, tip)
    return made


def _dress(box: QComboBox, tip: str) -> None:
    box.setToolTip(tr(tip))
    box.setAccessibleName(tr(tip).rstrip("."))
    box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(6)
    box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    if (edit := box.lineEdit()) is not None:
        edit.setCursorPosition(0)


def _chosen(box: QComboBox) -> str:
    """What is chosen or written; nothing for the first entry and for an empty field."""
    text = box.currentText().strip()
    return "" if text == box.itemText(0) else text[:60]
