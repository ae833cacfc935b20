"""From the payload of `start` to the engine. Here, and not before, the engine and with it torch are imported."""

from __future__ import annotations

from typing import Any

from quantstudio.core.jobs import parse_job
from quantstudio.core.protocol import Message
from quantstudio.worker.session import Session


def perform(payload: dict[str, Any], session: Session) -> Message:
    """Carry out the job; its terminal message. Raises RecipeError for a payload that is no job."""
    job = parse_job(payload)
    from quantstudio.engine.conduct import conduct

    return conduct(job, session.sink, session.cancel, session.requests)
