"""Take pictures of all six pages, light and dark, of the real window with the real starter model.

    python packaging/screenshots.py OUT [--runs FOLDER] [--size 1240x820] [--only models,quantize]

Works without a screen (QT_QPA_PLATFORM=offscreen) and under Xvfb. `--runs` is a folder with finished runs, which the
Run, Compare and Chat pages then show; the folder is not changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication


def main() -> int:
    """Take the pictures. Returns the exit status."""
    options = _parse()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory(prefix="quantstudio-pictures-") as home:
        os.environ["QUANTSTUDIO_HOME"] = home
        if options.runs:
            shutil.copytree(options.runs, Path(home) / "runs", symlinks=True)
        options.out.mkdir(parents=True, exist_ok=True)
        for theme in ("light", "dark"):
            _take_all(options, theme)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Take pictures of the window's pages.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--models", default="", help="a folder of models to show beside the starter model")
    parser.add_argument("--size", default="1240x820")
    parser.add_argument("--only", default="models,quantize,run,compare,chat,settings")
    return parser.parse_args()


def _take_all(options: argparse.Namespace, theme: str) -> None:
    from quantstudio.core.run_state import Status
    from quantstudio.core.run_store import list_runs
    from quantstudio.core.settings import Settings
    from quantstudio.gui.app import make_application, make_context
    from quantstudio.gui.main_window import MainWindow
    from quantstudio.gui.pages.catalogue import PageId

    app = make_application()
    settings = Settings(theme=theme, model_folders=(options.models,) if options.models else ())
    context = make_context(app, settings)
    window = MainWindow(context)
    width, height = (int(part) for part in options.size.split("x"))
    window.resize(width, height)
    window.show()
    context.library.refresh(settings)
    done = [run.id for run in list_runs(settings.runs_path) if run.status is Status.DONE]
    for name in options.only.split(","):
        page = PageId(name)
        window.show_page(page)
        if page is PageId.RUN and done:
            context.open_run(done[0])
        if page is PageId.COMPARE and done:
            context.open_compare(done)
        _settle(app, 2.5 if page in (PageId.COMPARE, PageId.CHAT) else 1.2)
        window.grab().save(str(options.out / f"{name}-{theme}.png"))
    window.close()
    window.deleteLater()
    _settle(app, 0.1)


def _settle(app: QApplication, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        app.processEvents()
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
