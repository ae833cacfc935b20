"""Bits for every layer: measure once how much each suffers, then aim, look, and change what you know better.

Measuring happens in a worker and can be stopped; all else is arithmetic of milliseconds, so size and loss follow every
edit. What comes out goes into the recipe as a list of layers and bits.
"""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QDialog, QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from quantstudio.client.job_call import JobCall
from quantstudio.core.humanize import human_bytes, rough_seconds
from quantstudio.core.jobs import SensitivityJob
from quantstudio.core.protocol import Error
from quantstudio.core.recipe import Recipe
from quantstudio.core.sensitivity import Allotment, Sensitivity, advice, allot, bits_of, predict, uniform
from quantstudio.gui.language import tr
from quantstudio.gui.theme import set_icon
from quantstudio.gui.widgets.basics import GAP, SPACE, Banner, button, column, label, restyle, row
from quantstudio.gui.widgets.bits_map import ROW, BitsMap
from quantstudio.gui.widgets.bits_model import BitsModel
from quantstudio.gui.widgets.bits_target import TargetBar
from quantstudio.gui.widgets.grow import grow_to_fit, resize_around
from quantstudio.gui.widgets.run_words import detail_words

SIZE, SMALL, AROUND = (780, 680), (620, 170), 262
HEAD, FEW_ROWS = 38, 8
_WHY = (
    "Some layers of a model bear few bits, others do not. Measuring quantizes each layer by itself and looks how far "
    "the model's answers move. Then bits can be spent where they matter."
)
_KEYS = "Click a cell for its next number of bits, or press 2, 3, 4, 8, + or −. Click a name to choose a row or column."
_COLOUR = "Rows are the model's blocks from first to last. The warmer the colour, the more sensitive the layer."
_BUSY = "A run is at work. Measuring would disturb it and be disturbed; start it when the run has finished."


