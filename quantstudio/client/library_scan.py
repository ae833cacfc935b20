"""Looks for models without holding up the window: a slow disk or a network folder may take seconds."""

from __future__ import annotations

from contextlib import suppress

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal

from quantstudio.core.errors import QuantStudioError
from quantstudio.core.library import FoundModel, list_models
from quantstudio.core.settings import Settings


class _Carrier(QObject):
    """Brings a scan's result from its thread to the window's."""

    done = Signal(int, object, str)


class _Scan(QRunnable):
    def __init__(self, number: int, settings: Settings, carrier: _Carrier) -> None:
        super().__init__()
        self._number, self._settings, self._carrier = number, settings, carrier

    def run(self) -> None:
        models: list[FoundModel] = []
        problem = ""
        try:
            models = list_models(self._settings)
        except Exception as error:
            problem = f"The models could not be listed: {error}"
            if not isinstance(error, (OSError, QuantStudioError)):
                raise  # a mistake of ours
        finally:
            with suppress(RuntimeError):  # the window is gone: nobody wants to know
                self._carrier.done.emit(self._number, models, problem)


class LibraryScan(QObject):
    """The models found at the last look. `found` carries them (a list of FoundModel), `failed` a sentence."""

    started = Signal()
    found = Signal(object)
    failed = Signal(str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.models: list[FoundModel] = []
        self._number = 0
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(1)
        self._carrier = _Carrier(self)
        self._carrier.done.connect(self._on_done)

    @property
    def scanning(self) -> bool:
        """Whether a look is under way."""
        return self._pool.activeThreadCount() > 0

    def refresh(self, settings: Settings) -> None:
        """Look again. Of several looks in a row only the last one is reported."""
        self._number += 1
        self._pool.clear()
        self.started.emit()
        self._pool.start(_Scan(self._number, settings, self._carrier))

    def shutdown(self) -> None:
        """Wait until no thread is left. Call before the window is gone."""
        self._number += 1
        self._pool.clear()
        self._pool.waitForDone()

    def _on_done(self, number: int, models: list[FoundModel], problem: str) -> None:
        if number != self._number:
            return
        if problem:
            self.failed.emit(problem)
        else:
            self.models = models
            self.found.emit(models)
