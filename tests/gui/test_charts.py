"""Charts in the window: round marks, peaks that stay, cheap repaints, pictures that follow the theme."""

import time

import pytest
from PySide6.QtCore import QCoreApplication, QEvent, QPointF, QSize, Qt
from PySide6.QtGui import QImage, QPainter
from PySide6.QtWidgets import QWidget

from quantstudio.core.comparison import compare
from quantstudio.core.figures import Chart
from quantstudio.core.humanize import human_bytes
from quantstudio.gui.theme import apply_theme
from quantstudio.gui.tokens import DARK, LIGHT
from quantstudio.gui.widgets import chart_live, chart_view
from quantstudio.gui.widgets.chart_live import Line, LiveChart
from quantstudio.gui.widgets.chart_ticks import clock, nice_ticks, power_ticks, thinned, time_ticks
from quantstudio.gui.widgets.chart_view import ChartPool, ChartView, draw_image, spoken


@pytest.mark.parametrize(
    ("low", "high", "first", "last"), [(0, 570e6, 0, 600e6), (0, 1, 0, 1), (19.88, 28, 17.5, 30), (-3, 7, -5, 7.5)]
)
def test_marks_are_round_and_cover_the_range(low, high, first, last):
    ticks = nice_ticks(low, high, 4)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert (ticks[0], ticks[-1]) == pytest.approx((first, last))
    assert 3 <= len(ticks) <= 7


@pytest.mark.parametrize(("low", "high"), [(5, 5), (0, 0), (float("nan"), 1), (0, float("inf")), (-2, -2)])
def test_marks_survive_flat_and_broken_ranges(low, high):
    ticks = nice_ticks(low, high, 4)
    assert ticks == sorted(ticks)
    assert len(ticks) >= 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (35, 900, [20, 50, 100, 200, 500, 1000]),
        (1, 100, [1, 2, 5, 10, 20, 50, 100]),
        (30, 8e4, [10, 1e2, 1e3, 1e4, 1e5]),
    ],
)
def test_marks_of_a_logarithmic_axis(low, high, expected):
    assert power_ticks(low, high) == pytest.approx(expected)


def test_a_curve_that_falls_from_very_high_leaves_the_end_readable(qtbot):
    """A model that has just lost layers begins at a hundred times the perplexity it ends at."""
    chart = LiveChart("Perplexity", lambda value: f"{value:.4g}", over_time=False, may_span_powers=True)
    qtbot.addWidget(chart)
    chart.resize(500, 220)
    chart.show_lines([Line("This training", [0.0, 10.0, 20.0], [4000.0, 90.0, 60.0])])
    plot, ticks = chart._plot(), chart._y_ticks()
    places = [chart._y_place(plot, ticks, y) for y in (4000.0, 90.0, 60.0)]
    assert plot.top() <= places[0] < places[1] < places[2] <= plot.bottom()
    assert places[2] - places[1] > 0.05 * plot.height()
    chart.show_lines([Line("This training", [0.0, 10.0, 20.0], [70.0, 62.0, 60.0])])
    assert chart._y_ticks() == nice_ticks(60.0, 70.0, 4)


def test_an_axis_of_steps_has_whole_marks_and_says_what_they_are(qtbot):
    chart = LiveChart("Loss", lambda value: f"{value:.4g}", over_time=False)
    qtbot.addWidget(chart)
    chart.show_lines([Line("Loss", [0.0, 1.0, 2.0], [3.0, 2.0, 1.0])])
    assert chart_live._whole(nice_ticks(0.0, 2.0, 4)) == [0.0, 1.0, 2.0]
    qtbot.keyClick(chart, Qt.Key.Key_End)
    assert chart.picked_text() == "step 2   1"


def test_times_are_marked_as_clocks_do():
    assert time_ticks(24.5, 4) == [0, 10, 20]
    assert time_ticks(300, 4) == [0, 120, 240]
    assert len(time_ticks(1e7, 5)) < 15
    assert [clock(s) for s in (0, 59.4, 60, 150, 3900)] == ["0 s", "59 s", "1:00", "2:30", "1:05:00"]


def test_a_peak_of_one_sample_survives_thinning():
    y = [1.0] * 4000
    y[2345] = 9.0
    thin_x, thin_y = thinned([float(i) for i in range(4000)], y, 100)
    assert len(thin_x) <= 400
    assert max(thin_y) == 9.0
    assert thin_x == sorted(thin_x)
    assert (thin_x[0], thin_x[-1]) == (0.0, 3999.0)


@pytest.fixture
def live(qtbot, qapp):
    apply_theme(qapp, LIGHT)
    chart = LiveChart("Memory", human_bytes)
    qtbot.addWidget(chart)
    chart.resize(500, 160)
    chart.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the frame of the focus has the colour of the first curve
    chart.show()
    return chart


def colours(widget):
    image = widget.grab().toImage()
    return {image.pixelColor(x, y).name() for x in range(0, image.width(), 2) for y in range(image.height())}


