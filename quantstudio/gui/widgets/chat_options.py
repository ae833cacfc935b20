"""How the model answers: system prompt, chat template or plain continuation, and how the next token is picked.

The sampling controls are made from the fields of `Sampling`, whose titles, help and limits are also those of the
command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import annotated_types
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QFrame, QLineEdit, QPlainTextEdit, QScrollArea, QVBoxLayout, QWidget

from quantstudio.core.fieldspec import FieldKind, FieldSpec, field_specs
from quantstudio.core.jobs import Sampling
from quantstudio.core.machine import may_have_gpu
from quantstudio.core.recipe import MachineSection
from quantstudio.core.settings import Settings
from quantstudio.gui.forms.editors import Editor, editor_for
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import breakable, button, label, wrapped

WIDTH = 264
ENGINE, KERNEL, KV_CACHE = "machine.engine", "machine.kernel", "machine.kv_cache"
COMPILE = "machine.compile"
"""Only where there may be a GPU."""
SEED = "seed"
STOP = "stop"
MAX_SEED = 2**31 - 1
MAX_STOPS, MAX_STOP_CHARS = 16, 200
_KINDS = {float: FieldKind.FLOAT, int: FieldKind.INT}


def sampling_specs() -> list[FieldSpec]:
    """The sampling settings as the form's editors take them. The seed is text, because it may be empty."""
    specs = []
    for name, info in Sampling.model_fields.items():
        special = {SEED: FieldKind.TEXT, STOP: FieldKind.LINES}
        kind = special[name] if name in special else _KINDS[float if info.annotation is float else int]
        low = next((float(str(m.ge)) for m in info.metadata if isinstance(m, annotated_types.Ge)), None)
        if any(isinstance(m, annotated_types.Gt) for m in info.metadata):
            low = 0.01
        high = next((float(str(m.le)) for m in info.metadata if isinstance(m, annotated_types.Le)), None)
        default = "" if name == SEED else info.default
        title, help_text = info.title or "", info.description or ""
        specs.append(FieldSpec(name, "sampling", title, help_text, kind, default, low, high))
    return specs


