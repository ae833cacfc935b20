"""The search for the best at a size: started, followed, stopped, read, and opened again from a run."""

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog

from quantstudio.core.contest import CONTEST_FILE, Contest, Contestant
from quantstudio.core.contest_file import has_contest, read_contest
from quantstudio.core.errors import RunNotFound
from quantstudio.core.recipe import Recipe
from quantstudio.core.result import Interval
from quantstudio.gui.pages.quantize_page import QuantizePage
from quantstudio.gui.pages.run_page import RunPage
from quantstudio.gui.widgets.contest_table import COLUMNS, ContestTable, _signed
from quantstudio.gui.widgets.contest_view import ContestView


def around(value, width=0.01):
    return {"value": value, "low": value - width, "high": value + width}


def contest(best="gptq", noise=False, failed=()):
    rows = []
    for name, level in (("original", 10.0), ("rtn", 11.0), ("gptq", 10.5)):
        change = level / 10 - 1
        row = {"contestant": name, "title": name, "nbytes": 1_000_000, "bits_per_weight": 4.1, "seconds": 70.0}
        row |= {"perplexity": around(level), "perplexity_change": around(change), "kl": around(change)}
        row |= {"run_folder": f"/runs/m-{name}" if name != "original" else ""}
        rows.append(row | {"recovered": around(0.5, 0.1) if name == "gptq" and not noise else None})
    pairs = [
        {"first": "original", "second": "rtn", "difference": around(-0.09), "verdict": "better"},
        {"first": "original", "second": "gptq", "difference": around(-0.05), "verdict": "better"},
        {"first": "rtn", "second": "gptq", "difference": around(0.005), "verdict": "cannot_tell"},
    ]
    about = {"model_name": "m", "scheme": "W4A16 g128", "recipe": Recipe().model_dump(), "text": "novels"}
    about |= {"tokens": 1000, "windows": 4, "gap": around(1.0), "gap_is_noise": noise, "best": best}
    return Contest.model_validate(
        about | {"rows": rows, "pairs": pairs, "failed": failed, "recommendation": "Take it."}
    )


def texts(table, column):
    place = [each.title for each in COLUMNS].index(column)
    return [table.item(row, place).text().replace("\n", " | ") for row in range(table.rowCount())]


@pytest.fixture
def table(qtbot):
    made = ContestTable()
    qtbot.addWidget(made)
    made.resize(950, 300)
    return made


def test_every_number_stands_with_its_interval_and_verdicts_are_words(table):
    table.show_contest(contest())
    assert texts(table, "Way") == ["original", "rtn", "gptq | recommended"]
    assert texts(table, "Perplexity")[1] == "11.00 | 11.0 to 11.0"
    assert texts(table, "Change") == ["–", "+10.0 % | +9.0 to +11.0", "+5.0 % | +4.0 to +6.0"]
    assert texts(table, "Won back") == ["–", "–", "50 % | 40 to 60"]
    assert texts(table, "Against best") == ["better | −6.0 to −4.0 %", "cannot tell | −0.5 to +1.5 %", "–"]
    assert texts(table, "KL, nats") == ["–", "0.10 | 0.090 to 0.11", "0.050 | 0.040 to 0.060"]
    assert texts(table, "Made in") == ["–", "1 min 10 s", "1 min 10 s"]
    assert table.currentRow() == 2
    spoken = table.item(1, 3).data(Qt.ItemDataRole.AccessibleTextRole)
    assert spoken == "rtn, Change: +10.0 % +9.0 to +11.0"


def test_the_table_needs_no_scrolling_at_the_width_of_its_dialog(table):
    table.show_contest(contest())
    table.show()
    assert sum(table.columnWidth(place) for place in range(table.columnCount())) <= table.viewport().width()


def test_what_rounds_to_nothing_has_no_sign():
    assert [_signed(share) for share in (0.0421, -0.0421, 0.0004, -0.0004)] == ["+4.2", "−4.2", "0.0", "0.0"]


def test_noise_and_failures_are_said(qtbot):
    view = ContestView()
    qtbot.addWidget(view)
    view.show_contest(contest(noise=True, failed=[{"contestant": "qat", "why": "The memory was too small."}]))
    assert "within noise" in view.notes.text()
    assert "QAT could not be made. The memory was too small." in view.notes.text()
    assert texts(view.table, "Won back") == ["–", "–", "–"]


