"""Reports: every number arrives, nothing that a stranger named can break out of its place."""

import base64
import csv
import io
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from quantstudio.core.report import comparison_csv, html_report, markdown_table, terminal_table

EVIL = "<script>alert(1)</script>\"'&--></style>|`$x^2$"


class Page(HTMLParser):
    """Collects tags, addresses and text as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words, self.handlers = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def both(make_result):
    return [make_result("int4"), make_result("int8")]


def test_the_terminal_table_lines_up_and_fits(both):
    table = terminal_table(both)
    lines = table.splitlines()
    assert lines[0] == "starter"
    ends = {len(line) for line in lines if line.startswith(("Size", "Answer speed", "Perplexity"))}
    assert len(ends) == 1, "numbers are flush on the right"
    assert max(len(line) for line in lines) <= 100
    assert "16.8 MB" in table
    assert "3.1× smaller" in table
    assert "2.6× faster" in table
    assert "+5.3 %" in table
    assert "within the noise" in table


def test_csv_holds_plain_numbers_for_every_row(both):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(both))))
    assert [row["scheme"] for row in rows] == ["Original", "W4A16 g128", "W8A16"]
    assert float(rows[1]["size"]) == 2_100_000 + 3_346_875 + 12_000
    assert float(rows[1]["decode_tps"]) == pytest.approx(806)
    assert float(rows[1]["decode_tps_low"]) < 806 < float(rows[1]["decode_tps_high"])
    assert float(rows[1]["size_ratio"]) == pytest.approx(5_458_875 / 16_812_000)
    assert float(rows[2]["change"]) == pytest.approx(0.0006)
    assert rows[0]["change"] == ""


def test_csv_cells_cannot_become_formulas(make_result):
    rows = list(csv.DictReader(io.StringIO(comparison_csv([make_result(model_name="=HYPERLINK(1)", name="@x")]))))
    assert rows[0]["original_model"] == "'=HYPERLINK(1)"
    assert rows[1]["name"] == "'@x"


def test_the_html_report_is_whole_and_reaches_for_nothing(both):
    page = Page(html_report(both))
    assert page.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert len(page.sources) == 5
    svg = base64.b64decode(page.sources[0].partition(",")[2])
    assert b"<svg" in svg
    text = " ".join(page.words)
    for words in ("2.6× faster", "+5.3 %", "The files are 3.1 times smaller.", "torch 2.13.0", "Example CPU"):
        assert words in text


def test_html_from_strangers_stays_text(make_result):
    found = make_result(model_name=EVIL, name=EVIL, verdict=(EVIL,))
    page = Page(html_report([found], title=EVIL))
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not page.handlers
    assert EVIL in "".join(page.words)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)


def test_markdown_from_strangers_keeps_its_table(make_result):
    table = markdown_table([make_result(model_name="a|b", name=EVIL)])
    head, rule, *rows = table.splitlines()[:4]
    assert "<script>" not in table
    cells = head.replace("\\|", "").count("|")
    assert all(line.replace("\\|", "").count("|") == cells for line in (rule, *rows))
    assert "Original" in head
    assert rows[0].startswith("| Size | 16.8 MB |")


def test_runs_without_measurements_make_a_report_too(make_result):
    bare = make_result(original_first=None, quantized=None, original_last=None, quality=None, verdict=())
    for write in (terminal_table, comparison_csv, markdown_table, html_report):
        assert "5.46" in write([bare]) or "5458875" in write([bare])


def test_tables_need_neither_matplotlib_nor_qt():
    code = "import sys, quantstudio.core.report; sys.exit(bool({'matplotlib', 'PySide6', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
