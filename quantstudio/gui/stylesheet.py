"""The stylesheet made from a theme's tokens.

Widgets say what they are, never how they look, by two dynamic properties: `role` (title, heading, muted, caption,
problem, card, …) and `variant` (primary, ghost, danger, nav). Lengths sit on a 4 px grid.
"""

from __future__ import annotations

from dataclasses import asdict
from string import Template

from quantstudio.core.paths import resources
from quantstudio.gui.tokens import Tokens

_SHEET = Template("""
* { outline: none; }
QMainWindow, QDialog, QWidget[role="page"] { background: $window; }
QWidget { color: $text; }
QLabel { background: transparent; }
QToolTip { background: $card; color: $text; border: 1px solid $border_strong; padding: 6px 8px; }

QFrame[role="sidebar"] { background: $sidebar; border: none; border-right: 1px solid $border; }
QFrame[role="card"] { background: $card; border: 1px solid $border; border-radius: 10px; }
QFrame[role="drop"] { background: $accent_soft; border: 2px dashed $accent; border-radius: 10px; }
QFrame[role="line"] { background: $border; border: none; max-height: 1px; min-height: 1px; }
QFrame[role="info"] { background: $accent_soft; border: none; border-radius: 8px; }
QFrame[role="success"] { background: $success_soft; border: none; border-radius: 8px; }
QFrame[role="warning"] { background: $warning_soft; border: none; border-radius: 8px; }
QFrame[role="error"] { background: $danger_soft; border: none; border-radius: 8px; }

QLabel[role="title"] { font-size: 17pt; font-weight: 600; }
QLabel[role="heading"] { font-size: 11pt; font-weight: 600; }
QLabel[role="number"] { font-size: 16pt; font-weight: 600; }
QLabel[role="strong"] { font-weight: 600; }
QLabel[role="muted"] { color: $muted; }
QLabel[role="caption"] { color: $muted; font-size: 9pt; }
QLabel[role="problem"] { color: $danger; font-size: 9pt; }
QLabel[role="problem"][level="warning"] { color: $warning; }
QLabel[role="problem"][level="info"] { color: $muted; }
QLabel[role="brand"] { font-size: 12pt; font-weight: 600; }
QLabel[role="badge"] { background: $hover; color: $muted; border-radius: 8px; padding: 2px 8px; font-size: 9pt; }
QLabel[role="badge"][level="accent"] { background: $accent_soft; color: $accent; }
QLabel[role="badge"][level="success"] { background: $success_soft; color: $success; }
QLabel[role="badge"][level="warning"] { background: $warning_soft; color: $warning; }
QLabel[role="badge"][level="error"] { background: $danger_soft; color: $danger; }

QPushButton, QToolButton {
    background: $card; color: $text; border: 1px solid $border_strong; border-radius: 7px;
    padding: 0 12px; min-height: 30px;
}
QPushButton:hover, QToolButton:hover { background: $hover; }
QPushButton:pressed, QToolButton:pressed { background: $pressed; }
QPushButton:checked { background: $accent_soft; color: $accent; border-color: $accent; }
QPushButton:focus, QToolButton:focus { border: 1px solid $accent; }
QPushButton:disabled, QToolButton:disabled { color: $disabled; border-color: $border; background: $card; }
QPushButton[variant="primary"] { background: $accent; color: $on_accent; border-color: $accent; font-weight: 600; }
QPushButton[variant="primary"]:hover { background: $accent_hover; border-color: $accent_hover; }
QPushButton[variant="primary"]:pressed { background: $accent_pressed; border-color: $accent_pressed; }
QPushButton[variant="primary"]:focus { border: 2px solid $text; }
QPushButton[variant="primary"]:disabled { background: $pressed; border-color: $pressed; color: $disabled; }
QPushButton[variant="danger"] { color: $danger; }
QPushButton[variant="danger"]:hover { background: $danger_soft; border-color: $danger; }
QPushButton[variant="danger"]:disabled { color: $disabled; }
QPushButton[variant="ghost"], QToolButton[variant="ghost"] {
    background: transparent; border: 1px solid transparent; color: $text;
}
QPushButton[variant="ghost"]:hover, QToolButton[variant="ghost"]:hover { background: $hover; }
QPushButton[variant="ghost"]:focus, QToolButton[variant="ghost"]:focus { border: 1px solid $accent; }
QPushButton[variant="fold"] {
    background: transparent; border: 1px solid transparent; color: $muted; text-align: left; padding: 0 6px;
    min-height: 22px; font-size: 9pt;
}
QPushButton[variant="fold"]:hover { color: $text; background: $hover; }
QPushButton[variant="fold"]:focus { border: 1px solid $accent; }
QPushButton[variant="nav"] {
    background: transparent; border: 1px solid transparent; color: $muted; text-align: left;
    padding: 0 10px; min-height: 36px; border-radius: 8px;
}
QPushButton[variant="nav"]:hover { background: $pressed; color: $text; }
QPushButton[variant="nav"]:checked { background: $accent_soft; color: $accent; font-weight: 600; }
QPushButton[variant="nav"]:focus { border: 1px solid $accent; }
QPushButton[variant="activity"] { background: $card; border: 1px solid $border; min-height: 60px; padding: 0; }
QPushButton[variant="activity"]:hover { background: $hover; }
QPushButton[variant="activity"]:focus { border: 1px solid $accent; }
QPushButton[variant="choice"] {
    background: $card; border: 1px solid $border_strong; text-align: center; min-height: 32px; padding: 0 8px;
}
QPushButton[variant="choice"]:hover { background: $hover; }
QPushButton[variant="choice"]:checked {
    background: $accent_soft; color: $accent; border: 1px solid $accent;
}
QPushButton[variant="choice"]:focus { border: 1px solid $accent; }
QPushButton[variant="choice"]:checked:focus { border: 2px solid $accent; padding: 0 7px; min-height: 30px; }

QLineEdit, QPlainTextEdit, QTextEdit, QAbstractSpinBox, QComboBox {
    background: $field; color: $text; border: 1px solid $border_strong; border-radius: 7px;
    selection-background-color: $accent; selection-color: $on_accent;
}
QLineEdit, QComboBox { min-height: 30px; padding: 0 8px; }
QAbstractSpinBox { min-height: 30px; padding: 0; }
QPlainTextEdit, QTextEdit { padding: 4px; }
QTextEdit[role="plain"], QTextEdit[role="plain"]:focus { background: transparent; border: none; }
QLineEdit:hover, QAbstractSpinBox:hover, QComboBox:hover { border-color: $muted; }
QLineEdit:focus, QPlainTextEdit:focus, QTextEdit:focus, QAbstractSpinBox:focus, QComboBox:focus {
    border: 1px solid $accent;
}
*[invalid="true"] { border: 1px solid $danger; }
QLineEdit:disabled, QAbstractSpinBox:disabled, QComboBox:disabled, QPlainTextEdit:disabled {
    color: $disabled; background: $window; border-color: $border;
}
QComboBox QLineEdit, QAbstractSpinBox QLineEdit { border: none; padding: 0; min-height: 0; background: transparent; }
QComboBox::drop-down { border: none; width: 26px; subcontrol-position: center right; }
QComboBox::down-arrow { image: url($icons/arrow-down-$name.svg); width: 16px; height: 16px; }
QComboBox QAbstractItemView {
    background: $card; border: 1px solid $border_strong; padding: 4px; outline: none;
    selection-background-color: $accent_soft; selection-color: $accent;
}
QComboBox QAbstractItemView::item { min-height: 28px; padding: 0 6px; border-radius: 5px; }
QAbstractSpinBox::up-button { subcontrol-position: top right; width: 24px; border: none; background: transparent; }
QAbstractSpinBox::down-button { subcontrol-position: bottom right; width: 24px; border: none; background: transparent; }
QAbstractSpinBox::up-arrow { image: url($icons/arrow-up-$name.svg); width: 14px; height: 14px; }
QAbstractSpinBox::down-arrow { image: url($icons/arrow-down-$name.svg); width: 14px; height: 14px; }

QCheckBox { spacing: 8px; }
QCheckBox::indicator {
    width: 16px; height: 16px; border: 1px solid $border_strong; border-radius: 4px; background: $field;
}
QCheckBox::indicator:hover, QCheckBox::indicator:focus { border-color: $accent; }
QCheckBox::indicator:checked {
    background: $accent; border-color: $accent; image: url($icons/tick-$name.svg);
}

QProgressBar {
    background: $pressed; border: none; border-radius: 4px; min-height: 8px; max-height: 8px; text-align: center;
    color: transparent;
}
QProgressBar::chunk { background: $accent; border-radius: 4px; }
QSlider::groove:horizontal { height: 4px; background: $pressed; border-radius: 2px; }
QSlider::sub-page:horizontal { background: $accent; border-radius: 2px; }
QSlider::handle:horizontal {
    background: $card; border: 2px solid $accent; width: 12px; height: 12px; margin: -6px 0; border-radius: 8px;
}
QSlider::handle:horizontal:focus { background: $accent; }

QScrollArea, QScrollArea > QWidget > QWidget { background: transparent; border: none; }
QScrollBar:vertical { background: transparent; width: 12px; margin: 0; }
QScrollBar:horizontal { background: transparent; height: 12px; margin: 0; }
QScrollBar::handle { background: $border_strong; border-radius: 3px; margin: 3px; }
QScrollBar::handle:vertical { min-height: 32px; }
QScrollBar::handle:horizontal { min-width: 32px; }
QScrollBar::handle:hover { background: $muted; }
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {
    background: transparent; border: none; width: 0; height: 0;
}

QAbstractItemView {
    background: $card; alternate-background-color: $window; border: 1px solid $border; border-radius: 8px;
    selection-background-color: $accent_soft; selection-color: $text; outline: none; gridline-color: $border;
}
QAbstractItemView[role="plain"] { background: transparent; border: none; }
QAbstractItemView:focus { border: 1px solid $accent; }
QAbstractItemView[role="plain"]:focus { border: none; }
QHeaderView { background: $card; border: none; }
QHeaderView::section {
    background: $card; color: $muted; border: none; border-bottom: 1px solid $border; padding: 6px 8px;
    font-weight: 600;
}
QTableView::item, QTreeView::item { padding: 4px 8px; }
QListWidget::item { padding: 3px 8px; }
QTableCornerButton::section { background: $card; border: none; }

QTabWidget::pane { border: none; }
QTabBar::tab {
    background: transparent; color: $muted; border: none; border-bottom: 2px solid transparent; padding: 8px 12px;
}
QTabBar::tab:hover { color: $text; }
QTabBar::tab:selected { color: $accent; border-bottom: 2px solid $accent; }
QTabBar::tab:focus { color: $text; }
QMenu { background: $card; border: 1px solid $border_strong; border-radius: 8px; padding: 4px; }
QMenu::item { padding: 6px 24px 6px 12px; border-radius: 5px; }
QMenu::item:selected { background: $accent_soft; color: $accent; }
QMenu::item:disabled { color: $disabled; }
QMenu::separator { height: 1px; background: $border; margin: 4px 8px; }
QSplitter::handle { background: transparent; }
QStatusBar { background: $sidebar; }
""")


def stylesheet(tokens: Tokens) -> str:
    """The whole window's stylesheet in this theme's colours."""
    return _SHEET.substitute(asdict(tokens), icons=(resources() / "icons").as_posix())
