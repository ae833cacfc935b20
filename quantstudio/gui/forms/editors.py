"""One editor for each kind of recipe field.

An editor holds a plain value (`value`, `set_value`), says when the person changed it (`changed`), and names the
widget that takes the focus (`control`). It never judges the value: the recipe does, and the form shows what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import QEvent, QObject, QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QSpinBox,
    QWidget,
)

from quantstudio.core.fieldspec import FieldKind, FieldSpec
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import button, wrapped
from quantstudio.gui.widgets.switch import Switch

INT_MAX = 2**31 - 1
DECIMALS = 6
"""Enough for learning rates, which are as small as 0.00001."""
LINES_HEIGHT = 76
TEXT_FILES = "Text files (*.txt *.md);;All files (*)"
DATA_FILES = "Text, JSON lines and Parquet (*.txt *.md *.jsonl *.parquet);;All files (*)"
CHOICE_WIDTH, NUMBER_WIDTH, TEXT_WIDTH = 320, 150, 480
"""Widest that controls grow: a number in a box as wide as the page is hard to read."""
FEWEST_LETTERS, LIST_AROUND = 6, 24
"""How narrow a choice may become; what its list needs beside its words."""


class Editor(QWidget):
    """Base of all editors. `changed` is for the person's changes; `set_value` is silent."""

    changed = Signal()

    def __init__(self, spec: FieldSpec, control: QWidget, width: int = TEXT_WIDTH) -> None:
        super().__init__()
        self.spec = spec
        self.control = control
        describe(control, spec)
        control.setMaximumWidth(width)
        self.setFocusProxy(control)
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.setSpacing(8)
        self._row.addWidget(control, 1)
        self._row.addStretch(0)  # what the control cannot take

    def value(self) -> Any:
        """The value as the recipe takes it."""
        raise NotImplementedError

    def set_value(self, value: Any) -> None:
        """Show this value, without `changed`."""
        raise NotImplementedError

    def _add_browse(self, browse: Callable[[], None], what: str) -> None:
        beside = button("", browse, icon="folder", tooltip=what)  # its word would take the room of the value
        beside.setAccessibleName(f"{tr(self.spec.title)}: {tr('Browse…')}")
        self._row.insertWidget(1, beside, 0, Qt.AlignmentFlag.AlignTop)


class ChoiceEditor(Editor):
    """One of a fixed set."""

    def __init__(self, spec: FieldSpec) -> None:
        self.combo = QComboBox()
        for choice, words in zip(spec.choices, spec.labels, strict=True):
            self.combo.addItem(tr(words), choice)
        # The longest words must not make the form wider than the window; the list below is as wide as they need.
        self.combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.combo.setMinimumContentsLength(FEWEST_LETTERS)
        super().__init__(spec, self.combo, CHOICE_WIDTH)
        self.combo.view().setMinimumWidth(self.combo.view().sizeHintForColumn(0) + LIST_AROUND)
        _ignore_idle_wheel(self.combo)
        self.combo.activated.connect(lambda _: self.changed.emit())

    def value(self) -> str:
        return str(self.combo.currentData())

    def set_value(self, value: Any) -> None:
        self.combo.setCurrentIndex(self.combo.findData(str(value)))


class OpenChoiceEditor(Editor):
    """One of a set, or a value of one's own."""

    def __init__(self, spec: FieldSpec) -> None:
        self.combo, self.line = QComboBox(), QLineEdit()
        self.combo.setLineEdit(self.line)
        self.combo.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.combo.addItems(list(spec.choices))
        super().__init__(spec, self.combo, NUMBER_WIDTH)
        _ignore_idle_wheel(self.combo)
        _describe_inner(self.combo, spec)
        self.line.textEdited.connect(lambda _: self.changed.emit())
        self.combo.activated.connect(lambda _: self.changed.emit())

    def value(self) -> Any:
        text = self.combo.currentText().strip()
        return int(text) if text.isdecimal() and len(text) < 10 else text

    def set_value(self, value: Any) -> None:
        self.combo.setEditText(str(value))


class BoolEditor(Editor):
    """On or off."""

    def __init__(self, spec: FieldSpec) -> None:
        self.switch = Switch()
        super().__init__(spec, self.switch)
        self.switch.clicked.connect(lambda _: self.changed.emit())

    def value(self) -> bool:
        return self.switch.isChecked()

    def set_value(self, value: Any) -> None:
        self.switch.setChecked(bool(value))


