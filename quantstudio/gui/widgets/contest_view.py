"""What a contest came to: the recommendation in a sentence, the table, and how far it can be trusted."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QDialog, QVBoxLayout, QWidget

from quantstudio.core.contest import TITLES, Contest, Contestant
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import SPACE, Banner, button, label, row
from quantstudio.gui.widgets.contest_table import ContestTable

SIZE = (980, 600)
_NOISE = "What rounding loses here is within noise, so no share of it is given as won back."


class ContestView(QWidget):
    """`run_asked` brings the id of a contestant's run, `method_asked` the id of the recommended method."""

    run_asked = Signal(str)
    method_asked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.contest: Contest | None = None
        self.recommendation = Banner()
        self.about = label("", "muted", wrap=True)
        self.notes = label("", "muted", wrap=True)
        self.table = ContestTable()
        self.open_run = button(
            "Open its run", self._on_run, icon="run", tooltip="Show the run of the chosen row, with its model."
        )
        self.use = button(
            "Use this way",
            self._on_use,
            icon="check",
            tooltip="Choose the method of the chosen row in the form.",
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(12)
        for part in (self.recommendation, self.table, self.notes, self.about):
            layout.addWidget(part)
        layout.addLayout(row(self.open_run, self.use, None))
        layout.addStretch()
        self.table.itemSelectionChanged.connect(self._on_chosen)
        self.table.itemActivated.connect(lambda _: self._on_run())

    def show_contest(self, contest: Contest) -> None:
        """Show this result."""
        self.contest = contest
        self.recommendation.say(contest.recommendation, "success")
        self.table.show_contest(contest)
        failed = [f"{TITLES[each.contestant]} {tr('could not be made.')} {each.why}" for each in contest.failed]
        self.notes.setText("\n".join(([tr(_NOISE)] if contest.gap_is_noise else []) + failed))
        self.notes.setVisible(bool(self.notes.text()))
        self.about.setText(
            f"{contest.model_name} {contest.scheme} · {contest.tokens:,} {tr('tokens of')} {contest.text} · "
            f"{tr('intervals of 95 %, all on the same text')}"
        )
        self._on_chosen()

    def _chosen(self) -> tuple[Contestant, str] | None:
        """The chosen contestant and the folder of its run."""
        place = self.table.currentRow()
        if self.contest is None or not 0 <= place < len(self.contest.rows):
            return None
        chosen = self.contest.rows[place]
        return chosen.contestant, chosen.run_folder

    def _on_chosen(self) -> None:
        chosen = self._chosen()
        for each in (self.open_run, self.use):
            each.setEnabled(chosen is not None and chosen[0] is not Contestant.ORIGINAL)

    def _on_run(self) -> None:
        if (chosen := self._chosen()) and chosen[1]:
            self.run_asked.emit(Path(chosen[1]).name)

    def _on_use(self) -> None:
        if (chosen := self._chosen()) and chosen[0] is not Contestant.ORIGINAL:
            self.method_asked.emit(str(chosen[0]))


def contest_window(contest: Contest, parent: QWidget) -> tuple[QDialog, ContestView]:
    """A dialog that shows a contest from an earlier day."""
    dialog, view = QDialog(parent), ContestView()
    dialog.setWindowTitle(tr("The best at this size"))
    dialog.resize(*SIZE)
    view.use.hide()
    view.show_contest(contest)
    view.run_asked.connect(lambda _: dialog.accept())
    layout = QVBoxLayout(dialog)
    layout.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
    layout.addWidget(view, 1)
    layout.addLayout(row(None, button("Close", dialog.accept, tooltip="Close this comparison.")))
    return dialog, view
