"""The Settings page: made from the settings' own fields, saved as they are changed.

There is no Save button to forget. A value that the settings refuse stays on the screen with the reason beside it, and
the last good one stays in force.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QFrame, QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from quantstudio import __version__
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.fieldspec import FieldSpec, model_specs
from quantstudio.core.paths import data_home, runs_home
from quantstudio.core.settings import Settings, save_settings
from quantstudio.gui.context import AppContext
from quantstudio.gui.forms.editors import FolderEditor
from quantstudio.gui.forms.recipe_form import FieldRow
from quantstudio.gui.language import available_languages, tr
from quantstudio.gui.widgets.basics import MARGIN, SPACE, WHOLE_WIDTH, Banner, Card, PageHeader, label, page_layout
from quantstudio.gui.widgets.estimates_card import EstimatesCard

SECTIONS = (
    ("Appearance", ("theme", "language")),
    ("Folders", ("runs_folder", "model_folders")),
    ("New recipes start with", ("device", "threads")),
)
SAVE_MS = 300
WIDTH = 760


class SettingsPage(QWidget):
    """Folders, device, threads, theme, language."""

    def __init__(self, context: AppContext) -> None:
        super().__init__()
        self.context = context
        self.banner = Banner()
        self.rows = {spec.path: FieldRow(_offered(spec)) for spec in model_specs(Settings)}
        self._save = QTimer(self)
        self._save.setSingleShot(True)
        self._save.setInterval(SAVE_MS)
        self._save.timeout.connect(self.save)
        self._lay_out()
        runs_folder = self.rows["runs_folder"].editor
        if isinstance(runs_folder, FolderEditor):
            runs_folder.line.setPlaceholderText(str(runs_home()))
        self._show(context.settings)
        for row in self.rows.values():
            row.editor.changed.connect(self._save.start)
        self.rows["theme"].editor.changed.connect(self.save)  # at once: the person is looking at it
        context.settings_changed.connect(lambda: self._show(context.settings))
        context.closing.connect(self._save_pending)

    def save(self) -> None:
        """Check, keep and apply what the page shows."""
        self._save.stop()
        values = {name: row.editor.value() for name, row in self.rows.items()}
        try:
            changed = Settings.model_validate(values)
        except ValidationError as error:
            self._say_problems({str(item["loc"][0]): str(item["msg"]) for item in error.errors()})
            return
        self._say_problems({})
        if changed == self.context.settings.model_copy(update={"notice": ""}):
            return
        try:
            save_settings(changed)
            self.banner.say("")
        except QuantStudioError as error:
            self.banner.say(str(error), "error")
        self.context.change_settings(changed)

    def _save_pending(self) -> None:
        if self._save.isActive():
            self.save()

    def _show(self, settings: Settings) -> None:
        values: dict[str, Any] = settings.model_dump(mode="json")
        for name, row in self.rows.items():
            if row.editor.value() != values[name]:
                row.editor.set_value(values[name])

    def _say_problems(self, problems: dict[str, str]) -> None:
        for name, row in self.rows.items():
            row.say(problems.get(name, ""), "error")

    def _lay_out(self) -> None:
        inside = QWidget()
        cards = QWidget()
        cards.setMaximumWidth(WIDTH)
        beside = QHBoxLayout(inside)  # the scroll bar stands at the window's edge, the cards stay readable
        beside.setContentsMargins(0, 0, 0, 0)
        beside.addWidget(cards, 1000)
        beside.addStretch(1)
        column = QVBoxLayout(cards)
        column.setContentsMargins(0, 0, 8, MARGIN)
        column.setSpacing(SPACE)
        for title, names in SECTIONS:
            card = Card(title)
            for name in names:
                card.body.addWidget(self.rows[name])
            column.addWidget(card)
        self.estimates = EstimatesCard(self.context)
        column.addWidget(self.estimates)
        about = Card("About")
        about.body.addWidget(label(f"QuantStudio {__version__}"))
        home = label(f"{tr('Settings, runs and chats are kept in')} {data_home()}.", "muted", wrap=True)
        about.body.addWidget(home)
        column.addWidget(about)
        column.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidget(inside)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        layout = page_layout(self, WHOLE_WIDTH)
        layout.addWidget(PageHeader("Settings", "Saved as you change them."))
        layout.addWidget(self.banner)
        layout.addWidget(scroll, 1)


def _offered(spec: FieldSpec) -> FieldSpec:
    """The field with the choices that this installation has."""
    if spec.path != "language":
        return spec
    languages = [("", tr("As the system")), *available_languages()]
    return replace(spec, choices=tuple(code for code, _ in languages), labels=tuple(name for _, name in languages))
