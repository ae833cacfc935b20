"""Where the Hub is and how patient we are with it: read once from the environment, as the Hub's own client reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from quantstudio.core.disk import beside_of
from quantstudio.core.errors import RecipeError
from quantstudio.core.job_environment import is_offline
from quantstudio.core.paths import hub_cache

DEFAULT_ENDPOINT = "https://huggingface.co"
_MAX_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each thing may take, in seconds. Tests shorten it."""

    connect: float = 10.0
    """Until a connection stands."""
    silence: float = 20.0
    """Between two pieces of an answer: a connection that delivers nothing for so long counts as stalled."""
    first_pause: float = 1.0
    """Before the second attempt; doubled for each further one."""
    longest_pause: float = 30.0
    give_up: float = 120.0
    """Without a single byte of progress."""
    longest_wish: float = 300.0
    """The longest Retry-After that is waited for; the Hub's limits renew every five minutes."""


IN_A_HURRY = Patience(give_up=10.0)
"""For questions that a person waits for: better an early "cannot be reached" than one after two minutes."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The Hub as this process sees it. The token is kept out of `repr`, so that it appears in no log or traceback."""

    endpoint: str = DEFAULT_ENDPOINT
    cache: Path = field(default_factory=hub_cache)
    token: str = field(default="", repr=False)
    offline: bool = False
    patience: Patience = Patience()


def read_connection(patience: Patience | None = None) -> Connection:
    """The connection that the environment describes (HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN …).

    Raises RecipeError for an endpoint that is no address.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise RecipeError(
            "HF_ENDPOINT is no address of a Hub.",
            hint=f"Leave it empty for {DEFAULT_ENDPOINT}, or set it to an address that starts with https://.",
        )
    return Connection(
        endpoint=endpoint,
        cache=hub_cache(),
        token=read_token(),
        offline=is_offline(os.environ),
        patience=patience or Patience(),
    )


def token_file() -> Path:
    """Where the Hub's own client keeps the token of whoever is signed in."""
    if path := os.environ.get("HF_TOKEN_PATH"):
        return Path(path).expanduser()
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "token"


def read_token() -> str:
    """The token from HF_TOKEN or the library's own store; empty when nobody is signed in."""
    text = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not text.strip():
        try:
            with token_file().open("rb") as file:
                text = file.read(_MAX_TOKEN).decode("ascii", "replace")
        except OSError:
            return ""
    token = text.strip()
    return token if is_token(token) else ""


def is_token(text: str) -> bool:
    """Whether this can be a token; anything else would break out of the header line that it is sent in."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def save_token(token: str) -> None:
    """Keep a token where the Hub's own client looks for it, readable by this person alone. Raises OSError."""
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = beside_of(path)
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(token)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
