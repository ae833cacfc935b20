"""A compiled translation in the resources becomes the language of the window."""

import subprocess
from pathlib import Path

import PySide6
import pytest
from PySide6.QtCore import QCoreApplication, QTranslator

from quantstudio.gui import language
from quantstudio.gui.language import CONTEXT, available_languages, load_language, tr
from quantstudio.gui.widgets.basics import button

SOURCE = f"""<?xml version="1.0" encoding="utf-8"?><!DOCTYPE TS><TS version="2.1" language="de"><context>
<name>{CONTEXT}</name>
<message><source>Add folder…</source><translation>Ordner hinzufügen …</translation></message>
</context></TS>"""


@pytest.fixture
def german(tmp_path, monkeypatch, qapp):
    folder = tmp_path / "translations"
    folder.mkdir()
    (tmp_path / "de.ts").write_text(SOURCE, encoding="utf-8")
    lrelease = Path(PySide6.__file__).parent / "lrelease"
    subprocess.run([lrelease, "-silent", tmp_path / "de.ts", "-qm", folder / "de.qm"], check=True)
    monkeypatch.setattr(language, "resources", lambda: tmp_path)
    yield
    for translator in qapp.findChildren(QTranslator):
        QCoreApplication.removeTranslator(translator)


def test_english_is_built_in_and_translations_are_found(german):
    assert available_languages() == [("en", "English"), ("de", "Deutsch")]


def test_a_translation_reaches_the_widgets_and_the_rest_stays_english(german, qapp, qtbot):
    assert load_language(qapp, "de")
    made = button("Add folder…", lambda: None)
    qtbot.addWidget(made)
    assert made.text() == made.accessibleName() == "Ordner hinzufügen …"
    assert tr("Models") == "Models"


def test_an_unknown_language_is_refused(german, qapp):
    assert not load_language(qapp, "xx")
    assert not load_language(qapp, "../de")
    assert load_language(qapp, "")
