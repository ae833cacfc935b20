"""A contest's result as it lies in the folder of each run that took part."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from quantstudio.core.contest import CONTEST_FILE, CONTEST_VERSION, Contest
from quantstudio.core.errors import RunNotFound

_MAX_BYTES = 4 << 20


def has_contest(run: Path) -> bool:
    """Whether this run took part in a contest that came to its end."""
    return (run / CONTEST_FILE).is_file()


def read_contest(run: Path) -> Contest:
    """The contest in which a run took part. Raises RunNotFound when there is none or it cannot be read."""
    path, why = run / CONTEST_FILE, ""
    try:
        if path.stat().st_size > _MAX_BYTES:
            why = "Its file is too large to be one."
        else:
            contest = Contest.model_validate_json(path.read_bytes())
            why = "It was made by a newer version of QuantStudio." if contest.version > CONTEST_VERSION else ""
            if not why:
                return contest
    except OSError as error:
        why = f"{error.strerror or error}."
    except ValidationError:
        why = "Its file is damaged."
    raise RunNotFound(f"The comparison of {run.name} cannot be shown.", why=why, hint="Look for the best again.")
