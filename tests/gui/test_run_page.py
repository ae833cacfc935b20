"""The Run page: history replayed, live runs followed on a timer, every end in words."""

from collections import deque

import pytest
from PySide6.QtCore import Qt, QTimer, QUrl
from PySide6.QtGui import QDesktopServices, QFont, QFontMetrics
from PySide6.QtWidgets import QApplication, QLabel, QMessageBox

from quantstudio.core import protocol
from quantstudio.core.recipe import OutputSection, Recipe
from quantstudio.core.run_lock import RunLock
from quantstudio.core.run_state import MAX_LOG_LINES, RunState, Status, replay
from quantstudio.core.run_store import EVENTS, RunHeader, create_run, read_header, write_header
from quantstudio.gui.main_window import SMALLEST
from quantstudio.gui.pages.run_page import LIST_WIDTH, RunPage
from quantstudio.gui.widgets.run_detail import RunDetail
from quantstudio.gui.widgets.run_list import listed_runs
from quantstudio.gui.widgets.run_log import LogFold
from quantstudio.gui.widgets.run_steps import BESIDE_TITLE, StepState, steps_of
from quantstudio.gui.widgets.run_words import detail_words, progress_words, when

ERROR = protocol.Error(
    t=1_700_000_020.0, kind="disk", what="The disk is full.", why="0 bytes are free.", hint="Free some space."
)
LONG = Recipe(output=OutputSection(name="Long"))


@pytest.fixture
def runs(home):
    folder = home / "runs"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def open_page(make_context, qtbot):
    def make(way="good", argument=""):
        page = RunPage(make_context(way, argument))
        qtbot.addWidget(page)
        page.resize(860, 700)
        page.show()
        return page

    return make


def words_in(widget):
    QApplication.processEvents()  # what was just added is shown by the event loop
    return " ".join(label.text() for label in widget.findChildren(QLabel) if label.isVisibleTo(widget)).strip()


def test_without_runs_the_page_says_what_to_do_next(open_page, qtbot):
    page = open_page()
    assert "No runs yet" in words_in(page)
    with qtbot.waitSignal(page.context.quantize_wanted):
        next(each for each in page.findChildren(type(page.detail.cancel)) if each.text() == "Quantize a model").click()


def test_a_finished_run_is_replayed_with_verdict_and_numbers(runs, make_run, open_page, qtbot):
    run_id = make_run(runs, "int4")
    page = open_page()
    qtbot.waitUntil(lambda: page.detail.result is not None, timeout=5000)
    assert page.run_id == run_id
    detail = page.detail
    assert detail.state.status is Status.DONE
    assert detail.result_card.isVisibleTo(page)
    assert not detail.progress_card.isVisibleTo(page)
    assert not detail.cancel.isVisibleTo(page)
    text = words_in(detail.result_card)
    for words in ("2.6 times as fast", "5.46 MB", "3.1× smaller", "806 tok/s", "+5.3 %"):
        assert words in text
    assert "took 30" in detail.about.whole_text()
    assert detail.memory.spoken().endswith("at most 570 MB")
    assert "Quantize: done" in detail.steps.spoken()


def test_a_failed_run_says_what_why_and_what_to_try(runs, make_run, open_page, qtbot):
    make_run(runs, "int4", error=ERROR)
    page = open_page()
    qtbot.waitUntil(lambda: page.detail.state.error is not None, timeout=5000)
    card = page.detail.error_card
    assert card.isVisibleTo(page)
    assert not page.detail.result_card.isVisibleTo(page)
    assert words_in(card) == "The disk is full. 0 bytes are free. Free some space."
    assert "Quality: failed" in page.detail.steps.spoken()


def test_a_damaged_run_is_shown_with_the_reason(runs, make_run, open_page, qtbot):
    run_id = make_run(runs)
    (runs / run_id / "run.json").write_text("[")
    page = open_page()
    qtbot.waitUntil(lambda: bool(page.banner.text()), timeout=5000)
    assert "run.json" in page.banner.text()


