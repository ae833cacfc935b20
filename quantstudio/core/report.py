"""A comparison written down: for the terminal, for a spreadsheet, for a README, and as one HTML file.

Names of models and runs, and the texts in them, may come from strangers. HTML escapes every one and forbids scripts
by its own content policy; charts are embedded as pictures, which cannot run anything; CSV cells that a spreadsheet
would take for a formula are defused.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from string import Template

from quantstudio.core.comparison import QUALITY_COLUMNS, Cell, Column, Comparison, Row, compare
from quantstudio.core.result import RunResult

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def terminal_table(results: Sequence[RunResult]) -> str:
    """The comparison for a terminal: one column for the original and each run, one line for each quantity."""
    return "\n\n".join(_terminal_group(group) for group in compare(results))


def _terminal_group(group: Comparison) -> str:
    heads = [_short_name(row) for row in group.rows]
    lines = [["", *heads]]
    for column in group.columns:
        cells = [row.cells[column.id] for row in group.rows]
        lines.append([column.title, *(cell.text + ("*" if cell.uncertain else "") for cell in cells)])
        if any(cell.detail for cell in cells):
            lines.append(["", *(cell.detail for cell in cells)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    body = [
        "  ".join(text.ljust(width) if place == 0 else text.rjust(width) for place, (text, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    rule = "─" * len(body[0])
    foot = [group.conditions, *group.notes]
    if _any_uncertain(group):
        foot.append("* The difference to the original is within the noise.")
    wrapped = [part for text in foot for part in textwrap.wrap(text, max(60, len(rule)))]
    return "\n".join(line.rstrip() for line in (group.model_name, body[0], rule, *body[1:], rule, *wrapped))


def markdown_table(results: Sequence[RunResult]) -> str:
    """The comparison as GitHub-flavoured Markdown, the models side by side."""
    parts = []
    for group in compare(results):
        head = "| " + " | ".join(["", *(_markdown(_full_name(row)) for row in group.rows)]) + " |"
        rule = "| --- |" + " ---: |" * len(group.rows)
        lines = [_markdown_line(column, group.rows) for column in group.columns]
        foot = [*group.notes, *(["\\* within the noise."] if _any_uncertain(group) else [])]
        parts.append("\n".join([head, rule, *lines, "", _markdown(group.conditions), *map(_markdown, foot)]))
    return "\n\n".join(parts) + "\n"


def _markdown_line(column: Column, rows: Sequence[Row]) -> str:
    return "| " + " | ".join([column.title, *(_markdown_cell(row.cells[column.id]) for row in rows)]) + " |"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return text + ("\\*" if cell.uncertain else "") + (f" ({cell.detail})" if cell.detail else "")


def _markdown(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("`", "\\`").replace("\n", " ")


def comparison_csv(results: Sequence[RunResult]) -> str:
    """The comparison as CSV with plain numbers: bytes, seconds, tokens per second; one line for each model.

    Every quantity has its value, the low and high end of its spread or interval where there is one, and its ratio to
    the original where that says something.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    groups = compare(results)
    columns = _all_columns(groups)
    heads = [name for column in columns for name in _csv_heads(column)]
    writer.writerow(["original_model", "run", "name", "scheme", *heads])
    for group in groups:
        for row in group.rows:
            values = [value for column in columns for value in _csv_values(row.cells[column.id], column)]
            writer.writerow([*map(_defused, (group.model_name, row.run_id, row.name, row.label)), *values])
    return out.getvalue()


def _all_columns(groups: Sequence[Comparison]) -> list[Column]:
    found: dict[str, Column] = {}
    for group in groups:
        found |= {column.id: column for column in group.columns}
    return list(found.values())


def _csv_heads(column: Column) -> list[str]:
    heads = [column.id]
    if column.id in QUALITY_COLUMNS or column.id in ("ttft", "prompt_tps", "decode_tps"):
        heads += [f"{column.id}_low", f"{column.id}_high"]
    return heads + ([f"{column.id}_ratio"] if column.words[0] else [])


