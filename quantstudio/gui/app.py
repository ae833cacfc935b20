"""The window's entry point: settings, look, queue, window.

Started by `quantstudio` and `quantstudio demo`. Nothing here or below imports torch; matplotlib comes with the page
that draws with it.
"""

from __future__ import annotations

import signal
import sys
from functools import partial

from PySide6.QtCore import QLocale
from PySide6.QtWidgets import QApplication

from quantstudio import __version__
from quantstudio.client.library_scan import LibraryScan
from quantstudio.client.run_queue import RunQueue
from quantstudio.core.settings import Settings, load_settings
from quantstudio.gui.context import AppContext
from quantstudio.gui.failures import Failures
from quantstudio.gui.language import available_languages, load_language
from quantstudio.gui.main_window import MainWindow
from quantstudio.gui.theme import apply_theme, set_style, tokens_for

USAGE = "usage: quantstudio [open | demo]\n"


def run_app(argv: list[str]) -> int:
    """Open the window and stay until it closes. `--demo` starts the demo's runs. Returns the exit status."""
    if set(argv) - {"--demo"}:
        sys.stderr.write(USAGE)
        return 2
    app = make_application()
    settings = load_settings()
    load_language(app, _language(settings))
    context = make_context(app, settings)
    window = MainWindow(context)
    window.show()
    context.library.refresh(settings)
    sys.excepthook = Failures(app).take
    # Python's own handler would run only when Qt hands over control; the default one ends the process at once, and
    # workers end with it because their stdin closes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "--demo" in argv:
        from quantstudio.gui.demo import start_demo

        start_demo(context, partial(window.show_notice, level="info"))
    return app.exec()


def make_application() -> QApplication:
    """The application object with our name, font and style."""
    found = QApplication.instance()
    app = found if isinstance(found, QApplication) else QApplication(["quantstudio"])
    app.setApplicationName("QuantStudio")
    app.setApplicationVersion(__version__)
    app.setDesktopFileName("quantstudio")
    set_style(app)
    return app


def make_context(app: QApplication, settings: Settings) -> AppContext:
    """Dress the application and make what the pages share."""
    tokens = tokens_for(settings.theme)
    apply_theme(app, tokens)
    context = AppContext(settings, RunQueue(), LibraryScan(), tokens)

    def follow_settings() -> None:
        wanted = tokens_for(context.settings.theme)
        if wanted != context.tokens:
            apply_theme(app, wanted)
            context.change_tokens(wanted)

    def look_again() -> None:
        context.library.refresh(context.settings)

    context.settings_changed.connect(follow_settings)
    context.settings_changed.connect(look_again)
    context.queue.finished.connect(lambda _: look_again())
    app.styleHints().colorSchemeChanged.connect(lambda _: follow_settings())
    return context


def _language(settings: Settings) -> str:
    if settings.language:
        return settings.language
    system = QLocale.system().name()
    known = [code for code, _ in available_languages()]
    return next((code for code in (system, system.split("_")[0]) if code in known), "")