class BitsDialog(QDialog):
    """`chosen` brings the allotment that the person wants in the recipe; `measured` every new measurement."""

    chosen = Signal(object)
    measured = Signal(object)

    def __init__(self, call: JobCall, recipe: Recipe, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._call, self.recipe = call, recipe
        call.setParent(self)
        self.sensitivity: Sensitivity | None = None
        self.model: BitsModel | None = None
        self.setWindowTitle(tr("Bits per layer"))
        self.resize(*SMALL)
        self.target, self.map = TargetBar(), BitsMap()
        self.warning, self.problem = Banner(), Banner()
        self.why = label(_WHY, wrap=True)
        self.waiting, self.bar = label("", "muted", wrap=True), QProgressBar()
        self.bar.setAccessibleName(tr("Measuring"))
        self.numbers = {key: label("", "number") for key in ("bits", "size", "loss")}
        self.uniform = label("", "muted", wrap=True)
        self._make_buttons()
        self._lay_out()
        self._connect()
        self._show_state()

    @property
    def busy(self) -> bool:
        """Whether it measures."""
        return self._call.busy

    def show_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Edit on the ground of this measurement; begins with what the recipe says."""
        self.sensitivity = sensitivity
        self.model = BitsModel(sensitivity, self)
        self.model.edited.connect(self._on_edited)
        self.map.show_bits(self.model)
        self.target.show_range(sensitivity)
        first = bits_of(sensitivity, self.recipe.precision, self.recipe.scheme.weight_spec().bits)
        self.model.set_bits(first.bits)
        self.target.show_allotment(first)
        self._show_prediction(first)
        rows = self.model.rowCount() * ROW
        self.map.setMinimumHeight(HEAD + min(rows, FEW_ROWS * ROW))
        resize_around(self, SIZE[0], min(SIZE[1], AROUND + rows))
        self._show_state()
        grow_to_fit(self)  # a warning may have come with the first prediction

    def allotment(self) -> Allotment | None:
        """What the map says now, with what it is predicted to cost."""
        if self.sensitivity is None or self.model is None:
            return None
        return predict(self.sensitivity, self.model.bits)

    def measure(self, *, busy: bool) -> None:
        """Start measuring, unless a run is at work."""
        if busy:
            self.problem.say(tr(_BUSY), "warning")
            grow_to_fit(self)
            return
        self.problem.say("")
        self._call.ask(SensitivityJob(model=self.recipe.model.id, recipe=self.recipe), Sensitivity.model_validate)

    def done(self, result: int) -> None:
        self._call.drop()
        super().done(result)

    def _make_buttons(self) -> None:
        self.measure_button = button(
            "Measure sensitivity",
            lambda: None,
            icon="play",
            variant="primary",
            tooltip="Quantize each layer by itself and see what it costs. Takes minutes for small models.",
        )
        self.stop = button("Stop", self._call.cancel, icon="stop", tooltip="Stop measuring. Nothing is kept of it.")
        self.use = button(
            "Use these bits",
            self._on_use,
            icon="check",
            variant="primary",
            tooltip="Write these bits into the recipe, as a list of layers.",
        )
        self.close_button = button("Close", self.reject, tooltip="Close without changing the recipe.")

    def _lay_out(self) -> None:
        numbers = QHBoxLayout()
        numbers.setSpacing(28)
        for key, words in (
            ("bits", "Average bits"),
            ("size", "Predicted size"),
            ("loss", "Predicted KL divergence, nats"),
        ):
            self.numbers[key].setAccessibleName(tr(words))
            numbers.addLayout(column(label(words, "caption"), self.numbers[key], spacing=0))
        numbers.addWidget(self.uniform, 1)
        self._body = QWidget()
        inner = QVBoxLayout(self._body)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(12)
        inner.addWidget(self.target)
        inner.addLayout(numbers)
        inner.addWidget(self.map, 1)
        inner.addWidget(label(f"{tr(_KEYS)} {tr(_COLOUR)}", "caption", wrap=True))
        inner.addWidget(self.warning)  # at the end: it comes and goes while the slider and the map are under the mouse
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
        layout.setSpacing(12)
        for part in (self.why, self.problem, self.waiting, self.bar):
            layout.addWidget(part)
        layout.addWidget(self._body, 1)
        layout.addStretch()
        layout.addLayout(row(self.measure_button, self.stop, None, self.close_button, self.use, spacing=GAP))

    def _connect(self) -> None:
        self.target.moved.connect(self._on_target)
        self._call.changed.connect(self._show_state)
        self._call.answered.connect(self._on_measured)
        self._call.failed.connect(self._on_failed)

    def _show_state(self) -> None:
        state, known = self._call.state, self.sensitivity is not None
        measuring = state is not None
        self.why.setVisible(not known)
        self._body.setVisible(known and not measuring)
        for part in (self.waiting, self.bar, self.stop):
            part.setVisible(measuring)
        self.measure_button.setVisible(not measuring)
        restyle(self.measure_button, "variant", "" if known else "primary")
        set_icon(self.measure_button, "refresh" if known else "play", "text" if known else "on_accent")
        self.measure_button.setText(tr("Measure again") if known else tr("Measure sensitivity"))
        self.use.setVisible(known and not measuring)
        if state is not None:
            progress = state.progress
            self.bar.setRange(0, round(progress.total) if progress else 0)
            self.bar.setValue(round(progress.done) if progress else 0)
            left = f"{rough_seconds(progress.eta_s)} {tr('left')}" if progress and progress.eta_s is not None else ""
            phase = state.phases[-1].title if state.phases else tr("Starting")
            self.waiting.setText(" · ".join(part for part in (phase, detail_words(state), left) if part))
            grow_to_fit(self)

    def _on_measured(self, sensitivity: Sensitivity) -> None:
        self.measured.emit(sensitivity)
        self.show_sensitivity(sensitivity)

    def _on_failed(self, error: Error) -> None:
        self.problem.say(" ".join(part for part in (error.what, error.why, error.hint) if part), "error")
        grow_to_fit(self)

    def _on_target(self) -> None:
        if self.sensitivity is not None and self.model is not None:
            allotment = allot(self.sensitivity, self.target.target())
            self.model.set_bits(allotment.bits)
            self._show_prediction(allotment)

    def _on_edited(self) -> None:
        if allotment := self.allotment():
            self.target.show_allotment(allotment)
            self._show_prediction(allotment)

    def _show_prediction(self, allotment: Allotment) -> None:
        if self.sensitivity is None:
            return
        self.numbers["bits"].setText(f"{allotment.average_bits:.2f}")
        self.numbers["size"].setText(human_bytes(allotment.nbytes))
        self.numbers["loss"].setText(f"{allotment.kl:.2g}")
        bits = self.recipe.scheme.weight_spec().bits
        alike = uniform(self.sensitivity, bits)
        words = f"{bits} {tr('bits in every layer:')} {human_bytes(alike.nbytes)}, {tr('KL divergence')} {alike.kl:.2g}"
        self.uniform.setText(words)
        sentences = advice(self.sensitivity, allotment)
        if not allotment.reached:
            sentences.insert(0, tr("This target is out of reach; the map shows what is nearest to it."))
        self.warning.say(" ".join(sentences), "warning")
        grow_to_fit(self)

    def _on_use(self) -> None:
        self.chosen.emit(self.allotment())
        self.accept()
