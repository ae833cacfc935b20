"""How good are our estimates? What runs were predicted to need, beside what they needed."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtGui import QShowEvent

from quantstudio.core.estimate_learning import Observation, errors, fit, read_observations
from quantstudio.core.humanize import human_bytes, human_percent, human_seconds, plural
from quantstudio.gui.background import Latest
from quantstudio.gui.context import AppContext
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import Card, label, typeset
from quantstudio.gui.widgets.plain_table import PlainTable

MOST_SHOWN = 8
EXPLANATION = (
    "Every run notes what it was predicted to need and what it needed. The next estimates on this machine are "
    "corrected by that."
)
NOTHING_YET = "No run has finished here yet, so estimates are the formula's own."
COLUMNS = ("Run", ">Memory predicted", ">measured", ">Time predicted", ">measured")


class EstimatesCard(Card):
    """Reads the run folders when it is shown and when a run ends."""

    def __init__(self, context: AppContext) -> None:
        super().__init__("How good are our estimates?")
        self.context = context
        self.sentence = label(NOTHING_YET, wrap=True)
        self.table = PlainTable("Predicted and measured costs of the last runs", COLUMNS)
        self.body.addWidget(label(EXPLANATION, "muted", wrap=True))
        self.body.addWidget(self.sentence)
        self.body.addWidget(self.table)
        self.table.hide()
        self._latest = Latest(self)
        self._latest.found.connect(self.show_observations)
        context.queue.finished.connect(lambda _: self.look())
        context.closing.connect(self._latest.wait)

    def look(self) -> None:
        """Read the run folders, away from the window's thread."""
        if self.isVisible():
            folder = self.context.settings.runs_path
            self._latest.ask(lambda: read_observations(folder))

    def show_observations(self, found: Sequence[Observation]) -> None:
        """Show the newest of these, and what they say together."""
        self.sentence.setText(typeset(tr(words(found))))
        rows = [
            (
                observation.run.name or observation.run.id,
                human_bytes(observation.costs.predicted_memory),
                human_bytes(observation.costs.measured_memory),
                human_seconds(observation.costs.predicted_seconds),
                human_seconds(observation.costs.measured_seconds),
            )
            for observation in found[:MOST_SHOWN]
        ]
        self.table.show_rows(rows)
        self.table.setFixedHeight(46 + 30 * len(rows))
        self.table.setVisible(bool(rows))

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        super().showEvent(event)
        self.look()


def words(found: Sequence[Observation]) -> str:
    """What the runs say together, and what is made of it."""
    if not found:
        return NOTHING_YET
    memory = errors((each.costs.predicted_memory, each.costs.measured_memory) for each in found)
    seconds = errors((each.costs.predicted_seconds, each.costs.measured_seconds) for each in found)
    text = (
        f"Over {plural(len(found), 'run')}, predicted memory was off by {human_percent(memory.median)} in the middle "
        f"and {human_percent(memory.worst)} at worst; predicted time by {human_percent(seconds.median)} and "
        f"{human_percent(seconds.worst)}."
    )
    last = fit(found, found[0].kind)
    return (
        f"{text} Estimates for runs like the last one are now multiplied by {last.memory:.2f} for memory and "
        f"{last.seconds:.2f} for time."
    )
