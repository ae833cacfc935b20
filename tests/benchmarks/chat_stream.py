"""Whether the chat takes a fast model's text without a jerk, and how soon it feels when an answer is stopped.

    python tests/benchmarks/chat_stream.py [--rate 200] [--seconds 10] [--stops 10] [--history 20] [--model starter]

The page of the window, over a real process that writes at a fixed rate; with `--model`, stops are also timed over a
real worker that runs that model. A frame is the time between two turns of the window's event loop, which a timer of
1 ms keeps busy. Offscreen where there is no display. The aim: no frame over 50 ms, stops within 100 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from quantstudio.client.chat_client import ChatClient
from quantstudio.client.library_scan import LibraryScan
from quantstudio.client.run_queue import RunQueue
from quantstudio.core.conversation import Turn
from quantstudio.core.settings import load_settings
from quantstudio.gui.context import AppContext
from quantstudio.gui.pages.chat_page import ChatPage
from quantstudio.gui.tokens import LIGHT

FAKE_WORKER = Path(__file__).parents[1] / "fakeworker.py"
FRAME_MS, STOP_MS = 50, 100
STOP_AFTER_S = 1.0


def main() -> None:
    """Print frames and stops as a table."""
    options = _options()
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory() as home:
        os.environ["QUANTSTUDIO_HOME"] = home
        app = QApplication([])
        context = AppContext(load_settings(), RunQueue(), LibraryScan(), LIGHT)
        fake = _page(context, [sys.executable, "-I", str(FAKE_WORKER), "chat"], options.history)
        print("| | median | 99 % | longest | over the aim |\n| --- | --- | --- | --- | --- |")
        frames = _frames(fake, options.rate, options.rate * options.seconds)
        print(_row(f"frame at {options.rate} tokens/s, ms", frames, FRAME_MS))
        print(_row("stop of a steady stream, ms", _stops(fake, f"flow {options.rate} 1000000", options.stops), STOP_MS))
        fake.client.close()
        if options.model:
            real = _page(context, None, 0)
            real.show_model(options.model)
            stops = _stops(real, "Tell me a long story about the sea.", options.stops)
            print(_row(f"stop of {options.model}, ms", stops, STOP_MS))
            real.client.close()
        context.closing.emit()
        context.library.shutdown()
        _run(lambda: False, 0.2)
        del app


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--history", type=int, default=20, help="earlier turns of 400 words on the page")
    parser.add_argument("--model", default="", help="time stops with this model, too")
    return parser.parse_args()


def _page(context: AppContext, command: list[str] | None, history: int) -> ChatPage:
    page = ChatPage(context, ChatClient(command=command))
    page.options.set_template(on=True)
    page.resize(1000, 800)
    page.show()
    for number in range(history):
        page.conversation.turns.append(Turn(role="assistant" if number % 2 else "user", content="word and " * 200))
    page.view.show_turns(page.conversation.turns)
    return page


def _frames(page: ChatPage, rate: int, count: int) -> list[float]:
    """Milliseconds between two turns of the event loop while an answer of `count` tokens comes."""
    ticks: list[float] = []
    timer = QTimer()
    timer.setInterval(1)
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    page.send(f"flow {rate} {count}")
    _run(lambda: bool(page._answer))
    timer.start()
    _run(lambda: page._answer is None, 60 + 2 * count / rate)
    timer.stop()
    return [1000 * (after - before) for before, after in pairwise(ticks)]


def _stops(page: ChatPage, text: str, count: int) -> list[float]:
    """Milliseconds from stopping an answer until the page can be written to again."""
    found = []
    while len(found) < count:
        page.send(text)
        _run(lambda: bool(page._answer) or page._answer is None)
        wait = time.perf_counter() + STOP_AFTER_S
        _run(lambda wait=wait: time.perf_counter() > wait or page._answer is None)
        if page._answer is None:  # it ended by itself
            continue
        started = time.perf_counter()
        page.stop()
        _run(lambda: page._answer is None)
        found.append(1000 * (time.perf_counter() - started))
    return found


def _run(done: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Turn the event loop until `done`, or for so long."""
    end = time.perf_counter() + limit_s
    while not done() and time.perf_counter() < end:
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 1)


def _row(name: str, values: list[float], aim: float) -> str:
    values = sorted(values)
    high = values[min(len(values) - 1, int(0.99 * len(values)))]
    over = sum(value > aim for value in values)
    cells = f"{statistics.median(values):.1f} | {high:.1f} | {values[-1]:.1f} | {over} of {len(values)} over {aim:g}"
    return f"| {name} | {cells} |"


if __name__ == "__main__":
    main()
