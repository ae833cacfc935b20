"""The Compare page: runs to tick, one table for each original, charts, and exports."""

import csv
import io

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QFontMetrics, QGuiApplication
from PySide6.QtWidgets import QApplication, QFileDialog, QLabel

from quantstudio.core.errors import DiskProblem
from quantstudio.core.result import Interval
from quantstudio.core.run_store import delete_run
from quantstudio.gui.main_window import SMALLEST, MainWindow
from quantstudio.gui.pages.compare_page import ComparePage
from quantstudio.gui.theme import apply_theme
from quantstudio.gui.tokens import LIGHT
from quantstudio.gui.widgets import chart_view
from quantstudio.gui.widgets.basics import Banner
from quantstudio.gui.widgets.compare_export import FORMATS, export, with_suffix
from quantstudio.gui.widgets.compare_table import CELL, CompareTable


@pytest.fixture
def runs(home, make_run, qapp):
    if not qapp.styleSheet():
        apply_theme(qapp, LIGHT)
    folder = home / "runs"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def both(runs, make_run):
    return [make_run(runs, "int4"), make_run(runs, "int8")]


@pytest.fixture
def open_page(context, qtbot):
    def make():
        page = ComparePage(context)
        qtbot.addWidget(page)
        page.resize(860, 700)
        page.show()
        return page

    return make


def tables(page):
    return page._area.widget().findChildren(CompareTable)


def texts(table, row):
    model = table.model()
    return [model.index(row, column).data() for column in range(model.columnCount())]


def test_without_finished_runs_the_page_says_what_to_do(runs, make_run, open_page, qtbot):
    from quantstudio.core.protocol import Error

    make_run(runs, error=Error(kind="disk", what="The disk is full."))
    page = open_page()
    shown = [label.text() for label in page.findChildren(QLabel) if label.isVisibleTo(page)]
    assert "Nothing to compare yet" in shown


def test_the_newest_model_s_runs_are_ticked_at_first(both, open_page):
    page = open_page()
    assert set(page.picker.picked()) == set(both)
    (table,) = tables(page)
    assert table.model().columnCount() == 3


def test_the_table_shows_what_was_measured(both, open_page):
    page = open_page()
    page.show_runs(both)
    (table,) = tables(page)
    model = table.model()
    names = [model.headerData(i, Qt.Orientation.Vertical) for i in range(model.rowCount())]
    assert names[:2] == ["Size", "Bits per weight"]
    assert texts(table, 0)[0] == "16.8 MB"
    assert set(texts(table, 0)) == {"16.8 MB", "5.46 MB", "8.44 MB"}
    change = names.index("Change")
    cells = [model.index(change, column).data(CELL) for column in range(3)]
    assert {cell.text for cell in cells} == {"–", "+5.3 %", "+0.06 %"}
    spoken = [model.index(change, column).data(Qt.ItemDataRole.AccessibleTextRole) for column in range(3)]
    uncertain = next(words for words in spoken if "+0.06" in words)
    assert "within the noise" in uncertain
    assert "the best of this table" in uncertain


def test_ticking_by_mouse_and_by_key_changes_the_table(both, open_page, qtbot):
    page = open_page()
    page.picker.setFocus()
    page.picker.setCurrentRow(0)
    qtbot.keyClick(page.picker, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: len(page.results) == 1, timeout=2000)
    place = page.picker.visualItemRect(page.picker.item(0)).center()
    qtbot.mouseClick(page.picker.viewport(), Qt.MouseButton.LeftButton, pos=place)
    qtbot.waitUntil(lambda: len(page.results) == 2, timeout=2000)
    page._pick_none()
    qtbot.waitUntil(lambda: page._right.currentIndex() == 0, timeout=2000)
    assert not page.export_button.isEnabled()
    page._pick_all()
    qtbot.waitUntil(lambda: len(page.results) == 2, timeout=2000)


def test_models_with_other_originals_get_a_table_of_their_own_and_it_is_said(both, runs, make_run, open_page):
    other = make_run(runs, "int4", run_id="other", model_name="other")
    page = open_page()
    page.show_runs([*both, other])
    assert [table.model().group.model_name for table in tables(page)] == ["starter", "other"]
    banners = [banner.text() for banner in page._area.widget().findChildren(Banner)]
    assert any("different models" in text for text in banners)