def test_rows_lead_to_their_runs_and_methods(qtbot):
    view = ContestView()
    qtbot.addWidget(view)
    view.show_contest(contest())
    with qtbot.waitSignal(view.run_asked) as run:
        view.open_run.click()
    with qtbot.waitSignal(view.method_asked) as method:
        view.use.click()
    assert (run.args, method.args) == (["m-gptq"], ["gptq"])
    view.table.selectRow(0)
    assert not view.open_run.isEnabled(), "the original has no run"


@pytest.fixture
def open_search(make_context, qtbot):
    def make(argument=""):
        page = QuantizePage(make_context("contest", argument))
        qtbot.addWidget(page)
        page.show()
        qtbot.waitUntil(lambda: page._checked, timeout=5000)
        page.tools.contest_button.click()
        return page, page.tools.contest

    return make


def test_a_search_is_started_followed_and_read(open_search, qtbot):
    page, dialog = open_search()
    assert "All of them together: about" in dialog.time_words.text()
    assert "Each training takes 50 steps." in dialog.time_words.text()
    dialog.boxes[Contestant.HQQ].setChecked(False)
    assert not dialog.boxes[Contestant.RTN].isEnabled(), "what others win back is counted from it"
    dialog.start.click()
    qtbot.waitUntil(lambda: dialog.view.contest is not None, timeout=5000)
    found = [row.contestant for row in dialog.view.contest.rows]
    assert found == ["original", "rtn", "gptq", "awq", "finetune_gptq", "qat"]
    assert dialog.view.recommendation.text().startswith("Take QAT.")
    with qtbot.waitSignal(page.form.changed):
        dialog.view.use.click()
    assert page.form.values()["method.kind"] == "qat"
    with qtbot.waitSignal(page.context.run_wanted) as wanted:
        dialog.view.open_run.click()
    assert wanted.args == ["starter-qat"]
    dialog.again.click()
    assert dialog.start.isVisible()


def test_a_search_goes_on_while_its_dialog_is_closed_and_holds_up_runs(open_search, qtbot):
    page, dialog = open_search("wait")
    dialog.start.click()
    qtbot.waitUntil(lambda: "gptq" in dialog.phase.whole_text(), timeout=5000)
    dialog.close()
    assert dialog.busy
    page.start()
    assert "still at work" in page.banner.text()
    assert page.context.queue.runs == []
    page.tools.contest_button.click()
    assert dialog.isVisible()
    assert dialog.steps.isVisible()
    dialog.stop.click()
    qtbot.waitUntil(lambda: dialog.start.isVisible(), timeout=5000)


def test_a_failed_search_says_why(open_search, qtbot):
    _, dialog = open_search("fail")
    dialog.start.click()
    qtbot.waitUntil(lambda: bool(dialog.problem.text()), timeout=5000)
    assert dialog.problem.text() == "None of the ways gave a model. The disk is full."
    assert dialog.start.isVisible()


def test_a_search_can_be_opened_again_from_a_run_that_took_part(make_context, make_run, home, qtbot):
    runs = home / "runs"
    runs.mkdir(parents=True)
    run_id = make_run(runs)
    (runs / run_id / CONTEST_FILE).write_text(contest().model_dump_json())
    page = RunPage(make_context())
    qtbot.addWidget(page)
    page.show()
    card = page.detail.result_card
    qtbot.waitUntil(lambda: card.contest.isVisible(), timeout=5000)
    card.contest.click()
    [dialog] = [each for each in page.findChildren(QDialog) if each.isVisible()]
    assert dialog.findChild(ContestTable).rowCount() == 3
    dialog.close()


NEWER = contest().model_dump_json().replace('"version":1', '"version":99', 1)


@pytest.mark.parametrize("content", ["[", '{"version": 1}', NEWER])
def test_a_broken_file_is_said(tmp_path, content):
    assert not has_contest(tmp_path)
    with pytest.raises(RunNotFound):
        read_contest(tmp_path)
    (tmp_path / CONTEST_FILE).write_text(content)
    assert has_contest(tmp_path)
    with pytest.raises(RunNotFound, match="cannot be shown"):
        read_contest(tmp_path)


def test_a_good_file_is_read_whole(tmp_path):
    made = contest()
    (tmp_path / CONTEST_FILE).write_text(made.model_dump_json())
    assert read_contest(tmp_path) == made
    assert isinstance(made.gap, Interval)
