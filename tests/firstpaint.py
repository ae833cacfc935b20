"""Start the window, or with `bare` an empty one; say `painted` and which heavy libraries are loaded at its first paint.

python tests/firstpaint.py [bare]
"""

from __future__ import annotations

import sys

from PySide6.QtCore import QEvent, QObject, QTimer
from PySide6.QtWidgets import QApplication, QWidget

HEAVY = ("torch", "transformers", "matplotlib", "numpy")


class FirstPaint(QObject):
    """Tells of the first paint and closes the window."""

    seen = False

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        if event.type() == QEvent.Type.Paint and not self.seen:
            self.seen = True
            print("painted", *(name for name in HEAVY if name in sys.modules), flush=True)
            QTimer.singleShot(0, QApplication.closeAllWindows)
        return False


def show_bare(spy: FirstPaint) -> int:
    """A window of Qt's own, for comparison."""
    app = QApplication([])
    app.installEventFilter(spy)
    window = QWidget()
    window.show()
    return app.exec()


def show_whole(spy: FirstPaint) -> int:
    """The program's window, as its command opens it."""
    from quantstudio.gui import app as entry
    from quantstudio.gui.main_window import MainWindow

    show = MainWindow.show

    def spied(self: MainWindow) -> None:
        entry.QApplication.instance().installEventFilter(spy)
        show(self)

    MainWindow.show = spied
    return entry.run_app([])


if __name__ == "__main__":
    sys.exit(show_bare(FirstPaint()) if "bare" in sys.argv else show_whole(FirstPaint()))
