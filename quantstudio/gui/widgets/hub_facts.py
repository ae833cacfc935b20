"""The tabs of a Hub model's page. Each shows a part of `ModelDetails`; `clear` empties it while the Hub is asked."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from quantstudio.core.hub import Access, LayerKind, ModelDetails, ModelSummary
from quantstudio.core.humanize import human_bytes, human_count, human_percent
from quantstudio.gui.hub_texts import day, family_word
from quantstudio.gui.language import tr
from quantstudio.gui.model_texts import dtype_word
from quantstudio.gui.widgets.basics import GAP, SPACE, Card, button, label, wrapped
from quantstudio.gui.widgets.needs_panel import NeedsPanel
from quantstudio.gui.widgets.plain_table import PlainTable
from quantstudio.gui.widgets.stranger_text import StrangerText

FACTS_WIDTH = 280
MOST_OTHERS = 8
MOST_FILES = 2000
MOST_KINDS = 60
READABLE = 900
"""Rows of a table wider than this are hard to follow."""
PARTS = {"embedding": "Embedding", "layer": "Layers", "head": "Head", "rest": "Norms and biases"}


class AboutTab(QWidget):
    """The card, and the facts beside it. `model_wanted`: another model's page is wanted."""

    model_wanted = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.card = StrangerText("Model card")
        left = Card(spacing=0)
        left.body.setContentsMargins(12, 8, 4, 8)
        left.body.addWidget(self.card)
        self.facts = Card()
        self._rows = QVBoxLayout()
        self._rows.setSpacing(GAP)
        self.facts.body.addLayout(self._rows)
        self.facts.body.addStretch(1)
        side = _scrolled(self.facts)
        side.setFixedWidth(FACTS_WIDTH)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACE)
        layout.addWidget(left, 1)
        layout.addWidget(side)

    def clear(self) -> None:
        """Show nothing."""
        self.card.clear()
        _empty(self._rows)

    def show_summary(self, summary: ModelSummary) -> None:
        """What the list knew already, while the Hub is asked for the rest."""
        _empty(self._rows)
        self._rows.addWidget(_facts(_summary_facts(summary)))

    def show_details(self, details: ModelDetails) -> None:
        """Show everything."""
        unread = details.access in (Access.SIGN_IN, Access.ASK)
        missing = "Its card can be read once you have access." if unread else "The model has no card."
        self.card.show_markdown(details.card or tr(missing))
        _empty(self._rows)
        context = f"{details.context_length:,} {tr('tokens')}" if details.context_length else ""
        facts = [
            *_summary_facts(details.summary),
            ("Context", context),
            ("Base model", details.base_model),
            ("Version", details.commit[:12]),
            ("Download", human_bytes(details.total_bytes) if details.total_bytes else ""),
            ("Not here yet", _missing(details)),
        ]
        self._rows.addWidget(_facts(facts))
        others = details.quantizations[:MOST_OTHERS]
        if others:
            self._rows.addWidget(label("Quantized by others already", "strong"))
        for other in others:
            self._rows.addWidget(self._other(other))

    def _other(self, other: ModelSummary) -> QWidget:
        words = f"{other.quantized or tr('quantized')} · {human_bytes(other.download_bytes or 0)}"
        text = other.id if len(other.id) <= 34 else f"{other.id[:33]}…"
        made = button(text, lambda: self.model_wanted.emit(other.id), variant="fold", tooltip=f"{other.id} · {words}")
        made.setMaximumWidth(FACTS_WIDTH - 2 * SPACE)
        return made


class FitTab(QWidget):
    """What it needs here, and its size after each scheme."""

    def __init__(self) -> None:
        super().__init__()
        self.panel = NeedsPanel()
        self.sizes = PlainTable("Size after each scheme", ("Scheme", ">On disk", ">Smaller", "What to know"))
        table = Card("Size after each scheme")
        table.body.addWidget(self.sizes)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, GAP, 0)
        column.setSpacing(SPACE)
        column.addWidget(self.panel)
        column.addWidget(table)
        column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(_scrolled(_narrow(inside)))

    def clear(self) -> None:
        """Show nothing."""
        self.sizes.show_rows([])

    def show_details(self, details: ModelDetails) -> None:
        """Show the sizes; the panel is told by the page, which knows the folder of runs."""
        whole = sum(part.nbytes for part in details.parts)
        rows = [("As it is", human_bytes(whole), "–", "")] if whole else []
        for scheme in details.schemes:
            times = f"{whole / scheme.nbytes:.1f}×" if scheme.nbytes else "–"
            rows.append(
                (
                    scheme.label,
                    human_bytes(scheme.nbytes),
                    times,
                    tr("smaller groups in some layers") if scheme.problem else "",
                )
            )
        tips = ["", *(wrapped(scheme.problem) if scheme.problem else "" for scheme in details.schemes)]
        self.sizes.show_rows(rows, tips)
        self.sizes.setFixedHeight(46 + 30 * len(rows))