class ChatOptions(QScrollArea):
    """The fold-out beside the conversation."""

    changed = Signal()
    machine_changed = Signal()
    """The person chose another engine, kernel or key-value cache; a model that is loaded keeps the one it has."""

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setFixedWidth(WIDTH)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.mode = QComboBox()
        self.system = QPlainTextEdit()
        self.editors: dict[str, Editor] = {}
        self.machine_editors: dict[str, Editor] = {}
        self.kernels = label("", "caption", wrap=True)
        self.kernels.hide()
        self._layout = QVBoxLayout()
        self._layout.setContentsMargins(0, 0, 16, 16)
        self._layout.setSpacing(4)
        self._make_mode()
        self._make_system()
        self._make_machine()
        self._layout.addSpacing(12)
        self._layout.addWidget(label(tr("Sampling"), "heading"))
        for spec in sampling_specs():
            self._add_editor(spec)
        reset = button(
            tr("Defaults"),
            lambda: self.set_sampling(Sampling()),
            icon="refresh",
            tooltip=tr("Put every sampling setting back to its default."),
        )
        self._layout.addSpacing(12)
        self._layout.addWidget(reset)
        self._layout.addStretch(1)
        inside = QWidget()
        inside.setLayout(self._layout)
        self.setWidget(inside)

    def template(self) -> bool:
        """Whether the chat template is used."""
        return bool(self.mode.currentData())

    def set_template(self, *, on: bool) -> None:
        """Choose between chat template and plain continuation."""
        self.mode.setCurrentIndex(self.mode.findData(on))

    def machine(self, settings: Settings) -> MachineSection:
        """What the model is to run on, and how."""
        chosen = {path.rpartition(".")[2]: editor.value() for path, editor in self.machine_editors.items()}
        return MachineSection(device=settings.device, threads=settings.threads, **chosen)

    def say_kv_cost(self, sentence: str) -> None:
        """What int8 there costs the chosen model; empty when no run has measured it."""
        self.kv_cost.setText(sentence or tr("What int8 costs this model: not measured. A run with int8 measures it."))

    def say_kernels(self, lines: Sequence[str]) -> None:
        """What runs the loaded model, with the operators' own names; nothing and no room while none is loaded."""
        self.kernels.setText(breakable("\n".join(lines)))
        self.kernels.setVisible(bool(lines))

    def sampling(self) -> Sampling:
        """The settings. A seed that is no whole number counts as none."""
        values: dict[str, Any] = {name: editor.value() for name, editor in self.editors.items()}
        seed = str(values.pop(SEED)).strip()
        number = int(seed) if seed.isascii() and seed.isdecimal() and len(seed) < 11 else None
        values[SEED] = min(number, MAX_SEED) if number is not None else None
        values[STOP] = tuple(text[:MAX_STOP_CHARS] for text in values[STOP][:MAX_STOPS])
        return Sampling.model_validate(values)

    def set_sampling(self, sampling: Sampling) -> None:
        """Show these settings."""
        for name, editor in self.editors.items():
            value = getattr(sampling, name)
            editor.set_value("" if value is None else str(value) if name == SEED else value)
        self.changed.emit()

    def _make_mode(self) -> None:
        help_text = tr("With the chat template the model answers you. Without it, the model continues your text.")
        self.mode.addItem(tr("Chat"), True)  # noqa: FBT003 - the item's data
        self.mode.addItem(tr("Continue my text"), False)  # noqa: FBT003
        self.mode.setAccessibleName(tr("Way of answering"))
        self.mode.setToolTip(wrapped(help_text))
        self.mode.currentIndexChanged.connect(self._on_mode)
        self._add_labelled(tr("&Way of answering"), self.mode)

    def _make_system(self) -> None:
        self.system.setPlaceholderText(tr("For example: Answer in one sentence."))
        self.system.setFixedHeight(84)
        self.system.setTabChangesFocus(True)
        self.system.setAccessibleName(tr("System prompt"))
        self.system.setToolTip(
            wrapped(tr("What the model is told before the conversation. Counts from the next answer."))
        )
        self.system.textChanged.connect(self.changed)
        self._layout.addSpacing(8)
        self._add_labelled(tr("System &prompt"), self.system)

    def _make_machine(self) -> None:
        """The recipe's own fields, with the measured figure below the cache."""
        shown = (ENGINE, KERNEL, KV_CACHE, *((COMPILE,) if may_have_gpu() else ()))
        for spec in (spec for spec in field_specs() if spec.path in shown):
            editor = editor_for(spec)
            editor.set_value(spec.default)
            editor.control.setMaximumWidth(WIDTH)
            editor.changed.connect(self.machine_changed)
            self.machine_editors[spec.path] = editor
            self._layout.addSpacing(8)
            self._add_labelled(tr(spec.title), editor)
            if spec.path == KERNEL:
                self._layout.addWidget(self.kernels)
        self.kv_cost = label("", "caption", wrap=True)
        self.say_kv_cost("")
        self._layout.addWidget(self.kv_cost)

    def _add_editor(self, spec: FieldSpec) -> None:
        editor = editor_for(spec)
        editor.set_value(spec.default)
        editor.control.setMaximumWidth(WIDTH)
        if isinstance(editor.control, QLineEdit):
            editor.control.setPlaceholderText(tr("A new one each time"))
        editor.changed.connect(self.changed)
        self.editors[spec.path] = editor
        self._layout.addSpacing(6)
        self._add_labelled(tr(spec.title), editor)

    def _add_labelled(self, title: str, control: QWidget) -> None:
        made = label(title, "caption")
        made.setBuddy(control.focusProxy() or control)
        made.setToolTip(control.toolTip())
        self._layout.addWidget(made)
        self._layout.addWidget(control)

    def _on_mode(self) -> None:
        self.system.setEnabled(self.template())
        self.changed.emit()
