"""The language of the window: English is built in, others are translation files.

Texts pass through `tr` where a widget takes them; a compiled Qt translation, `resources/translations/<code>.qm` with
all texts in the context "quantstudio", replaces them. A text without a translation stays English.
"""

from __future__ import annotations

from PySide6.QtCore import QCoreApplication, QLocale, QTranslator

from quantstudio.core.paths import resources

CONTEXT = "quantstudio"
ENGLISH = "en"


def tr(text: str) -> str:
    """The text in the window's language."""
    return QCoreApplication.translate(CONTEXT, text) if text else ""


def available_languages() -> list[tuple[str, str]]:
    """(code, the language's own name) of English and of every translation that is there."""
    folder = resources() / "translations"
    codes = sorted(path.stem for path in folder.glob("*.qm")) if folder.is_dir() else []
    return [(ENGLISH, "English"), *((code, QLocale(code).nativeLanguageName() or code) for code in codes)]


def load_language(app: QCoreApplication, code: str) -> bool:
    """Use this language from now on, for widgets that are made after it. False: there is no such translation."""
    if code in ("", ENGLISH):
        return True
    translator = QTranslator(app)
    known = dict(available_languages())
    if code not in known or not translator.load(str(resources() / "translations" / f"{code}.qm")):
        return False
    return app.installTranslator(translator)
