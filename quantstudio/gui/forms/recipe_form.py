"""The recipe as a form: made from the field list, so that it can never lag behind the recipe.

Problems stand right under the field they are about. Advanced fields are folded away in each section, and unfold by
themselves when there is something to say of one; fields of a union member that is not chosen are hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from quantstudio.core.fieldspec import FieldSpec, field_specs, is_shown
from quantstudio.core.recipe import Recipe
from quantstudio.core.recipe_method import NEEDS_DATA
from quantstudio.core.recipe_precision import TARGETS
from quantstudio.gui.forms.editors import Editor, editor_for
from quantstudio.gui.forms.group_size import GroupSizeHelper
from quantstudio.gui.language import tr
from quantstudio.gui.theme import set_icon
from quantstudio.gui.widgets.basics import Card, button, label, restyle, wrapped
from quantstudio.gui.widgets.basics import row as beside

LABEL_WIDTH = 136
_FIRST = ("model", "scheme", "method", "data", "precision")
ERROR, WARNING, INFO = "error", "warning", "info"


class FieldRow(QWidget):
    """A field's label, its editor, and what is wrong with it."""

    def __init__(self, spec: FieldSpec) -> None:
        super().__init__()
        self.spec = spec
        self.editor: Editor = editor_for(spec)
        self.label = label(spec.title, wrap=True)
        self.label.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Preferred)
        self.label.setFixedWidth(LABEL_WIDTH)
        self.label.setMinimumHeight(32)
        self.label.setBuddy(self.editor.control)
        self.label.setToolTip(wrapped(tr(spec.help)))
        self.problem = label("", "problem", wrap=True)
        self.problem.hide()
        right = QVBoxLayout()
        right.setSpacing(4)
        right.addWidget(self.editor)
        if not spec.advanced:
            self.caption = label(self._caption_text(), "caption", wrap=True)
            right.addWidget(self.caption)
        right.addWidget(self.problem)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(16)
        layout.addWidget(self.label, 0, Qt.AlignmentFlag.AlignTop)
        layout.addLayout(right, 1)

    def _caption_text(self) -> str:
        """What the chosen option means; for other fields, the first sentence of the help."""
        value = self.editor.value()
        if self.spec.notes and value in self.spec.choices:
            return tr(self.spec.notes[self.spec.choices.index(value)])
        return first_sentence(self.spec.help)

    def refresh(self) -> None:
        """Let the caption speak of the option that is chosen now."""
        if self.spec.notes and not self.spec.advanced:
            self.caption.setText(self._caption_text())

    def say(self, text: str, level: str) -> None:
        """Show a problem under the field; nothing when `text` is empty."""
        self.problem.setText(text)
        self.problem.setVisible(bool(text))
        restyle(self.problem, "level", level)
        restyle(self.editor.control, "invalid", bool(text) and level == ERROR)
        told = f"{text} {tr(self.spec.help)}" if text else tr(self.spec.help)
        self.editor.control.setAccessibleDescription(told)


def first_sentence(text: str) -> str:
    """What stands under an everyday field; the rest is in its tooltip."""
    return re.split(r"(?<=[a-z)\d])\. ", text, maxsplit=1)[0].rstrip(".") + "."