def test_a_result_of_another_shape_is_said_and_not_shown(runs, make_run, open_page, qtbot):
    messages = [protocol.Result(t=1.0, data={"surprise": 1})]
    make_run(runs, messages=messages)
    page = open_page()
    qtbot.waitUntil(lambda: page.detail.state.result is not None, timeout=5000)
    assert "cannot be read" in words_in(page.detail.notices)
    assert not page.detail.result_card.isVisibleTo(page)


def test_buttons_lead_on(runs, make_run, open_page, qtbot, monkeypatch):
    run_id = make_run(runs)
    page = open_page()
    qtbot.waitUntil(lambda: page.detail.result is not None, timeout=5000)
    card, context, opened = page.detail.result_card, page.context, []
    monkeypatch.setattr(QDesktopServices, "openUrl", opened.append)
    with qtbot.waitSignal(context.compare_wanted) as compare:
        card.compare.click()
    with qtbot.waitSignal(context.chat_wanted) as chat:
        card.chat.click()
    with qtbot.waitSignal(context.recipe_wanted) as recipe:
        card.again.click()
    card.folder.click()
    assert compare.args == [[run_id]]
    assert chat.args == [str(runs / run_id / "model")]
    assert recipe.args[0].scheme.kind == "w4a16"
    assert opened == [QUrl.fromLocalFile(str(runs / run_id))]


def test_a_run_is_followed_live_and_cancelled(open_page, qtbot):
    page = open_page("slow", 60)
    queue = page.context.queue
    first = queue.add(LONG, page.context.settings.runs_path)
    second = queue.add(LONG, page.context.settings.runs_path)
    page.show_run(first)
    qtbot.waitUntil(lambda: page.detail.phase.whole_text() == "A", timeout=5000)
    assert [run.status for run in page.list.runs().runs] == [Status.RUNNING, Status.WAITING]
    page.detail.cancel.click()
    qtbot.waitUntil(lambda: page.detail.state.status is Status.CANCELLED, timeout=5000)
    qtbot.waitUntil(lambda: page.detail.badge.text() == "Cancelled", timeout=2000)
    page.show_run(second)
    qtbot.waitUntil(lambda: page.detail.state.status is Status.RUNNING, timeout=5000)
    assert page.run_id == second, "the choice stays while the list changes its order"
    queue.cancel(second)
    qtbot.waitUntil(lambda: not page._timer.isActive(), timeout=5000)


def test_force_stop_appears_after_cancel_and_ends_a_stubborn_run(open_page, qtbot):
    page = open_page("stubborn")
    run_id = page.context.queue.add(LONG, page.context.settings.runs_path)
    page.show_run(run_id)
    qtbot.waitUntil(lambda: page.detail.state.status is Status.RUNNING, timeout=5000)
    assert not page.detail.kill.isVisibleTo(page)
    page.detail.cancel.click()
    qtbot.waitUntil(lambda: page.detail.kill.isVisibleTo(page), timeout=2000)
    page.detail.kill.click()
    qtbot.waitUntil(lambda: page.detail.state.status is Status.CANCELLED, timeout=5000)


def test_messages_do_not_repaint(open_page, qtbot, monkeypatch):
    """However many messages come, the page looks at most ten times a second."""
    page = open_page("flood", 10_000)
    looks = []
    seen = page.detail.refresh
    monkeypatch.setattr(page.detail, "refresh", lambda *given: (looks.append(1), seen(*given)))
    run_id = page.context.queue.add(LONG, page.context.settings.runs_path)
    page.show_run(run_id)
    with qtbot.waitSignal(page.context.queue.finished, timeout=20_000):
        pass
    state = page.context.queue.state(run_id)
    assert state.messages > 10_000
    assert len(looks) < 10 * (state.messages / 20_000) + 60
    assert "loss" in page.detail._metric_charts


def test_a_hidden_page_does_not_look(open_page, qtbot):
    page = open_page("slow", 60)
    page.context.queue.add(LONG, page.context.settings.runs_path)
    qtbot.waitUntil(page._timer.isActive, timeout=3000)
    page.hide()
    assert not page._timer.isActive()


def press(words):
    def look():
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):
            next(each for each in box.buttons() if each.text().replace("&", "") == words).click()
        else:
            QTimer.singleShot(20, look)

    QTimer.singleShot(20, look)