def test_long_names_do_not_make_the_page_wider_than_its_window(runs, make_run, open_page, qtbot):
    name = "a_model_with_a_name_that_is_as_long_as_a_name_may_be_" + "x" * 27
    ids = [make_run(runs, run_id=str(number), name=name, model_name=f"{name}{number}") for number in range(2)]
    page = open_page()
    page.resize(700, 600)
    page.show_runs(ids)
    qtbot.waitUntil(lambda: len(page.results) == 2, timeout=5000)
    QApplication.processEvents()
    assert page._area.horizontalScrollBar().maximum() == 0
    page.shutdown()


def test_the_original_and_two_runs_stand_side_by_side_in_the_smallest_window(
    runs, make_run, make_result, context, qtbot
):
    quality = make_result("int4").quality
    wide = {"kl": Interval(value=0.00096, low=0.00094, high=0.00098)}
    wide["perplexity_change"] = Interval(value=0.0013, low=0.0008, high=0.0018)
    ids = [make_run(runs, kind, quality=quality.model_copy(update=wide)) for kind in ("int4", "int8")]
    window = MainWindow(context)
    qtbot.addWidget(window)
    window.resize(SMALLEST)
    window.show()
    context.open_compare(ids)
    page = window.stack.currentWidget()
    qtbot.waitUntil(lambda: bool(tables(page)), timeout=5000)
    QApplication.processEvents()
    (table,) = tables(page)
    assert table.model().columnCount() == 3
    assert table.horizontalScrollBar().maximum() == 0
    window.close()


def test_verdicts_are_shown_as_plain_text(runs, make_run, open_page):
    run_id = make_run(runs, verdict=("<b>Faster</b> by far.",))
    page = open_page()
    page.show_runs([run_id])
    labels = [label for label in page._area.widget().findChildren(QLabel) if "Faster" in label.text()]
    assert labels[0].text() == "<b>Faster</b> by far."
    assert labels[0].textFormat() == Qt.TextFormat.PlainText


@pytest.mark.parametrize("hidden", [False, True])
def test_two_charts_stand_side_by_side_only_while_there_is_room_for_them(both, open_page, qtbot, hidden):
    """Also when the window was given another size while another page was shown."""
    page = open_page()
    page.show_runs(both)
    ((grid, cards),) = page._grids

    def beside():
        return grid.itemAtPosition(0, 1) is not None and grid.itemAtPosition(0, 1).widget() is cards[1]

    for width, wanted in ((1400, True), (900, False), (1400, True), (860, False)):
        page.setHidden(hidden)
        page.resize(width, 700)
        page.show()
        qtbot.waitUntil(lambda wanted=wanted: beside() is wanted, timeout=5000)
        assert page._area.horizontalScrollBar().maximum() == 0
    page.shutdown()


def test_a_chart_that_cannot_be_drawn_says_so_and_its_failure_reaches_the_window(both, open_page, qtbot, monkeypatch):
    def spoiled(*_):
        raise ValueError("no such chart")

    monkeypatch.setattr(chart_view, "draw_image", spoiled)
    with qtbot.capture_exceptions() as failures:
        page = open_page()
        page.show_runs(both)
        qtbot.waitUntil(lambda: all(chart._failed for chart in page.charts), timeout=15_000)
    assert {kind for kind, _, _ in failures} == {ValueError}
    assert not page.charts[0].drawn
    page.shutdown()


def test_charts_are_drawn_and_follow_the_theme(both, open_page, qtbot):
    page = open_page()
    page.show_runs(both)
    assert len(page.charts) == 5
    qtbot.waitUntil(lambda: page.charts[0].drawn, timeout=15_000)
    before = page.charts[0]._key
    page.context.change_tokens(page.context.tokens)
    qtbot.waitUntil(lambda: page.charts[0]._key != before, timeout=5000)
    page.shutdown()