class IntEditor(Editor):
    """A whole number within the field's limits."""

    def __init__(self, spec: FieldSpec) -> None:
        self.box = QSpinBox()
        self.box.setRange(int(spec.minimum or 0), int(min(spec.maximum or INT_MAX, INT_MAX)))
        self.box.setGroupSeparatorShown(True)
        self.box.setAccelerated(True)
        self.box.setSpecialValueText(tr(spec.zero))
        super().__init__(spec, self.box, NUMBER_WIDTH)
        _ignore_idle_wheel(self.box)
        _describe_inner(self.box, spec)
        self.box.valueChanged.connect(lambda _: self.changed.emit())

    def value(self) -> int:
        return self.box.value()

    def set_value(self, value: Any) -> None:
        with QSignalBlocker(self.box):
            self.box.setValue(int(value))


class _PlainDoubleBox(QDoubleSpinBox):
    """Shows 0.0005 as it is and 3.5 without zeros behind it."""

    def textFromValue(self, value: float) -> str:  # noqa: N802 - Qt's name
        text = self.locale().toString(value, "f", self.decimals())
        point = self.locale().decimalPoint()
        return text.rstrip("0").removesuffix(point) if point in text else text


class FloatEditor(Editor):
    """A number within the field's limits. Steps are a tenth of the number's own size."""

    def __init__(self, spec: FieldSpec) -> None:
        self.box = _PlainDoubleBox()
        low = 0.0 if spec.minimum is None else spec.minimum
        high = float(INT_MAX) if spec.maximum is None else spec.maximum
        self.box.setDecimals(DECIMALS)
        self.box.setRange(low, high)
        self.box.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        self.box.setSpecialValueText(tr(spec.zero))
        super().__init__(spec, self.box, NUMBER_WIDTH)
        _ignore_idle_wheel(self.box)
        _describe_inner(self.box, spec)
        self.box.valueChanged.connect(lambda _: self.changed.emit())

    def value(self) -> float:
        return self.box.value()

    def set_value(self, value: Any) -> None:
        with QSignalBlocker(self.box):
            self.box.setValue(float(value))


class TextEditor(Editor):
    """A short text."""

    def __init__(self, spec: FieldSpec) -> None:
        self.line = QLineEdit()
        super().__init__(spec, self.line)
        self.line.textEdited.connect(lambda _: self.changed.emit())

    def value(self) -> str:
        return self.line.text().strip()

    def set_value(self, value: Any) -> None:
        self.line.setText(str(value))


class LinesEditor(Editor):
    """A list of short texts, one a line."""

    def __init__(self, spec: FieldSpec) -> None:
        self.text = QPlainTextEdit()
        self.text.setTabChangesFocus(True)
        self.text.setFixedHeight(LINES_HEIGHT)
        self.text.setPlaceholderText(tr("One a line"))
        super().__init__(spec, self.text)
        self.text.textChanged.connect(self.changed)

    def value(self) -> list[str]:
        lines = (line.strip() for line in self.text.toPlainText().splitlines())
        return [line for line in lines if line]

    def set_value(self, value: Any) -> None:
        with QSignalBlocker(self.text):
            self.text.setPlainText("\n".join(value))


class FileEditor(Editor):
    """A file on this machine."""

    def __init__(self, spec: FieldSpec) -> None:
        self.line = QLineEdit()
        super().__init__(spec, self.line)
        self.line.textEdited.connect(lambda _: self.changed.emit())
        self._add_browse(self._browse, "Choose a file on this machine.")

    def value(self) -> str:
        return self.line.text().strip()

    def set_value(self, value: Any) -> None:
        self.line.setText(str(value))

    def _browse(self) -> None:
        kinds = DATA_FILES if self.spec.section == "data" else TEXT_FILES
        chosen, _ = QFileDialog.getOpenFileName(self, tr(self.spec.title), self.value(), tr(kinds))
        if chosen:
            self.set_value(chosen)
            self.changed.emit()


class FolderEditor(Editor):
    """A folder on this machine."""

    def __init__(self, spec: FieldSpec) -> None:
        self.line = QLineEdit()
        super().__init__(spec, self.line)
        self.line.editingFinished.connect(self.changed)
        self._add_browse(self._browse, "Choose a folder on this machine.")

    def value(self) -> str:
        return self.line.text().strip()

    def set_value(self, value: Any) -> None:
        self.line.setText(str(value))

    def _browse(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, tr(self.spec.title), self.value()):
            self.set_value(chosen)
            self.changed.emit()


