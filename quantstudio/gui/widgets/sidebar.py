"""The navigation on the left: the pages, and what the queue is doing."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QKeySequence
from PySide6.QtWidgets import QButtonGroup, QFrame, QProgressBar, QPushButton, QVBoxLayout

from quantstudio.gui.language import tr
from quantstudio.gui.pages.catalogue import PageEntry, PageId
from quantstudio.gui.theme import set_icon
from quantstudio.gui.widgets.basics import ElidedLabel, icon_label, label, row

WIDTH = 184


class Sidebar(QFrame):
    """`picked` says which page the person wants."""

    picked = Signal(str)

    def __init__(self, pages: Sequence[PageEntry]) -> None:
        super().__init__()
        self.setProperty("role", "sidebar")
        self.setFixedWidth(WIDTH)
        self.setAccessibleName(tr("Navigation"))
        self.buttons: dict[PageId, QPushButton] = {}
        self.activity = Activity()
        self.activity.clicked.connect(lambda: self.picked.emit(PageId.RUN))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 20, 12, 12)
        layout.setSpacing(4)
        brand = row(icon_label("quantstudio", "accent", 26), label("QuantStudio", "brand"), None, spacing=10)
        brand.setContentsMargins(6, 0, 0, 16)
        layout.addLayout(brand)
        group = QButtonGroup(self)
        for number, page in enumerate(pages, start=1):
            self.buttons[page.id] = self._nav_button(page, number)
            group.addButton(self.buttons[page.id])
            layout.addWidget(self.buttons[page.id])
        layout.addStretch(1)
        layout.addWidget(self.activity)

    def show_page(self, page: PageId) -> None:
        """Mark this page as the one that is open."""
        self.buttons[page].setChecked(True)

    def _nav_button(self, page: PageEntry, number: int) -> QPushButton:
        made = QPushButton(tr(page.title))
        made.setCheckable(True)
        made.setProperty("variant", "nav")
        set_icon(made, page.id, "muted")
        made.setIconSize(QSize(20, 20))
        shortcut = QKeySequence(f"Ctrl+{number}").toString(QKeySequence.SequenceFormat.NativeText)
        made.setToolTip(f"{tr(page.tooltip)} ({shortcut})")
        made.setAccessibleName(tr(page.title))
        made.setAccessibleDescription(tr(page.tooltip))
        made.setFocusPolicy(Qt.FocusPolicy.TabFocus)  # a click is not followed by a ring around the button
        made.setCursor(Qt.CursorShape.PointingHandCursor)
        made.clicked.connect(lambda: self.picked.emit(page.id))
        return made


class Activity(QPushButton):
    """What the queue is doing, in two lines and a bar; a click opens the Run page. Hidden while nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("variant", "activity")
        self.setToolTip(tr("Show the run"))
        self.setAccessibleName(tr("Show the run"))
        self._name = ElidedLabel("", "strong")
        self._phase = ElidedLabel("", "caption")
        self._bar = QProgressBar()
        self._bar.setRange(0, 1000)
        self._bar.setAccessibleName(tr("Progress of the run"))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(10, 6, 10, 8)
        layout.setSpacing(3)
        for part in (self._name, self._phase, self._bar):
            part.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
            layout.addWidget(part)
        self.hide()

    def say(self, name: str, phase: str, fraction: float) -> None:
        """Show a run at work; hides when `name` is empty."""
        self._name.setText(name)
        self._phase.setText(phase)
        self._bar.setValue(round(fraction * 1000))
        self.setAccessibleName(f"{name}, {phase}, {fraction:.0%}" if name else tr("Show the run"))
        self.setVisible(bool(name))
