"""HTTP as the Hub needs it and as a stranger's server deserves it: one request, one answer, everything bounded.

Redirects are followed by hand, because the token must not follow one to another origin. Every answer can be cut off
from another thread, because a person who cancels must not wait for a server that says nothing.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPMessage
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from quantstudio import __version__
from quantstudio.core.errors import Cancelled, HubAnswerUnusable
from quantstudio.core.model_files import parse_json_object
from quantstudio.engine.hub.connection import Connection

MAX_REDIRECTS = 6
MAX_JSON_BYTES = 64 << 20
MAX_TEXT_BYTES = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
TransportError = (OSError, http.client.HTTPException)
"""What a broken connection raises: refused, reset, timed out, cut short, or no HTTP at all."""


class Status(Exception):
    """The Hub answered with an error status. `code` is the Hub's own word for it, such as `GatedRepo`."""

    def __init__(self, status: int, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (408, 425, 429) or self.status >= 500


class Answer:
    """A successful answer whose body is read piece by piece."""

    def __init__(self, response: http.client.HTTPResponse, cancel: threading.Event) -> None:
        self._response = response
        self._cancel = cancel
        self.status = response.status
        self.headers = response.headers

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes, empty at the end. Raises Cancelled and the errors of `TransportError`."""
        try:
            piece = self._response.read(limit)
        except TransportError:
            self._raise_if_cancelled()
            raise
        self._raise_if_cancelled()
        return piece

    def read_all(self, limit: int) -> bytes:
        """The whole body. Raises HubAnswerUnusable when it is longer than `limit` bytes."""
        parts, size = [], 0
        while piece := self.read(1 << 16):
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise HubAnswerUnusable(f"The Hub's answer is longer than {limit >> 10:,} kB.")
        return b"".join(parts)

    def _raise_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise Cancelled


@contextmanager
def request(
    connection: Connection, url: str, cancel: threading.Event, headers: Mapping[str, str] | None = None
) -> Iterator[Answer]:
    """GET `url`, following redirects; the token goes to the Hub's own origin only.

    Raises Status, Cancelled, HubAnswerUnusable (an endless or senseless redirect) and the errors of `TransportError`.
    """
    for _ in range(MAX_REDIRECTS):
        with _exchange(connection, url, cancel, headers or {}) as answer:
            if answer.status not in _REDIRECTS:
                if answer.status not in (200, 206):
                    raise _status(answer)
                yield answer
                return
            url = _next_address(connection, url, answer.headers.get("Location", ""))
    raise HubAnswerUnusable("The Hub sends us from one address to the next without end.")


def get_json(connection: Connection, url: str, cancel: threading.Event) -> tuple[Any, HTTPMessage]:
    """The JSON behind `url` and the headers of the answer. Raises as `request`, and HubAnswerUnusable for no JSON."""
    with request(connection, url, cancel, {"Accept": "application/json"}) as answer:
        raw = answer.read_all(MAX_JSON_BYTES)
        # Wrapped, so that the checks for depth and duplicate keys hold for lists as well.
        try:
            return parse_json_object(b'{"answer":' + raw + b"}", "the Hub's answer")["answer"], answer.headers
        except Exception as error:
            raise HubAnswerUnusable("The Hub's answer cannot be read.", why=_brief(error)) from error


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what decides whether two addresses belong to the same server."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), _port(parts)


@contextmanager
def _exchange(
    connection: Connection, url: str, cancel: threading.Event, headers: Mapping[str, str]
) -> Iterator[Answer]:
    line = _open(connection, url)
    done = threading.Event()
    try:
        line.connect()
        threading.Thread(target=_cut_when_cancelled, args=(line, cancel, done), daemon=True).start()
        if line.sock is not None:
            line.sock.settimeout(connection.patience.silence)
        login = line.login if isinstance(line, _ThroughProxy) else {}
        line.request("GET", _target(url, line), headers=_headers(connection, url, headers) | login)
        yield Answer(line.getresponse(), cancel)
    except TransportError:
        if cancel.is_set():
            raise Cancelled from None
        raise
    finally:
        done.set()
        line.close()


def _cut_when_cancelled(line: http.client.HTTPConnection, cancel: threading.Event, done: threading.Event) -> None:
    """Shut the socket down when the person cancels: a thread that waits in `recv` then returns at once."""
    socket = line.sock
    while not done.wait(0.2):
        if cancel.is_set() and socket is not None:
            with suppress(OSError):  # it may be closed already, which is what was wanted
                socket.shutdown(2)
            return


def _open(connection: Connection, url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host, port = parts.hostname or "", _port(parts)
    timeout = connection.patience.connect
    proxy = _proxy(parts)
    if proxy is None:
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=timeout)
    where = proxy.hostname or "", _port(proxy)
    if parts.scheme == "https":
        line = http.client.HTTPSConnection(*where, timeout=timeout, context=ssl.create_default_context())
        line.set_tunnel(host, port, headers=_proxy_login(proxy))
        return line
    return _ThroughProxy(*where, timeout=timeout, login=_proxy_login(proxy))


class _ThroughProxy(http.client.HTTPConnection):
    """A connection to a proxy for plain http, which wants whole addresses instead of paths."""

    def __init__(self, host: str, port: int, *, timeout: float, login: dict[str, str]) -> None:
        super().__init__(host, port, timeout=timeout)
        self.login = login


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment or the system names for this address (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)."""
    found = urllib.request.getproxies()
    address = found.get(parts.scheme) or found.get("all")
    if not address or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = urlsplit(address if "://" in address else f"http://{address}")
    return proxy if proxy.scheme in ("http", "https") and proxy.hostname else None


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode("ascii")}


def _target(url: str, line: http.client.HTTPConnection) -> str:
    parts = urlsplit(url)
    if isinstance(line, _ThroughProxy):
        return parts._replace(fragment="").geturl()
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _headers(connection: Connection, url: str, extra: Mapping[str, str]) -> dict[str, str]:
    # identity: a compressed body could be far larger than it says, and ranges of it would mean nothing.
    headers = {"User-Agent": f"quantstudio/{__version__}", "Accept-Encoding": "identity", **extra}
    if connection.token and origin(url) == origin(connection.endpoint):
        headers["Authorization"] = f"Bearer {connection.token}"
    return headers


def _next_address(connection: Connection, url: str, location: str) -> str:
    address = urljoin(url, location)
    parts = urlsplit(address)
    secure = urlsplit(connection.endpoint).scheme == "https"
    if not location or parts.scheme not in _PORTS or not parts.hostname or (secure and parts.scheme != "https"):
        raise HubAnswerUnusable("The Hub sends us to an address that is none, or that is not encrypted.")
    if any(ord(character) <= 32 or ord(character) > 126 for character in address):
        raise HubAnswerUnusable("The Hub sends us to an address with forbidden characters.")
    return address


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise HubAnswerUnusable("The Hub sends us to an address with an impossible port.") from error


def _status(answer: Answer) -> Status:
    code = answer.headers.get("X-Error-Code", "")
    return Status(answer.status, code if code.isalnum() else "", _retry_after(answer.headers.get("Retry-After", "")))


def _retry_after(text: str) -> float | None:
    """Seconds from a Retry-After header; dates are not understood, as the Hub sends numbers."""
    text = text.strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 8 else None


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
