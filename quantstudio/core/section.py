"""What recipes, jobs and answers of the Hub are made of: frozen values that know no other keys than their own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

ADVANCED: dict[str, Any] = {"advanced": True}
"""Marks a field that forms fold away."""


class Plain(BaseModel):
    """A frozen value. Built when first used: building them all took a fifth of the window's start, which needs few."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Section(Plain):
    """A part of the recipe."""
