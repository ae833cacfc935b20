"""`demo`: the main job on the starter model, from quantizing to the comparison, in one command."""

from __future__ import annotations

import argparse
import time

from quantstudio.cli.run import FAILED, INTERRUPTED, OK, conduct_recipe, runs_folder
from quantstudio.cli.terminal import print_error
from quantstudio.core import protocol
from quantstudio.core.demo import demo_recipes
from quantstudio.core.humanize import human_seconds
from quantstudio.core.result import RunResult
from quantstudio.core.run_store import run_title


def demo(options: argparse.Namespace) -> int:
    """Quantize the starter model twice, measure, and end with the table and the path of the chart."""
    started = time.monotonic()
    home = runs_folder(options)
    results: list[RunResult] = []
    for recipe in demo_recipes():
        print(f"\n{run_title(recipe)}")
        message = conduct_recipe(recipe, home)
        if isinstance(message, protocol.Error):
            print_error(message)
            return FAILED
        if not isinstance(message, protocol.Result):
            return INTERRUPTED
        results.append(RunResult.model_validate(message.data))
    from quantstudio.core.figures import save_comparison
    from quantstudio.core.report import terminal_table

    print(f"\n{terminal_table(results)}\n")
    for result in results:
        print(f"{result.quantization.label}:")
        print("\n".join(f"  • {sentence}" for sentence in result.verdict))
    chart = home / results[-1].run_id / "comparison.png"
    save_comparison(results, chart)
    print(f"\nDone in {human_seconds(time.monotonic() - started)}.\nChart: {chart}\nModels: {home}")
    return OK