def _csv_values(cell: Cell, column: Column) -> list[str]:
    values = {column.id: cell.value, "low": cell.low, "high": cell.high, "ratio": cell.ratio}
    return [_number(values[head.removeprefix(f"{column.id}_")]) for head in _csv_heads(column)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _defused(text: str) -> str:
    """A spreadsheet runs cells that start like a formula; an apostrophe makes them text."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def html_report(results: Sequence[RunResult], *, title: str = "QuantStudio comparison") -> str:
    """One HTML file without scripts or outside references: tables, verdicts, charts, machine and versions."""
    groups = compare(results)
    sections = "\n".join(_html_group(group) for group in groups)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return _PAGE.substitute(
        title=escape(title), style=_STYLE, sections=sections, environments=_html_environments(results), made=made
    )


def _html_group(group: Comparison) -> str:
    head = "".join(_html_model(row) for row in group.rows)
    rows = "\n".join(_html_line(column, group.rows) for column in group.columns)
    verdicts = "\n".join(_html_verdict(row) for row in group.runs if row.verdict)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in group.notes)
    legend = "Green marks the best value, unless noise hides which that is."
    if _any_uncertain(group):
        legend += " ≈ means within the noise: the difference to the original may be chance."
    return (
        f"<section><h2>{escape(group.model_name)}</h2>\n{notes}{verdicts}\n"
        f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead>\n<tbody>{rows}</tbody>'
        f'</table></div>\n<p class="small">{escape(group.conditions)} '
        f"Ratios are against the original as measured in the same run. {legend}</p>\n{_html_charts(group)}</section>"
    )


def _html_model(row: Row) -> str:
    name, below = ("Original", "") if row.is_original else (row.name, f"<small>{escape(row.label)}</small>")
    return f'<th scope="col">{escape(name)}{below}</th>'


def _html_line(column: Column, rows: Sequence[Row]) -> str:
    cells = "".join(_html_cell(row.cells[column.id]) for row in rows)
    return f'<tr><th scope="row" title="{escape(column.help)}">{escape(column.title)}</th>{cells}</tr>'


def _html_cell(cell: Cell) -> str:
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    mark = ' <abbr title="within the noise">≈</abbr>' if cell.uncertain else ""
    return f"<td{' class=best' if cell.best else ''}>{escape(cell.text)}{mark}{detail}</td>"


def _html_verdict(row: Row) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in row.verdict)
    return f"<h3>{escape(row.name)}</h3><ul>{sentences}</ul>"


def _html_charts(group: Comparison) -> str:
    from quantstudio.core.figures import Chart, chart_svg, has_data

    figures = []
    for chart in Chart:
        if has_data(chart, group):
            source = chart_svg(chart, group)
            figures.append(f'<figure><img alt="{escape(chart.words)}" src="{source}"></figure>')
    return f'<div class="charts">{"".join(figures)}</div>'


def _html_environments(results: Sequence[RunResult]) -> str:
    seen: dict[str, None] = {}
    for result in results:
        machine = result.environment
        versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
        facts = [machine.cpu, f"{machine.cores} cores", machine.gpu, machine.os, versions]
        seen["; ".join(fact for fact in facts if fact)] = None
    return "".join(f"<p>{escape(text)}</p>" for text in seen)


def _any_uncertain(group: Comparison) -> bool:
    return any(cell.uncertain for row in group.rows for cell in row.cells.values())


def _full_name(row: Row) -> str:
    return "Original" if row.is_original else f"{row.name} ({row.label})" if row.label not in row.name else row.name


def _short_name(row: Row) -> str:
    return textwrap.shorten(_full_name(row), 30, placeholder="…") if " " in _full_name(row) else _full_name(row)[:30]


_STYLE = """
:root { color-scheme: light dark; --text: #1a1d24; --muted: #596273; --line: #e1e4ea; --back: #ffffff;
  --best: #e2f4e9; --warn: #fdf1d8; }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaef; --muted: #a0a8b8; --line: #2d313a; --back: #16181d;
  --best: #17301f; --warn: #362a10; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin-bottom: .25rem; }
ul { margin-top: 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: 60%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th:first-child { text-align: left; } tbody th { color: var(--muted); font-weight: 400; }
td small, th small { display: block; color: var(--muted); font-weight: 400; }
td.best { background: var(--best); } .note { background: var(--warn); padding: .5rem .75rem; border-radius: .4rem; }
.small, footer { color: var(--muted); font-size: .87rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .6rem; background: #ffffff; padding: .5rem; }
img { width: 100%; } abbr { text-decoration: none; color: var(--muted); }
""".strip()

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$sections
<footer><h3>Measured on</h3>$environments<p>Made by QuantStudio, $made.</p></footer>
</body>
</html>
""")
