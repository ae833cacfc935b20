"""Work off the window's thread: the last question is answered, failures are not lost."""

import threading

import shiboken6
from PySide6.QtCore import QObject

from quantstudio.gui.background import Latest


def test_only_the_last_of_several_questions_is_answered(qtbot):
    owner = QObject()
    latest, gate, answers = Latest(owner), threading.Event(), []
    latest.found.connect(answers.append)
    latest.ask(lambda: gate.wait(5) and "first")
    latest.ask(lambda: "second")
    with qtbot.waitSignal(latest.found, timeout=5000):
        latest.ask(lambda: "third")
        gate.set()
    assert answers == ["third"]
    latest.wait()


def test_work_is_done_in_another_thread_and_the_answer_comes_in_this_one(qtbot):
    owner = QObject()
    latest, seen = Latest(owner), []
    latest.found.connect(lambda worker: seen.append((worker, threading.get_ident())))
    with qtbot.waitSignal(latest.found, timeout=5000):
        latest.ask(threading.get_ident)
    worker, here = seen[0]
    assert here == threading.get_ident() != worker


def test_a_failure_is_raised_in_the_window(qtbot):
    owner = QObject()
    latest = Latest(owner)
    with qtbot.capture_exceptions() as failures:
        latest.ask(lambda: 1 / 0)
        qtbot.waitUntil(lambda: bool(failures), timeout=5000)
    assert failures[0][0] is ZeroDivisionError


def test_an_answer_to_somebody_who_is_gone_is_no_failure(qtbot):
    owner, gate = QObject(), threading.Event()
    latest = Latest(owner)
    with qtbot.capture_exceptions() as failures:
        latest.ask(lambda: gate.wait(5))
        threading.Timer(0.1, gate.set).start()
        shiboken6.delete(owner)  # waits for the work, whose answer then has no way home
        qtbot.wait(50)
    assert failures == []
