"""The demo in the window: the same runs as in the terminal, and then their comparison and the path of its chart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from quantstudio.core.demo import demo_recipes
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.run_state import Status
from quantstudio.core.run_store import read_result
from quantstudio.gui.background import Latest
from quantstudio.gui.context import AppContext

CHART = "comparison.png"


def start_demo(context: AppContext, say: Callable[[str], None]) -> list[str]:
    """Line up the demo's runs, show the first, and compare them all when the last one is done. Their ids.

    `say` shows a sentence in the window: in the end, where the chart is.
    """
    home = context.settings.runs_path
    run_ids = [context.queue.add(recipe, home) for recipe in demo_recipes()]
    context.open_run(run_ids[0])
    drawing = Latest(context)
    drawing.found.connect(say)
    context.closing.connect(drawing.wait)

    def compare_when_done(run_id: str) -> None:
        states = [context.queue.state(each) for each in run_ids]
        if run_id in run_ids and all(state and state.status is Status.DONE for state in states):
            context.open_compare(run_ids)
            drawing.ask(lambda: _save_chart([home / each for each in run_ids]))

    context.queue.finished.connect(compare_when_done)
    return run_ids


def _save_chart(runs: list[Path]) -> str:
    """Draw the comparison beside the last run's files. A sentence for the person; told on standard output too."""
    from quantstudio.core.figures import save_comparison

    path = runs[-1] / CHART
    try:
        save_comparison([read_result(run) for run in runs], path)
    except (QuantStudioError, OSError) as error:
        return f"The chart of the demo could not be written. {error}"
    sys.stdout.write(f"Chart: {path}\n")
    sys.stdout.flush()
    return f"The demo is done. Its chart: {path}"
