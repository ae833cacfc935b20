"""Trying again, politely: after broken connections, errors that pass, and as long as the Hub asks us to wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from quantstudio.core.errors import AccessNeeded, HubRefused, HubUnreachable, QuantStudioError
from quantstudio.core.humanize import human_seconds
from quantstudio.engine.hub.connection import Connection
from quantstudio.engine.hub.http import Status, TransportError
from quantstudio.engine.reporter import Reporter

T = TypeVar("T")
Waiting = Callable[[str], None]
"""Told in words what failed and when it is tried again."""


class Persistence:
    """Counts failures of one transfer; `progressed` starts the count anew."""

    def __init__(self, connection: Connection, reporter: Reporter, waiting: Waiting | None = None) -> None:
        self._connection = connection
        self._reporter = reporter
        self._waiting = waiting or (lambda _text: None)
        self.progressed()

    def progressed(self) -> None:
        """Something arrived: patience and pauses start anew."""
        self._failures = 0
        self._since = time.monotonic()

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt. Raises an error in words when there shall be none, and Cancelled."""
        patience = self._connection.patience
        pause = min(patience.longest_pause, patience.first_pause * 2**self._failures)
        # Half of it at random, so that many clients of a Hub that comes back do not all come at once.
        pause *= 0.75 + random.random() / 2  # noqa: S311 - no secret
        if isinstance(error, Status):
            if not error.passing:
                raise error
            if error.retry_after is not None:
                pause = error.retry_after
                if pause > patience.longest_wish:
                    raise _too_long(pause) from error
                self._since = max(self._since, time.monotonic() + pause - patience.give_up / 2)
        if time.monotonic() + pause - self._since > patience.give_up:
            raise unreachable(self._connection, error) from error
        self._failures += 1
        self._waiting(f"{reason(error)} Trying again in {human_seconds(max(1, round(pause)))}.")
        if self._reporter.cancel.wait(pause):
            self._reporter.check_cancel()


def persistently(connection: Connection, reporter: Reporter, what: Callable[[], T]) -> T:
    """Do `what`, again and again while only the network is to blame. Raises as `Persistence.failed`."""
    tries = Persistence(connection, reporter)
    while True:
        try:
            return what()
        except (Status, *TransportError) as error:
            tries.failed(error)


def reason(error: Exception) -> str:
    """What went wrong with a connection, as a sentence."""
    match error:
        case Status(status=429):
            return "The Hub asks us to slow down."
        case Status(status=status):
            return f"The Hub has a problem of its own (error {status})."
        case TimeoutError():
            return "Nothing came for a while."
        case ConnectionRefusedError():
            return "The Hub refuses the connection."
        case ConnectionError():
            return "The connection broke off."
        case OSError() if error.errno is None or error.errno < 0:
            return "The Hub's address was not found, or its certificate is not valid."
        case _:
            return "The connection broke off."


def unreachable(connection: Connection, error: Exception) -> HubUnreachable:
    """The error for giving up."""
    return HubUnreachable(
        f"The Hub ({connection.endpoint}) cannot be reached.",
        why=reason(error),
        hint="Check the network, and the proxy if there is one, then try again. What was fetched is kept.",
    )


def refusal(status: Status, model: str, connection: Connection) -> QuantStudioError:
    """What an error status that does not pass means for a person who wants `model`."""
    page = f"{connection.endpoint}/{model}"
    signed_in = bool(connection.token)
    if status.code == "GatedRepo" or status.status == 403:
        return AccessNeeded(
            f"{model} must be asked for before it can be downloaded.",
            why="Its authors want its licence accepted first."
            + ("" if signed_in else " Nobody is signed in to the Hub on this machine."),
            hint=f"Open {page} in the browser and accept the licence"
            + ("; some authors answer by hand." if signed_in else ", then sign in here (quantstudio login)."),
            field="model.id",
        )
    if status.code == "RevisionNotFound":
        return HubRefused(f"{model} has no such revision.", hint="Leave the revision empty.", field="model.revision")
    if status.status == 401 and signed_in and status.code != "RepoNotFound":
        return AccessNeeded(
            "The Hub does not accept the token that is signed in here.",
            why="It may have expired or been revoked.",
            hint="Sign in again (quantstudio login).",
        )
    if status.status in (401, 404):
        return HubRefused(
            f"There is no model {model} on the Hub, or it is private.",
            hint="Check the name."
            + ("" if signed_in else " If it is a private one, sign in first (quantstudio login)."),
            field="model.id",
        )
    return HubRefused(f"The Hub refuses this request (error {status.status}).", hint="Try again later.")


def _too_long(pause: float) -> HubUnreachable:
    return HubUnreachable(
        "The Hub asks us to come back later.",
        why=f"Too many requests came from here; it wants a pause of {human_seconds(pause)}.",
        hint="Try again after that. What was fetched is kept.",
    )
