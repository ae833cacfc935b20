"""What the bits should come to: an average, a size or a loss, set on a slider that reaches exactly what is possible."""

from __future__ import annotations

import math

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QSlider, QWidget

from quantstudio.core.humanize import human_bytes
from quantstudio.core.recipe_precision import AverageBits, FileSize, LargestLoss
from quantstudio.core.sensitivity import Allotment, Sensitivity, Target, predict
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import label

STEPS = 400
AVERAGE, SIZE, LOSS = "average_bits", "file_size", "largest_loss"
_MB = 1_000_000
_KINDS = ((AVERAGE, "Average bits"), (SIZE, "Size of the weights"), (LOSS, "Largest loss"))


class TargetBar(QWidget):
    """`moved` comes when the person chose another target; `target` is it."""

    moved = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.slider, self.value = QComboBox(), QSlider(Qt.Orientation.Horizontal), label("", "strong")
        for kind, words in _KINDS:
            self.kind.addItem(tr(words), kind)
        self.kind.setAccessibleName(tr("What to aim for"))
        self.kind.setToolTip(tr("Bits are given to the layers so that this is met with the least loss."))
        self.slider.setRange(0, STEPS)
        self.slider.setPageStep(STEPS // 20)
        self.slider.setMinimumHeight(26)
        self.slider.setAccessibleName(tr("Target"))
        self.value.setMinimumWidth(88)
        self.value.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(12)
        for part in (label("Aim for"), self.kind):
            layout.addWidget(part)
        layout.addWidget(self.slider, 1)
        layout.addWidget(self.value)
        self._fewest = self._most = Allotment({}, 0.0, 0, 0.0)
        self.kind.activated.connect(lambda _: self._on_moved())
        self.slider.valueChanged.connect(lambda _: self._on_moved())

    def show_range(self, sensitivity: Sensitivity) -> None:
        """Reach from the fewest bits to the most that the layers can have."""
        self._fewest = predict(sensitivity, {layer.name: layer.options[0].bits for layer in sensitivity.layers})
        self._most = predict(sensitivity, {layer.name: layer.options[-1].bits for layer in sensitivity.layers})

    def target(self) -> Target:
        """What the slider stands at."""
        low, high, share = self._fewest, self._most, self.slider.value() / STEPS
        kind = self.kind.currentData()
        if kind == AVERAGE:
            average = low.average_bits + share * (high.average_bits - low.average_bits)
            return AverageBits(average_bits=min(8.0, max(2.0, round(average, 2))))
        if kind == SIZE:
            return FileSize(file_size_mb=max(0.1, (low.nbytes + share * (high.nbytes - low.nbytes)) / _MB))
        least, most = max(high.kl, 1e-9), max(low.kl, 1e-8)
        return LargestLoss(largest_kl=min(100.0, math.exp(math.log(most) + share * (math.log(least) - math.log(most)))))

    def show_allotment(self, allotment: Allotment) -> None:
        """Stand where these bits are, without `moved`: after an edit by hand, or another kind of target."""
        low, high = self._fewest, self._most
        kind = self.kind.currentData()
        if kind == AVERAGE:
            share = _share(allotment.average_bits, low.average_bits, high.average_bits)
        elif kind == SIZE:
            share = _share(allotment.nbytes, low.nbytes, high.nbytes)
        else:
            logs = [math.log(max(each.kl, 1e-9)) for each in (allotment, low, high)]
            share = _share(*logs)
        with QSignalBlocker(self.slider):
            self.slider.setValue(round(share * STEPS))
        self._say()

    def _on_moved(self) -> None:
        self._say()
        self.moved.emit()

    def _say(self) -> None:
        target = self.target()
        if isinstance(target, AverageBits):
            text = f"{target.average_bits:.2f} {tr('bits')}"
        elif isinstance(target, FileSize):
            text = human_bytes(target.file_size_mb * _MB)
        else:
            text = f"KL {target.largest_kl:.2g}"
        self.value.setText(text)
        self.slider.setAccessibleDescription(text)


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low))) if high != low else 1.0