def test_ticks_survive_a_new_run_and_a_deleted_one(both, runs, make_run, open_page):
    page = open_page()
    page.show_runs(both[:1])
    make_run(runs, "int8", run_id="third")
    page.reload()
    assert page.picker.count() == 3
    assert page.picker.picked() == both[:1]
    delete_run(runs / both[0])
    page.reload()
    assert page.picker.picked() == []
    assert page.results == []


def test_when_the_runs_ticked_at_first_are_deleted_others_take_their_place(runs, make_run, open_page):
    newest = make_run(runs, "int4", run_id="newest", model_name="other")
    page = open_page()
    assert page.picker.picked() == [newest]
    make_run(runs, "int8")
    delete_run(runs / newest)
    page.reload()
    assert [result.run_id for result in page.results] == page.picker.picked() != []


def test_a_damaged_result_is_named_and_the_others_stay(both, runs, open_page):
    (runs / both[0] / "result.json").write_text("{")
    page = open_page()
    page.show_runs(both)
    assert "no result that can be read" in page.banner.text()
    assert [result.run_id for result in page.results] == [both[1]]


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.suffix)
def test_every_format_is_written(both, open_page, qtbot, tmp_path, monkeypatch, kind):
    page = open_page()
    page.show_runs(both)
    target = tmp_path / "out"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(target), ""))
    page.save_as(kind)
    qtbot.waitUntil(lambda: page.export_button.isEnabled(), timeout=20_000)
    written = tmp_path / f"out.{kind.suffix}"
    starts = {"html": b"<!doctype html>", "png": b"\x89PNG", "svg": b"<?xml", "csv": b"original_model,"}
    assert written.read_bytes().startswith(starts[kind.suffix])
    assert str(written) in page.banner.text()


def test_a_file_that_cannot_be_written_is_told(both, open_page, qtbot, tmp_path):
    page = open_page()
    page.show_runs(both)
    page.save(tmp_path / "nowhere" / "a.csv")
    qtbot.waitUntil(lambda: page.export_button.isEnabled(), timeout=5000)
    assert "cannot be written" in page.banner.text()
    with pytest.raises(DiskProblem):
        export(page.results, tmp_path / "nowhere" / "a.png")


def test_suffixes_are_added_only_where_they_lack(tmp_path):
    assert with_suffix(tmp_path / "v1.2", "csv").name == "v1.2.csv"
    assert with_suffix(tmp_path / "a.CSV", "csv").name == "a.CSV"


def test_csv_lines_end_once(make_result, tmp_path):
    export([make_result()], tmp_path / "a.csv")
    raw = (tmp_path / "a.csv").read_bytes()
    assert b"\r\r" not in raw
    assert len(list(csv.reader(io.StringIO(raw.decode())))) == 3


def test_the_table_goes_to_the_clipboard_as_markdown(both, open_page):
    page = open_page()
    page.show_runs(both)
    page.copy_table()
    assert QGuiApplication.clipboard().text().startswith("|  | Original |")


def test_the_first_choice_is_measured_runs(runs, make_run, open_page):
    bare = dict.fromkeys(("original_first", "quantized", "original_last", "quality"))
    measured = make_run(runs, "int8")
    made = make_run(runs, "int4", run_id="starter-int4-20250102-120000", **bare)
    page = open_page()
    assert page.picker.picked() == [measured]
    delete_run(runs / measured)
    page.reload()
    assert page.picker.picked() == [made], "better than nothing"


def test_no_number_is_wider_than_its_column(runs, make_run, open_page, make_result):
    quality = make_result("int4").quality
    wide = quality.model_copy(update={"kl": Interval(value=0.00096, low=0.000944, high=0.000978)})
    wide = wide.model_copy(update={"perplexity_change": Interval(value=-0.2144, low=-0.2188, high=-0.2044)})
    make_run(runs, "int4", quality=wide)
    page = open_page()
    (table,) = tables(page)
    small = table.font()
    small.setPointSizeF(small.pointSizeF() - 1.5)
    texts = [cell.detail for row in table.model().group.rows for cell in row.cells.values()]
    assert table.columnWidth(1) >= max(QFontMetrics(small).horizontalAdvance(text) for text in texts)
