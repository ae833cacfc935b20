"""Take pictures of all six pages, light and dark, of the real window with the real starter model.

    python packaging/screenshots.py OUT [--runs FOLDER] [--size 1240x820] [--only models,quantize] [--say TEXT]
        [--hub URL]

Works without a screen (QT_QPA_PLATFORM=offscreen) and under Xvfb; QT_SCALE_FACTOR=2 with half the size gives a dense
screen. `--runs` is a folder with finished runs, which the Run, Compare and Chat pages then show; it is copied first.
`--hub` is the address of a Hub (`python tests/fakehub.py FOLDER` serves one); then `find`, `hub-about`, `hub-fit`,
`hub-layers`, `hub-files`, `downloads` and `library` may be asked for too. With `--say` the model of the first finished
run is really asked, and the picture taken when it has answered. `method`, `data`, `bits` (really measured), `training`
and `contest` (of the first runs that trained, or took part in one) are the rest that may be asked for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication, QWidget

    from quantstudio.core.hub import ModelSummary
    from quantstudio.gui.main_window import MainWindow
    from quantstudio.gui.pages.chat_page import ChatPage
    from quantstudio.gui.pages.models_page import ModelsPage
    from quantstudio.gui.pages.quantize_page import QuantizePage
    from quantstudio.gui.pages.run_page import RunPage

SETTLE_S, CHARTS_S, ANSWER_S, HUB_S, MEASURE_S = 1.5, 4.0, 180.0, 30.0, 600.0
HUB_PAGES = ("find", "hub-about", "hub-fit", "hub-layers", "hub-files", "downloads", "library")
QUALITY_PAGES = ("method", "data", "bits", "training", "contest")


def main() -> int:
    """Take the pictures. Returns the exit status."""
    options = _parse()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory(prefix="quantstudio-pictures-") as home:
        os.environ["QUANTSTUDIO_HOME"] = home
        if options.hub:
            os.environ |= {"HF_ENDPOINT": options.hub, "HF_HOME": str(Path(home) / "hf")}
        if options.runs:
            shutil.copytree(options.runs, Path(home) / "runs", symlinks=True)
        options.out.mkdir(parents=True, exist_ok=True)
        for theme in ("light", "dark"):
            _take_all(options, theme)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Take pictures of the window's pages.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=None, help="a folder with finished runs")
    parser.add_argument("--models", default="", help="a folder of models to show beside the starter model")
    parser.add_argument("--hub", default="", help="address of a Hub, for the pages that need one")
    parser.add_argument("--size", default="1240x820", help="of the window, in device-independent pixels")
    parser.add_argument("--only", default="models,quantize,run,compare,chat,settings")
    parser.add_argument("--say", default="", help="what to ask the model on the Chat page")
    return parser.parse_args()


def _take_all(options: argparse.Namespace, theme: str) -> None:
    from PySide6.QtCore import QTimer

    from quantstudio.core.settings import Settings
    from quantstudio.gui.app import make_application, make_context
    from quantstudio.gui.main_window import MainWindow
    from quantstudio.gui.pages.catalogue import PageId

    app = make_application()
    settings = Settings(theme=theme, model_folders=(options.models,) if options.models else ())
    window = MainWindow(make_context(app, settings))
    width, height = (int(part) for part in options.size.split("x"))
    window.resize(width, height)
    window.show()
    window.context.library.refresh(settings)
    for name in options.only.split(","):
        shown: QWidget | None = window
        if name in HUB_PAGES:
            _prepare_hub(app, window, name)
        elif name in QUALITY_PAGES:
            shown = _prepare_quality(app, window, name)
        else:
            window.show_page(PageId(name))
            _prepare(app, window, PageId(name), options.say)
        if shown is None:
            sys.stderr.write(f"{name}: the runs have nothing to show\n")
            continue
        shown.grab().save(str(options.out / f"{name}-{theme}.png"))
    window.close()
    window.deleteLater()
    QTimer.singleShot(100, app.quit)
    app.exec()  # so that workers hear of the end


def _prepare(app: QApplication, window: MainWindow, page: str, say: str) -> None:
    """Give a page something to show, and the time to show it."""
    from quantstudio.core.run_state import Status
    from quantstudio.core.run_store import MODEL, list_runs

    done = [run for run in list_runs(window.context.settings.runs_path) if run.status is Status.DONE]
    if page == "run" and done:
        window.context.open_run(done[0].id)
    elif page == "compare" and done:
        window.context.open_compare([run.id for run in done])
        _wait(app, CHARTS_S)
    elif page == "chat" and done and say:
        window.context.open_chat(str(done[0].path / MODEL))
        chat, answers = cast("ChatPage", window.stack.currentWidget()), []
        chat.client.answered.connect(answers.append)
        _wait(app, SETTLE_S)
        chat.send(say)
        _wait(app, ANSWER_S, until=lambda: bool(answers))
    _wait(app, SETTLE_S)


def _prepare_hub(app: QApplication, window: MainWindow, name: str) -> None:
    """Bring a view of the Hub forward and wait for the Hub's answer. Downloads are those of its two smallest models."""
    from quantstudio.gui.pages.catalogue import PageId
    from quantstudio.gui.pages.models_page import Tab

    window.show_page(PageId.MODELS)
    page = cast("ModelsPage", window.stack.currentWidget())
    page.show_tab(Tab.FIND)
    find = page.find_view
    _wait(app, HUB_S, until=lambda: find.items.rowCount() > 0 and not find.call.busy)
    rows = sorted((find.items.index(row).data(256) for row in range(find.items.rowCount())), key=_size)
    if name.startswith("hub-"):
        find.open_model(rows[len(rows) // 2])
        _wait(app, HUB_S, until=lambda: find.model_view.details is not None)
        find.model_view.tabs.setCurrentIndex(HUB_PAGES.index(name) - 1)
    elif name in ("downloads", "library"):
        for row in rows[:3]:
            page.start_download(row.id)
        _wait(app, 2.0 if name == "downloads" else HUB_S, until=lambda: not window.context.downloads.downloads)
        page.show_tab(Tab.DOWNLOADS if name == "downloads" else Tab.LIBRARY)
    else:
        find._pages.setCurrentIndex(0)
    _wait(app, SETTLE_S)


def _prepare_quality(app: QApplication, window: MainWindow, name: str) -> QWidget | None:
    """What calibration, training and choosing bits look like; the dialog or window to photograph, None without one."""
    from quantstudio.core.contest_file import has_contest
    from quantstudio.core.run_store import METRICS, list_runs
    from quantstudio.gui.pages.catalogue import PageId

    runs = list_runs(window.context.settings.runs_path)
    if name in ("training", "contest"):
        trained = [run for run in runs if b"eval/perplexity" in _bytes(run.path / METRICS)]
        chosen = trained if name == "training" else [run for run in runs if has_contest(run.path)]
        if not chosen:
            return None
        window.context.open_run(chosen[0].id)
        page = cast("RunPage", window.stack.currentWidget())
        _wait(app, SETTLE_S)
        return page.open_contest() if name == "contest" else window
    window.show_page(PageId.QUANTIZE)
    form = cast("QuantizePage", window.stack.currentWidget())
    form.form.set_values({"method.kind": "qat"})
    _wait(app, SETTLE_S)
    tools = form.tools
    if name == "data":
        tools.open_preview()
        _wait(app, ANSWER_S, until=lambda: tools.last_preview is None or tools.last_preview.preview is not None)
    elif name == "bits":
        tools.open_bits()
        if tools.last_bits is not None:
            tools.last_bits.measure(busy=False)
        _wait(app, MEASURE_S, until=lambda: tools.last_bits is None or tools.last_bits.sensitivity is not None)
    _wait(app, SETTLE_S)
    return {"data": tools.last_preview, "bits": tools.last_bits}.get(name, window)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _size(row: ModelSummary) -> int:
    return row.download_bytes or 0


def _wait(app: QApplication, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        app.processEvents()
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
