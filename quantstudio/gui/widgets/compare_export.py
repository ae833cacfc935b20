"""Taking a comparison along: as a picture, a table or a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantstudio.core.disk import disk_problem
from quantstudio.core.errors import DiskProblem
from quantstudio.core.figures import ChartStyle, save_comparison
from quantstudio.core.report import comparison_csv, html_report
from quantstudio.core.result import RunResult


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A file format: its suffix and the words of its menu entry."""

    suffix: str
    title: str
    help: str
    filter: str


FORMATS = (
    ExportFormat("html", "Report (HTML)…", "Tables, charts and verdicts in one file.", "HTML report (*.html)"),
    ExportFormat("png", "Charts as PNG…", "All charts as one picture.", "PNG picture (*.png)"),
    ExportFormat("svg", "Charts as SVG…", "All charts as one drawing that can be enlarged.", "SVG drawing (*.svg)"),
    ExportFormat("csv", "Table as CSV…", "Plain numbers for a spreadsheet.", "CSV table (*.csv)"),
)


def with_suffix(path: Path, suffix: str) -> Path:
    """The path as the person meant it: with the format's ending even when they left it out."""
    return path if path.suffix.lower() == f".{suffix}" else path.with_name(f"{path.name}.{suffix}")


def export(results: Sequence[RunResult], path: Path, style: ChartStyle | None = None) -> None:
    """Write the comparison; the path's suffix decides the format. Any thread. Raises DiskProblem.

    Pictures and reports are drawn in light colours whatever the window's theme: they end up on paper and in mails.
    """
    try:
        match path.suffix.lower():
            case ".html":
                path.write_text(html_report(results), encoding="utf-8")
            case ".csv":
                path.write_text(comparison_csv(results), encoding="utf-8", newline="")
            case _:
                save_comparison(results, path, style)
    except OSError as error:
        raise disk_problem(error) or DiskProblem(
            f"The file {path} cannot be written.", why=f"{error.strerror or error}.", hint="Choose another folder."
        ) from error
