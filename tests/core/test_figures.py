"""Charts: drawn for one and many runs, in both colours, whatever the models are called."""

from xml.etree import ElementTree

import pytest

from quantstudio.core.comparison import compare
from quantstudio.core.figures import (
    Chart,
    ChartStyle,
    chart_figure,
    chart_pixels,
    has_data,
    save_chart,
    save_comparison,
)
from quantstudio.core.result import Sizes

DARK = ChartStyle(background="#1e2127", text="#e8eaef", muted="#a0a8b8", grid="#2d313a")


@pytest.fixture
def group(make_result):
    return compare([make_result("int4"), make_result("int8")])[0]


def bars(figure, panel=0):
    return [patch for patch in figure.axes[panel].patches if patch.get_height() == pytest.approx(0.62)]


def test_bars_show_the_measured_values(group):
    widths = [bar.get_width() for bar in bars(chart_figure(Chart.MEMORY, group))]
    assert widths == pytest.approx([512.0, 470.0, 470.0])
    latency = chart_figure(Chart.LATENCY, group)
    assert [bar.get_width() for bar in bars(latency, 1)][1:] == pytest.approx([806, 558])
    assert bars(latency, 0)[1].get_width() == pytest.approx(138 / 2.6)
    quality = chart_figure(Chart.QUALITY, group)
    assert [bar.get_width() for bar in bars(quality)] == pytest.approx([0, 5.3, 0.06])


def test_size_is_stacked_by_part(group):
    drawn = bars(chart_figure(Chart.SIZE, group))
    assert len(drawn) == 4 * 3
    ends = [max(bar.get_x() + bar.get_width() for bar in drawn[row::3]) for row in range(3)]
    assert ends == pytest.approx([row.sizes.total / 1e6 for row in group.rows])


@pytest.mark.parametrize(("inches", "named"), [(7.0, True), (2.6, False)])
def test_a_part_is_named_only_where_its_bar_is_wide_enough(group, inches, named, tmp_path):
    figure = chart_figure(Chart.SIZE, group, width=inches)
    figure.savefig(tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ("<!-- embedding -->" in drawn) is named
    assert "<!-- layers -->" in drawn


def test_the_models_are_named_once_where_memory_has_two_panels(make_result):
    result = make_result("int4")
    speeds = {
        name: getattr(result, name).model_copy(update={"peak_cuda": 10**9})
        for name in ("original_first", "original_last", "quantized")
    }
    figure = chart_figure(Chart.MEMORY, compare([result.model_copy(update=speeds)])[0])
    names = [[text.get_text() for text in axes.get_yticklabels()] for axes in figure.axes]
    assert names == [["Original", "Demo int4"], ["", ""]]


def test_whiskers_span_the_interval(group):
    (axes, _) = chart_figure(Chart.QUALITY, group).axes
    spans = [segment[:, 0] for line in axes.collections for segment in line.get_segments()]
    assert next((span.min(), span.max()) for span in spans) == pytest.approx((4.9, 5.7))


def test_the_scatter_names_its_points(group):
    (axes,) = chart_figure(Chart.TRADEOFF, group).axes
    assert {text.get_text() for text in axes.texts} == {"Original", "Demo int4", "Demo int8"}


def test_points_in_one_place_share_a_name(make_result):
    alike = [make_result("int4", run_id=str(number), name=f"Copy {number}") for number in range(3)]
    (axes,) = chart_figure(Chart.TRADEOFF, compare([*alike, make_result("int8")])[0]).axes
    assert {text.get_text() for text in axes.texts} == {"Original", "Copy 0 and 2 more", "Demo int8"}


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_charts_are_saved(group, tmp_path, suffix):
    for chart in Chart:
        path = tmp_path / f"{chart}{suffix}"
        save_chart(chart, group, path, DARK)
        head = path.read_bytes()[:64]
        assert head.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_names_from_strangers_are_drawn_as_text(make_result, tmp_path):
    name = "$\\frac{$ --> <script>模型" + "x" * 60
    group = compare([make_result(name=name)])[0]
    save_chart(Chart.MEMORY, group, tmp_path / "a.svg")
    tree = ElementTree.parse(tmp_path / "a.svg")  # noqa: S314 - our own file
    assert not [element for element in tree.iter() if element.tag.endswith("script")]


def test_all_charts_of_all_models_make_one_picture(make_result, tmp_path):
    results = [make_result("int4"), make_result("int4", run_id="b", model_name="other")]
    save_comparison(results, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 20_000


def test_saving_is_repeatable(group, tmp_path):
    for name in ("a.svg", "b.svg"):
        save_chart(Chart.SIZE, group, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_charts_without_data_are_known(make_result, tmp_path):
    bare = make_result(original_first=None, quantized=None, original_last=None, quality=None)
    assert [chart for chart in Chart if has_data(chart, compare([bare])[0])] == [Chart.SIZE]
    nothing = Sizes(embedding=0, layers=0, head=0, rest=0)
    empty = bare.quantization.model_copy(update={"sizes": nothing, "original_sizes": nothing})
    save_chart(Chart.SIZE, compare([bare.model_copy(update={"quantization": empty})])[0], tmp_path / "zero.png")


def test_charts_are_drawn_as_pixels_of_the_asked_size(group):
    pixels, width, height = chart_pixels(Chart.SIZE, group, DARK, (5.0, 2.5), 120.0)
    assert (width, height) == (600, 300)
    assert len(pixels) == 600 * 300 * 4
    assert pixels[:4] == bytes((0x1E, 0x21, 0x27, 0xFF)), "the theme's background"
