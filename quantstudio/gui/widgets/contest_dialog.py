"""Find the best at this size: every way is tried, and all are measured on the same held-out text.

The search goes on when the dialog is closed; the button that opened it brings it back. Each way is an ordinary run, so
what is finished when the search is stopped stays in the list of runs.
"""

from __future__ import annotations

import time

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QCheckBox, QDialog, QGridLayout, QVBoxLayout, QWidget

from quantstudio.client.job_call import JobCall
from quantstudio.core.contest import QUANTIZED, TITLES, TRAINED, Contest, Contestant, contest_steps
from quantstudio.core.humanize import rough_seconds
from quantstudio.core.jobs import ContestJob
from quantstudio.core.protocol import Error
from quantstudio.core.recipe import Recipe
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import SPACE, Banner, ElidedLabel, button, label, row
from quantstudio.gui.widgets.contest_view import SIZE, ContestView
from quantstudio.gui.widgets.grow import grow_to_fit, resize_around
from quantstudio.gui.widgets.run_steps import StepBar, StepList, steps_of
from quantstudio.gui.widgets.run_words import detail_words, progress_words

SMALL = (620, 260)
_WHY = (
    "Makes the model in every way that is ticked, all of the same size, measures them on the same text, and says which "
    "is worth it – also when training is not."
)
_GOES_ON = "You can close this and do something else; the search goes on and the button brings it back."
_BUSY = "A run is at work. Start the search when it has finished, so that the two do not disturb each other."


class ContestDialog(QDialog):
    """`run_asked` and `method_asked` are the view's."""

    run_asked = Signal(str)
    method_asked = Signal(str)

    def __init__(self, call: JobCall, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._call = call
        call.setParent(self)
        self.recipe: Recipe | None = None
        self.setWindowTitle(tr("The best at this size"))
        resize_around(self, *SMALL)
        self.what = ElidedLabel("", "heading")
        self.time_words = label("", "muted", wrap=True)
        self.problem, self.view = Banner(), ContestView()
        self.boxes = {contestant: QCheckBox(tr(TITLES[contestant])) for contestant in QUANTIZED}
        self.start = button("Start", lambda: None, icon="play", variant="primary", tooltip="Try all that is ticked.")
        self.stop = button("Stop", call.cancel, icon="stop", variant="danger", tooltip="Stop; finished runs stay.")
        self.again = button("Look again…", self._start_over, icon="refresh", tooltip="Choose ways and search anew.")
        self.close_button = button("Close", self.reject, tooltip="Close; a search that is at work goes on.")
        self._make_parts()
        self._lay_out()
        self._connect()
        self._show_state()

    @property
    def busy(self) -> bool:
        """Whether a search is at work."""
        return self._call.busy

    def offer(self, recipe: Recipe, words: str, seconds: float) -> None:
        """Show the dialog: for this recipe, unless a search is at work or its result is of this recipe.

        `seconds` is what all ways together will take, roughly.
        """
        if not self._call.busy and recipe != self.recipe:
            self.recipe, self.view.contest = recipe, None
            self.what.setText(words)
            steps = f"{tr('Each training takes')} {contest_steps(recipe):,} {tr('steps.')}"
            took = f"{tr('All of them together:')} {rough_seconds(seconds)} {tr('on this machine.')}"
            self.time_words.setText(f"{took} {steps}")
            self.problem.say("")
            resize_around(self, *SMALL)
        self._show_state()
        self.show()
        self.activateWindow()

    def search(self, folder: str, *, busy: bool) -> None:
        """Start, with a run for each way in `folder`."""
        if busy:
            self.problem.say(tr(_BUSY), "warning")
            grow_to_fit(self)
            return
        if self.recipe is None:
            return
        self.problem.say("")
        self._call.ask(ContestJob(recipe=self.recipe, folder=folder, contestants=self.chosen()), Contest.model_validate)

    def chosen(self) -> tuple[Contestant, ...]:
        """Who is to take part. Rounding to nearest always does: the others are measured by what they win back of it."""
        return tuple(each for each in QUANTIZED if self.boxes[each].isChecked())

    def _make_parts(self) -> None:
        self._choice, self._progress = QWidget(), QWidget()
        grid = QGridLayout(self._choice)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(10)
        grid.addWidget(label(_WHY, wrap=True), 0, 0, 1, 2)
        for place, (contestant, box) in enumerate(self.boxes.items()):
            box.setChecked(True)
            box.setEnabled(contestant is not Contestant.RTN)
            tip = "Trained: takes longest." if contestant in TRAINED else "Takes seconds to minutes."
            box.setToolTip(tr(tip))
            grid.addWidget(box, 1 + place // 2, place % 2)
        grid.addWidget(self.time_words, 5, 0, 1, 2)
        self.phase, self.where = ElidedLabel("", "strong"), label("", "muted")
        self.bar, self.steps = StepBar(), StepList()
        self.at = ElidedLabel("", "caption")
        inner = QVBoxLayout(self._progress)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(10)
        for part in (self.phase, self.bar, self.where, self.at, self.steps, label(_GOES_ON, "caption", wrap=True)):
            inner.addWidget(part)

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
        layout.setSpacing(12)
        for part in (self.what, self.problem, self._choice, self._progress, self.view):
            layout.addWidget(part)
        layout.addStretch()
        layout.addLayout(row(self.stop, self.again, None, self.close_button, self.start))

    def _connect(self) -> None:
        self._call.changed.connect(self._show_state)
        self._call.answered.connect(self._on_answer)
        self._call.failed.connect(self._on_failed)
        self.view.run_asked.connect(self.run_asked)
        self.view.method_asked.connect(self.method_asked)

    def _show_state(self) -> None:
        state, done = self._call.state, self.view.contest is not None
        working = state is not None
        self._choice.setVisible(not working and not done)
        self.start.setVisible(not working and not done)
        self._progress.setVisible(working)
        self.stop.setVisible(working)
        self.view.setVisible(done and not working)
        self.again.setVisible(done and not working)
        if state is not None:
            now = time.time()
            self.phase.setText(state.phases[-1].title if state.phases else tr("Starting"))
            self.where.setText(progress_words(state, now))
            self.at.setText(detail_words(state))
            self.bar.show_state(state)
            self.steps.show_steps(steps_of(state, now))
            grow_to_fit(self)

    def _on_answer(self, contest: Contest) -> None:
        self.view.show_contest(contest)
        resize_around(self, *SIZE)
        self._show_state()

    def _on_failed(self, error: Error) -> None:
        self.problem.say(" ".join(part for part in (error.what, error.why, error.hint) if part), "error")
        grow_to_fit(self)

    def _start_over(self) -> None:
        self.view.contest = None
        resize_around(self, *SMALL)
        self._show_state()