def test_deleting_asks_first(runs, make_run, open_page, qtbot):
    run_id = make_run(runs)
    page = open_page()
    qtbot.waitUntil(lambda: page.detail.result is not None, timeout=5000)
    press("Keep")
    page.detail.delete.click()
    assert (runs / run_id).exists()
    press("Delete")
    page.list.setFocus()
    page.delete()
    assert not (runs / run_id).exists()
    assert "No runs yet" in words_in(page)


def test_arrow_keys_walk_through_the_history(runs, make_run, open_page, qtbot):
    make_run(runs, "int4")
    make_run(runs, "int8")
    page = open_page()
    first = page.run_id
    page.list.setFocus()
    qtbot.keyClick(page.list, Qt.Key.Key_Down)
    qtbot.waitUntil(lambda: page.detail.header.id == page.run_id != first, timeout=5000)


def test_live_runs_stand_before_history_and_just_ended_ones_do_not_flicker():
    old = RunHeader(id="old", name="Old", created=1.0, status=Status.DONE)
    lost = RunHeader(id="b", name="B", created=2.0, status=Status.RUNNING)
    running, ended = RunState(status=Status.RUNNING), RunState(status=Status.DONE)
    lines = listed_runs([("a", running), ("b", ended)], [lost, old])
    assert [(line.id, line.status) for line in lines] == [
        ("a", Status.RUNNING),
        ("b", Status.DONE),
        ("old", Status.DONE),
    ]


def test_steps_tell_done_now_and_ahead():
    phases = [protocol.Phase(t=float(10 * i), id=str(i), title=f"P{i}", index=i, total=4) for i in range(2)]
    state = replay(phases)
    steps = steps_of(state, now=15.0)
    assert [(step.title, step.state) for step in steps] == [
        ("P0", StepState.DONE),
        ("P1", StepState.NOW),
        ("", StepState.AHEAD),
        ("", StepState.AHEAD),
    ]
    assert [step.seconds for step in steps[:2]] == [10.0, 5.0]
    state.apply(protocol.CancelledMessage(t=18.0))
    assert [step.state for step in steps_of(state, now=99.0)] == [StepState.DONE, StepState.STOPPED]


def test_progress_is_said_in_words():
    state = replay([protocol.Phase(t=1.0, id="a", title="Quantize", index=1, total=4)])
    assert progress_words(RunState(), 0.0) == "Starting the process that does the work…"
    assert progress_words(state, 6.0) == "Step 2 of 4 · 25 % · 5 s so far"
    state.apply(protocol.Progress(t=2.0, done=10, total=20, unit="layers", detail="model.layers.3", eta_s=31.0))
    assert progress_words(state, 6.0) == "Step 2 of 4 · 38 % · about 30 seconds left in this step"
    assert detail_words(state) == "10 of 20 layers · model.layers.3"


def test_times_are_said_as_people_do():
    now = 1_700_000_000.0
    assert when(now - 5, now) == "just now"
    assert when(now - 300, now) == "5 min ago"
    assert when(0, now) == ""
    assert "2020" in when(1_600_000_000.0, now)


def test_the_log_is_followed_only_while_it_is_open(qtbot):
    fold = LogFold()
    qtbot.addWidget(fold)
    log = deque(["one"], maxlen=MAX_LOG_LINES)
    fold.show_log(log, new_run=True)
    assert fold.text.toPlainText() == ""
    fold.fold.click()
    assert fold.text.toPlainText() == "one"
    log.append("two")
    fold.show_log(log)
    assert fold.text.toPlainText() == "one\ntwo"
    assert fold.fold.text() == "Log (2)"


def test_a_full_log_moves_on(qtbot):
    fold = LogFold()
    qtbot.addWidget(fold)
    log = deque((str(i) for i in range(MAX_LOG_LINES)), maxlen=MAX_LOG_LINES)
    fold.show_log(log, new_run=True)
    fold.fold.click()
    log.extend(f"new {i}" for i in range(100))
    for _ in range(6):
        fold.show_log(log)
    lines = fold.text.toPlainText().split("\n")
    assert lines == list(log)


