"""The demo in the window: the same runs as in the terminal, and then their comparison."""

from __future__ import annotations

from quantstudio.core.demo import demo_recipes
from quantstudio.core.run_state import Status
from quantstudio.gui.context import AppContext


def start_demo(context: AppContext) -> list[str]:
    """Line up the demo's runs, show the first, and compare them all when the last one is done. Their ids."""
    run_ids = [context.queue.add(recipe, context.settings.runs_path) for recipe in demo_recipes()]
    context.open_run(run_ids[0])

    def compare_when_done(run_id: str) -> None:
        states = [context.queue.state(each) for each in run_ids]
        if run_id in run_ids and all(state and state.status is Status.DONE for state in states):
            context.open_compare(run_ids)

    context.queue.finished.connect(compare_when_done)
    return run_ids
