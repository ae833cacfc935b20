"""What every part of the recipe is made of: a frozen value that knows no other keys than its own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

ADVANCED: dict[str, Any] = {"advanced": True}
"""Marks a field that forms fold away."""


class Section(BaseModel):
    """A part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
