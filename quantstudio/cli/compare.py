"""`runs`: the history as a table, and finished runs side by side."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from quantstudio.cli.run import runs_folder
from quantstudio.core.errors import RunNotFound
from quantstudio.core.humanize import human_bytes, human_seconds
from quantstudio.core.run_store import RunHeader, list_runs, read_result


def runs(options: argparse.Namespace) -> int:
    """List all runs, or compare the ones named."""
    headers = list_runs(runs_folder(options))
    if not options.run and not (options.html or options.csv):
        _print_list(headers)
        return 0
    chosen = [_find(headers, text) for text in options.run] or [h for h in headers if h.status == "done"]
    results = [read_result(header.path) for header in chosen]
    if not results:
        raise RunNotFound("There is no finished run to compare.", hint="Try: quantstudio demo")
    from quantstudio.core.report import comparison_csv, html_report, terminal_table

    print(terminal_table(results))
    if options.csv:
        options.csv.write_text(comparison_csv(results), encoding="utf-8")
        print(f"CSV written to {options.csv}")
    if options.html:
        options.html.write_text(html_report(results), encoding="utf-8")
        print(f"Report written to {options.html}")
    return 0


def _print_list(headers: list[RunHeader]) -> None:
    if not headers:
        print("No runs yet. Try: quantstudio demo")
    for header in headers:
        when = datetime.fromtimestamp(header.created, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        sizes = f"{human_bytes(header.original_bytes)} → {human_bytes(header.quantized_bytes)}"
        took = human_seconds(header.seconds) if header.seconds else ""
        print(f"{header.id}\n  {when}  {header.status}  {took}  {sizes if header.quantized_bytes else ''}".rstrip())
        if header.summary:
            print(f"  {header.summary}")


def _find(headers: list[RunHeader], text: str) -> RunHeader:
    exact = [header for header in headers if header.id == text]
    found = exact or [header for header in headers if header.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    why = "No run's id starts with it." if not found else "More than one run's id starts with it."
    raise RunNotFound(f"There is no single run {text!r}.", why=why, hint="See: quantstudio runs")
