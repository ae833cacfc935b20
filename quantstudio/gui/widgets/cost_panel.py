"""What a run will cost, before it starts: size by part, memory, disk and time."""

from __future__ import annotations

from PySide6.QtWidgets import QHBoxLayout, QLabel, QVBoxLayout

from quantstudio.core.humanize import human_bytes, human_percent, rough_seconds
from quantstudio.gui.cost import Cost
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import Banner, Card, label
from quantstudio.gui.widgets.size_bar import SizeComparison

UNKNOWN = "–"


class CostPanel(Card):
    """Shows a `Cost`; dashes for what is not known."""

    def __init__(self) -> None:
        super().__init__("What it will cost")
        self.output = label(UNKNOWN, "number")
        self.share = label("", "muted", wrap=True)
        top = QVBoxLayout()
        top.setSpacing(0)
        top.addWidget(self.output)
        top.addWidget(self.share)
        self.body.addLayout(top)
        self.bars = SizeComparison()
        self.body.addWidget(self.bars)
        self.facts: dict[str, QLabel] = {}
        facts = QVBoxLayout()
        facts.setSpacing(6)
        for key, words, tip in (
            ("memory", "Peak memory", "The most memory that the job will hold at once, measuring included."),
            ("disk", "Disk space", "What the run's folder will take."),
            ("time", "Rough time", "From start to finish, measuring included. A guess from the model's size."),
            ("layers", "Layers quantized", "How many of the model's weight matrices are put on a coarser grid."),
        ):
            facts.addLayout(self._fact(key, words, tip))
        self.body.addLayout(facts)
        self.notice = Banner()
        self.body.addWidget(self.notice)
        self.body.addStretch(1)

    def show_cost(self, cost: Cost) -> None:
        """Show what is known of it."""
        guess = cost.estimate
        plan = guess.plan if guess else None
        self.bars.show_sizes(plan.original_sizes if plan else None, plan.sizes if plan else None)
        self.output.setText(human_bytes(plan.sizes.total) if plan else UNKNOWN)
        self.share.setText(_share_text(plan.sizes.total, plan.original_sizes.total) if plan else "")
        self.facts["memory"].setText(human_bytes(guess.peak_memory_bytes) if guess else UNKNOWN)
        self.facts["disk"].setText(human_bytes(guess.disk_bytes) if guess else UNKNOWN)
        self.facts["time"].setText(rough_seconds(guess.seconds) if guess else UNKNOWN)
        self.facts["layers"].setText(f"{len(plan.quantized)} / {len(plan.layers)}" if plan else UNKNOWN)
        self.notice.say("\n\n".join(plan.notices) if plan else "", "info")

    def _fact(self, key: str, words: str, tip: str) -> QHBoxLayout:
        name, value = label(words, "muted"), label(UNKNOWN)
        for part in (name, value):
            part.setToolTip(tr(tip))
        value.setAccessibleName(tr(words))
        value.setAccessibleDescription(tr(tip))
        self.facts[key] = value
        line = QHBoxLayout()
        line.addWidget(name, 1)
        line.addWidget(value)
        return line


def _share_text(result: int, original: int) -> str:
    if not original:
        return ""
    share = human_percent(result / original)
    return f"{share} {tr('of the original')} ({human_bytes(original)})"