def test_an_empty_chart_says_so_and_a_full_one_speaks(live):
    assert LIGHT.series[1] not in colours(live)
    live.show_lines([Line("Memory", [0.0, 1.0, 2.0], [1e8, 5e8, 3e8])])
    assert LIGHT.series[1] in colours(live)
    assert live.accessibleDescription() == "Memory: last 300 MB, at most 500 MB"


def test_values_are_read_off_by_mouse_and_by_key(live, qtbot):
    live.show_lines([Line("Memory", [0.0, 1.0, 2.0], [1e8, 5e8, 3e8])])
    assert live.picked_text() == ""
    plot = live._plot()
    qtbot.mouseMove(live, QPointF(plot.center().x(), plot.center().y()).toPoint())
    assert live.picked_text() == "1 s   500 MB"
    qtbot.keyClick(live, Qt.Key.Key_Home)
    assert live.picked_text() == "0 s   100 MB"
    qtbot.keyClick(live, Qt.Key.Key_Right)
    qtbot.keyClick(live, Qt.Key.Key_End)
    assert live.picked_text() == "2 s   300 MB"
    assert live.accessibleDescription() == "2 s   300 MB"


def test_one_point_and_two_curves_are_drawn(live):
    live.show_lines([Line("a", [0.0], [5.0])])
    assert LIGHT.series[1] in colours(live)
    live.show_lines([Line("a", [0.0, 9.0], [5.0, 2.0]), Line("b", [0.0, 9.0], [1.0, 2.0], 2), Line("c", [], [])])
    assert LIGHT.series[2] in colours(live)
    assert "b: last 2 B" in live.spoken()


def test_a_long_curve_is_cheap_to_paint(live):
    """Ten repaints a second beside a busy job: 4,000 points, in processor time of this thread."""
    live.show_lines([Line("Memory", [i * 0.1 for i in range(4000)], [1e8 + (i * 7919) % 1e6 for i in range(4000)])])
    image = QImage(500, 160, QImage.Format.Format_ARGB32)
    painter = QPainter(image)
    live.render(painter, QPointF(0, 0).toPoint())
    start = time.thread_time()
    for _ in range(10):
        live.render(painter, QPointF(0, 0).toPoint())
    cost = (time.thread_time() - start) / 10
    painter.end()
    assert cost < 0.03


@pytest.fixture
def group(make_result):
    return compare([make_result("int4"), make_result("int8")])[0]


def test_charts_take_the_colours_of_the_theme(group):
    for tokens in (LIGHT, DARK):
        image = draw_image(Chart.SIZE, group, tokens, QSize(300, 160), 1.0)
        assert (image.width(), image.height()) == (300, 160)
        assert image.pixelColor(1, 1).name() == tokens.card
    assert draw_image(Chart.SIZE, group, LIGHT, QSize(300, 160), 2.0).width() == 600


def test_a_chart_is_drawn_in_the_background_and_again_for_another_theme(group, qtbot, qapp):
    apply_theme(qapp, LIGHT)
    pool = ChartPool(qapp)
    view = ChartView(Chart.MEMORY, group, pool)
    qtbot.addWidget(view)
    view.resize(400, view.height())
    view.show()
    qtbot.waitUntil(lambda: view.drawn, timeout=10_000)
    assert LIGHT.card in colours(view)
    apply_theme(qapp, DARK)
    view.redraw()
    qtbot.waitUntil(lambda: DARK.card in colours(view), timeout=10_000)
    apply_theme(qapp, LIGHT)
    pool.shutdown()


def test_a_chart_that_goes_away_while_it_is_drawn_does_no_harm(group, qtbot, qapp):
    pool = ChartPool(qapp)
    for _ in range(3):
        view = ChartView(Chart.QUALITY, group, pool)
        view.resize(400, 200)
        view._ask()
        view.deleteLater()
        del view
        qtbot.wait(1)
    pool.shutdown()
    qtbot.wait(10)


def test_a_window_that_goes_while_its_charts_are_drawn_leaves_no_failure(group, qtbot, qapp, monkeypatch):
    """Whatever fails in the charts' thread is reported from there. How far a drawing is when its pool goes is chance,
    so it goes many times."""
    pauses = iter([0.0, 0.001, 0.002, 0.003] * 1000)

    def quick(*_):
        time.sleep(next(pauses))
        return QImage(1, 1, QImage.Format.Format_RGBA8888)

    monkeypatch.setattr(chart_view, "draw_image", quick)
    with qtbot.capture_exceptions() as failures:
        for _ in range(60):
            window = QWidget()
            pool = ChartPool(window)
            for chart in (Chart.SIZE, Chart.MEMORY, Chart.QUALITY):
                view = ChartView(chart, group, pool)
                view.setParent(window)
                view.resize(400, 200)
                view._ask()
            time.sleep(next(pauses))
            window.deleteLater()
            QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
            QCoreApplication.processEvents()
    assert failures == []


def test_charts_speak(group):
    words = spoken(Chart.LATENCY, group)
    assert "Demo int4: First token 53.1 ms, Answer speed 806 tok/s" in words