class FoldersEditor(LinesEditor):
    """A list of folders, one a line."""

    def __init__(self, spec: FieldSpec) -> None:
        super().__init__(spec)
        self._add_browse(self._browse, "Add a folder on this machine to the list.")

    def _browse(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, tr(self.spec.title)):
            self.set_value([*self.value(), chosen])
            self.changed.emit()


class ModelEditor(Editor):
    """A model: one that was found on this machine, or a folder or name of one's own."""

    def __init__(self, spec: FieldSpec) -> None:
        self.combo, self.line = QComboBox(), QLineEdit()
        self.combo.setLineEdit(self.line)
        self.combo.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.combo.setMinimumContentsLength(FEWEST_LETTERS)
        self.combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        super().__init__(spec, self.combo)
        _ignore_idle_wheel(self.combo)
        _describe_inner(self.combo, spec)
        self.line.editingFinished.connect(self._typed)
        self.combo.activated.connect(self._picked)
        self._add_browse(self._browse, "Choose a model folder on this machine.")
        self._value = str(spec.default)
        self.set_value(self._value)

    def value(self) -> str:
        return self._value

    def set_value(self, value: Any) -> None:
        self._value = str(value)
        index = self.combo.findData(self._value)
        if index >= 0:
            self.combo.setCurrentIndex(index)
        self.combo.setEditText(self.combo.itemText(index) if index >= 0 else self._value)
        self.line.setCursorPosition(0)

    def set_choices(self, choices: Sequence[tuple[str, str]]) -> None:
        """Offer these (recipe id, words)."""
        self.combo.clear()
        for model, words in choices:
            self.combo.addItem(words, model)
            self.combo.setItemData(self.combo.count() - 1, model, Qt.ItemDataRole.ToolTipRole)
        self.set_value(self._value)

    def _typed(self) -> None:
        text = self.combo.currentText().strip()
        index = self.combo.findText(text, Qt.MatchFlag.MatchFixedString)
        self._take(str(self.combo.itemData(index)) if index >= 0 else text)

    def _picked(self, index: int) -> None:
        self._take(str(self.combo.itemData(index)))

    def _browse(self) -> None:
        start = self._value if Path(self._value).is_dir() else ""
        if chosen := QFileDialog.getExistingDirectory(self, tr("Choose a model folder"), start):
            self._take(chosen)

    def _take(self, value: str) -> None:
        if value != self._value:
            self.set_value(value)
            self.changed.emit()


def editor_for(spec: FieldSpec) -> Editor:
    """The editor that a field wants. Raises KeyError for a kind of field that no editor knows."""
    special: dict[str, Callable[[FieldSpec], Editor]] = {
        "model": ModelEditor,
        "file": FileEditor,
        "folder": FolderEditor,
        "folders": FoldersEditor,
    }
    if spec.editor:
        return special[spec.editor](spec)
    if spec.open_choices:
        return OpenChoiceEditor(spec)
    kinds: dict[FieldKind, Callable[[FieldSpec], Editor]] = {
        FieldKind.CHOICE: ChoiceEditor,
        FieldKind.BOOL: BoolEditor,
        FieldKind.INT: IntEditor,
        FieldKind.FLOAT: FloatEditor,
        FieldKind.TEXT: TextEditor,
        FieldKind.LINES: LinesEditor,
    }
    return kinds[spec.kind](spec)


def describe(control: QWidget, spec: FieldSpec) -> None:
    """Name a control for screen readers and explain it to mice, both in the recipe's own words."""
    control.setObjectName(spec.path)
    control.setAccessibleName(tr(spec.title))
    control.setAccessibleDescription(tr(spec.help))
    control.setToolTip(wrapped(tr(spec.help)))


def _describe_inner(control: QComboBox | QSpinBox | QDoubleSpinBox, spec: FieldSpec) -> None:
    """Editable boxes hold a text box that takes the focus itself."""
    if inner := control.lineEdit():
        if not isinstance(control, QComboBox):
            inner.setTextMargins(6, 0, 0, 0)  # a stylesheet's padding does not reach into a spin box
        inner.setAccessibleName(tr(spec.title))
        inner.setAccessibleDescription(tr(spec.help))


class _IdleWheel(QObject):
    """Lets the wheel scroll the page over a control that is not being used, instead of changing its value."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        if event.type() == QEvent.Type.Wheel and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()
            return True
        return False


def _ignore_idle_wheel(control: QWidget) -> None:
    control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    control.installEventFilter(_IdleWheel(control))