class SectionCard(Card):
    """One section of the recipe: its everyday fields, and the advanced ones behind a fold."""

    def __init__(self, title: str, rows: Sequence[FieldRow]) -> None:
        super().__init__()
        self._title = title
        self._rows = rows
        self._advanced = [row for row in rows if row.spec.advanced]
        self.fold: QPushButton | None = None
        if self._advanced:
            self.fold = button("More options", self._toggle, variant="fold", tooltip="Show the advanced fields.")
            self.fold.setLayoutDirection(Qt.LayoutDirection.RightToLeft)  # the arrow behind the words
        self.body.addLayout(beside(label(title, "heading"), None, self.fold))
        for row in sorted(rows, key=lambda row: row.spec.advanced):
            self.body.addWidget(row)
        self._actions = QHBoxLayout()
        self._actions.setSpacing(8)
        self._actions.setContentsMargins(LABEL_WIDTH + 16, 0, 0, 0)
        self.body.addLayout(self._actions)
        self.set_open(is_open=False)

    def add_action(self, action: QPushButton) -> None:
        """Put a button below the fields."""
        self._actions.insertWidget(self._actions.count(), action, 0, Qt.AlignmentFlag.AlignLeft)
        self._actions.setStretch(self._actions.count() - 1, 1)

    def is_open(self) -> bool:
        """Whether the advanced fields are shown."""
        return self._open

    def set_open(self, *, is_open: bool) -> None:
        """Show or fold away the advanced fields."""
        self._open = is_open
        if self.fold:
            self.fold.setText(tr("Fewer options") if is_open else tr("More options"))
            self.fold.setAccessibleName(f"{self.fold.text()}: {tr(self._title)}")
            set_icon(self.fold, "chevron-down" if is_open else "chevron-right", "muted")

    def show_rows(self, values: Mapping[str, Any]) -> None:
        """Show the rows that exist under these values and are not folded away."""
        alive = {row.spec.path for row in self._rows if is_shown(row.spec, dict(values))}
        for row in self._rows:
            row.refresh()
            row.setVisible(row.spec.path in alive and (self._open or not row.spec.advanced))
        if self.fold:
            self.fold.setVisible(any(row.spec.path in alive for row in self._advanced))

    def _toggle(self) -> None:
        self.set_open(is_open=not self._open)
        self.show_rows({row.spec.path: row.editor.value() for row in self._rows})


class RecipeForm(QWidget):
    """All fields of the recipe, section by section."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._rows = {spec.path: FieldRow(spec) for spec in field_specs()}
        self._cards: dict[str, SectionCard] = {}
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(12)
        for section in form_order():
            info = Recipe.model_fields[section]
            rows = [row for row in self._rows.values() if row.spec.section == section]
            if rows:
                self._cards[section] = SectionCard(info.title or section, rows)
                layout.addWidget(self._cards[section])
        layout.addStretch(1)
        for row in self._rows.values():
            row.editor.set_value(row.spec.default)
            row.editor.changed.connect(self._on_changed)
        self._group_size = GroupSizeHelper(self.editor("scheme.kind"), self.editor("scheme.group_size"))
        self._problems: Mapping[str, tuple[str, str]] = {}
        self._show_rows()

    def editor(self, path: str) -> Editor:
        """The editor of one field."""
        return self._rows[path].editor

    def row(self, path: str) -> FieldRow:
        """The row of one field."""
        return self._rows[path]

    def section(self, name: str) -> SectionCard:
        """The card of one section."""
        return self._cards[name]

    def values(self) -> dict[str, Any]:
        """Every field's value by path, hidden ones included (`fieldspec.nested` leaves those out)."""
        return {path: row.editor.value() for path, row in self._rows.items()}

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Show these values and leave the other fields alone. `changed` is emitted once if anything is different."""
        before = self.values()
        for path, value in values.items():
            if path in self._rows:
                self._rows[path].editor.set_value(value)
        if self.values() != before:
            self._on_changed()

    def set_problems(self, problems: Mapping[str, tuple[str, str]]) -> None:
        """Show each field's (text, level) under it and clear all others; a text unfolds its section."""
        self._problems = problems
        for path, row in self._rows.items():
            text, level = problems.get(path, ("", INFO))
            row.say(text, level)
            if text and row.spec.advanced:
                self._cards[row.spec.section].set_open(is_open=True)
        self._show_rows()

    def _on_changed(self) -> None:
        self._show_rows()
        self.changed.emit()

    def _show_rows(self) -> None:
        values = self.values()
        for name, card in self._cards.items():
            card.show_rows(values)
            troubled = any(path.startswith(f"{name}.") for path in self._problems)
            card.setVisible(troubled or matters(name, values))


def form_order() -> list[str]:
    """Sections in the order in which people decide: what, how, from what, and then the rest as declared."""
    declared = list(Recipe.model_fields)
    return sorted(declared, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def matters(section: str, values: Mapping[str, Any]) -> bool:
    """Whether what the section says is read under these values. Text to learn from is read by few methods."""
    reads_text = values["method.kind"] in NEEDS_DATA or values["precision.kind"] in TARGETS
    return section != "data" or reads_text