class LayersTab(QWidget):
    """Parameters by part, and which matrices can be quantized with which group sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = PlainTable("Parameters by part", ("Part", ">Parameters", ">Share", ">Size"))
        self.kinds = PlainTable("Weight matrices", ("Matrix", ">How many", ">Shape", "Group sizes that fit"))
        upper, lower = Card("Parameters by part"), Card("Weight matrices")
        upper.body.addWidget(self.parts)
        lower.body.addWidget(self.kinds)
        inside = QWidget()
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(0, 0, GAP, 0)
        layout.setSpacing(SPACE)
        layout.addWidget(upper)
        layout.addWidget(lower)
        layout.addStretch(1)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(_scrolled(_narrow(inside)))

    def clear(self) -> None:
        """Show nothing."""
        self.parts.show_rows([])
        self.kinds.show_rows([])

    def show_details(self, details: ModelDetails) -> None:
        """Show them."""
        total = max(1, sum(part.parameters for part in details.parts))
        rows = [
            (
                tr(PARTS.get(part.part, part.part)),
                human_count(part.parameters),
                human_percent(part.parameters / total),
                human_bytes(part.nbytes),
            )
            for part in details.parts
        ]
        self.parts.show_rows(rows)
        self.parts.setFixedHeight(44 + 30 * max(1, len(rows)))
        kinds = details.layer_kinds[:MOST_KINDS]
        self.kinds.show_rows([_kind_row(kind) for kind in kinds])
        self.kinds.setFixedHeight(44 + 30 * max(1, len(kinds)))


class FilesTab(QWidget):
    """Every file with its size, and whether a download fetches it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PlainTable("Files of the model", ("File", ">Size", "Download"))
        card = Card()
        card.body.addWidget(self.table)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(card)

    def clear(self) -> None:
        """Show nothing."""
        self.table.show_rows([])

    def show_details(self, details: ModelDetails) -> None:
        """Needed files first."""
        files = sorted(details.files, key=lambda file: (not file.needed, file.path))[:MOST_FILES]
        words = {(True, True): "here already", (True, False): "will be fetched"}
        rows = [
            (file.path, human_bytes(file.size), tr(words.get((file.needed, file.present), "not needed")))
            for file in files
        ]
        self.table.show_rows(rows)


class LicenceTab(QWidget):
    """The licence's text."""

    def __init__(self) -> None:
        super().__init__()
        self.name = label("", "heading")
        self.text = StrangerText("Licence")
        card = Card()
        card.body.addWidget(self.name)
        card.body.addWidget(self.text, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(card)

    def clear(self) -> None:
        """Show nothing."""
        self.name.clear()
        self.text.clear()

    def show_details(self, details: ModelDetails) -> None:
        """Show it."""
        self.name.setText(details.summary.licence or tr("The model does not say under which licence it is given."))
        self.text.setPlainText(details.licence_text or tr("The repository holds no text of the licence."))


def _summary_facts(summary: ModelSummary) -> list[tuple[str, str]]:
    return [
        ("Parameters", human_count(summary.parameters) if summary.parameters else ""),
        ("Numbers", f"quantized ({summary.quantized})" if summary.quantized else dtype_word(summary.dtype)),
        ("Architecture", family_word(summary)),
        ("Licence", summary.licence),
        ("Changed", day(summary.modified)),
        ("Downloads", f"{human_count(summary.downloads)} {tr('last month')}" if summary.downloads else ""),
        ("Likes", human_count(summary.likes) if summary.likes else ""),
    ]


def _missing(details: ModelDetails) -> str:
    if not details.total_bytes:
        return ""
    return human_bytes(details.download_bytes) if details.download_bytes else tr("nothing")


def _facts(facts: list[tuple[str, str]]) -> QWidget:
    made = QWidget()
    grid = QGridLayout(made)
    grid.setContentsMargins(0, 0, 0, 0)
    grid.setHorizontalSpacing(12)
    grid.setVerticalSpacing(6)
    grid.setColumnStretch(1, 1)
    for number, (name, value) in enumerate((name, value) for name, value in facts if value):
        text = label("", wrap=True)
        text.setText(value)
        text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        text.setAccessibleName(f"{tr(name)}: {value}")
        grid.addWidget(label(name, "muted"), number, 0, Qt.AlignmentFlag.AlignTop)
        grid.addWidget(text, number, 1)
    return made


def _kind_row(kind: LayerKind) -> tuple[str, str, str, str]:
    sizes = ", ".join(str(size) for size in kind.group_sizes) or tr("a whole row only")
    return (
        kind.name,
        f"{kind.count:,}",
        f"{kind.rows:,} × {kind.columns:,}",
        sizes if kind.quantizable else kind.why_not,
    )


def _narrow(inside: QWidget) -> QWidget:
    """The same, no wider than can be read, on the left."""
    outer = QWidget()
    layout = QHBoxLayout(outer)
    layout.setContentsMargins(0, 0, 0, 0)
    inside.setMaximumWidth(READABLE)
    layout.addWidget(inside, 1000)
    layout.addStretch(1)
    return outer


def _scrolled(inside: QWidget) -> QScrollArea:
    made = QScrollArea()
    made.setWidget(inside)
    made.setWidgetResizable(True)
    made.setFrameShape(QFrame.Shape.NoFrame)
    made.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return made


def _empty(layout: QVBoxLayout) -> None:
    while layout.count():
        item = layout.takeAt(0)
        if item is not None and (old := item.widget()):
            old.hide()
            old.deleteLater()