def test_perplexity_so_far_does_not_look_like_something_that_improves(qtbot):
    detail = RunDetail()
    qtbot.addWidget(detail)
    names = ("original_perplexity", "perplexity")
    metrics = [protocol.Metric(t=1.0, name=name, value=40.0 - i, step=i) for name in names for i in range(3)]
    detail.show_run(RunHeader(name="A", created=1.0), replay(metrics))
    titles = [words.text() for words in detail.findChildren(QLabel) if words.text().endswith("on the text so far")]
    assert len(titles) == 2


def test_another_run_does_not_inherit_notices_and_charts(qtbot, make_result):
    detail = RunDetail()
    qtbot.addWidget(detail)
    metrics = [protocol.Metric(t=1.0, name="loss", value=1.0, step=i) for i in range(3)]
    notice = protocol.Notice(t=1.0, level="warning", text="<b>look</b>")
    detail.show_run(RunHeader(name="A", created=1.0), replay([notice, *metrics]))
    assert words_in(detail.notices) == "<b>look</b>"
    assert list(detail._metric_charts) == ["loss"]
    detail.show_run(RunHeader(name="B", created=1.0), RunState())
    assert not detail.notices.isVisibleTo(detail)
    assert not detail._metric_charts


def test_a_run_of_another_process_is_followed_and_offers_no_button_that_cannot_stop_it(runs, open_page, qtbot):
    folder = create_run(runs, LONG)
    write_header(folder, read_header(folder).model_copy(update={"status": Status.RUNNING}))
    sent = [protocol.Hello(t=1.0, protocol=protocol.PROTOCOL_VERSION, version="", pid=1)]
    sent += [protocol.Phase(t=2.0 + at, id=str(at), title=f"P{at}", index=at, total=4) for at in range(2)]
    sent += [protocol.Log(t=5.0, level="info", text=f"line {number}") for number in range(5)]
    with RunLock(folder):
        write(folder, sent[:2])
        page = open_page()
        page._others.setInterval(20)
        qtbot.waitUntil(lambda: bool(page.detail.state.phases), timeout=5000)
        assert page.detail.elsewhere.isVisibleTo(page)
        assert not page.detail.cancel.isVisibleTo(page)
        at_first = len(page.detail.state.phases)
        write(folder, sent)
        qtbot.waitUntil(lambda: len(page.detail.state.phases) > at_first, timeout=5000)
        assert page.detail.state.log == replay(sent).log, "nothing is taken in twice"
        write(folder, [*sent, protocol.CancelledMessage(t=9.0)])
        write_header(folder, read_header(folder).model_copy(update={"status": Status.CANCELLED}))
    qtbot.waitUntil(lambda: page.detail.badge.text() == "Cancelled", timeout=5000)
    qtbot.waitUntil(lambda: page.list.runs().runs[0].status is Status.CANCELLED, timeout=5000)
    assert page.detail.stopped_card.isVisibleTo(page)


def test_titles_of_steps_are_whole_beside_the_memory(qtbot):
    detail = RunDetail()
    qtbot.addWidget(detail)
    detail.resize(700, 600)
    phase = protocol.Phase(t=1.0, id="p", title="Measuring the original again", index=0, total=2)
    detail.show_run(RunHeader(name="A", created=1.0), replay([phase]))
    detail.show()
    QApplication.processEvents()
    bold = QFont(detail.steps.font())
    bold.setBold(True)
    assert detail.steps.width() >= QFontMetrics(bold).horizontalAdvance(phase.title) + BESIDE_TITLE


def write(folder, messages):
    (folder / EVENTS).write_bytes(b"".join(protocol.encode(message) for message in messages))


def test_a_run_with_every_button_is_no_wider_than_the_narrowest_window(qtbot):
    detail = RunDetail()
    qtbot.addWidget(detail)
    detail.resize(SMALLEST.width() - 184 - LIST_WIDTH, 600)
    detail.show()
    card = detail.result_card
    card.contest.show()
    card.show()
    QApplication.processEvents()
    assert detail.widget().width() == detail.viewport().width()
    buttons = (card.chat, card.compare, card.contest, card.folder, card.again)
    assert all(card.rect().contains(button.geometry().translated(button.parentWidget().pos())) for button in buttons)
    assert card.again.y() > card.chat.y(), "what has no room goes on in the next line"
