"""What can be asked of the Hub: search, a model's description, its files, pieces of them, who is signed in."""

from __future__ import annotations

import re
from http.client import HTTPMessage
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urljoin, urlsplit

from quantstudio.core.errors import AccessNeeded, HubAnswerUnusable, HubUnreachable, Offline
from quantstudio.core.hub import HubFile, SearchPage, SearchQuery, Sort
from quantstudio.engine.hub.answers import MAX_FILES, read_files, read_summary
from quantstudio.engine.hub.connection import Connection
from quantstudio.engine.hub.http import Status, get_json, origin, request
from quantstudio.engine.hub.retry import persistently, refusal
from quantstudio.engine.reporter import Reporter

_SORTS = {
    Sort.TRENDING: "trendingScore",
    Sort.DOWNLOADS: "downloads",
    Sort.LIKES: "likes",
    Sort.MODIFIED: "lastModified",
    Sort.CREATED: "createdAt",
}
_EXPAND = ("safetensors", "gated", "cardData", "config", "downloads", "likes", "lastModified", "private", "tags", "sha")
_NEXT = re.compile(r"<([^<>]{1,4000})>\s*;\s*rel=\"?next\"?")
MAX_PAGES_OF_FILES = 50


class HubApi:
    """The Hub's interface for one job. Every method raises the named errors of `core.errors` and Cancelled."""

    def __init__(self, connection: Connection, reporter: Reporter) -> None:
        self.connection = connection
        self.reporter = reporter
        if connection.offline:
            raise Offline(
                "The Hub is switched off (HF_HUB_OFFLINE is set).",
                hint="Unset that variable to use the network, or take a model that is on this machine.",
            )

    def search(self, query: SearchQuery) -> SearchPage:
        """One page of text models with safetensors weights."""
        url = f"{self.connection.endpoint}/api/models?{urlencode(_search_fields(query))}"
        found, headers = self._json(url, "")
        if not isinstance(found, list):
            raise HubAnswerUnusable("The Hub's list of models is none.")
        rows = [row for entry in found if (row := read_summary(entry))]
        shown = [row for row in rows if query.gated is None or row.gated is query.gated]
        following = _next_page(self.connection, headers)
        cursor = parse_qs(urlsplit(following).query).get("cursor", [""])[0] if following else ""
        return SearchPage(models=tuple(shown), next_cursor=cursor[:2000], dropped=len(found) - len(rows))

    def quantizations(self, model: str, limit: int = 20) -> SearchPage:
        """Quantized versions of a model that others have published, most downloaded first."""
        fields = [("filter", f"base_model:quantized:{model}"), ("sort", "downloads"), ("limit", str(limit))]
        url = f"{self.connection.endpoint}/api/models?{urlencode(fields + [('expand[]', name) for name in _EXPAND])}"
        found, _ = self._json(url, model)
        rows = [row for entry in found if (row := read_summary(entry))] if isinstance(found, list) else []
        return SearchPage(models=tuple(rows))

    def describe(self, model: str, revision: str) -> dict[str, Any]:
        """The Hub's description of a model at a revision."""
        url = f"{self.connection.endpoint}/api/models/{model}/revision/{quote(revision or 'main', safe='')}"
        info, _ = self._json(url, model)
        if not isinstance(info, dict):
            raise HubAnswerUnusable("The Hub's description of the model is none.")
        return info

    def files(self, model: str, commit: str) -> list[HubFile]:
        """All files of a model at a commit, with sizes and checksums."""
        url = f"{self.connection.endpoint}/api/models/{model}/tree/{commit}?recursive=true&expand=false"
        entries: list[Any] = []
        for _ in range(MAX_PAGES_OF_FILES):
            found, headers = self._json(url, model)
            entries += found if isinstance(found, list) else []
            url = _next_page(self.connection, headers)
            if not url or len(entries) > MAX_FILES:
                break
        return read_files(entries)

    def address(self, model: str, commit: str, path: str) -> str:
        """Where a file's contents are."""
        return f"{self.connection.endpoint}/{model}/resolve/{commit}/{quote(path)}"

    def piece(self, model: str, commit: str, path: str, begin: int, end: int) -> bytes:
        """The bytes from `begin` up to `end` of a file, without fetching the rest."""

        def fetch() -> bytes:
            headers = {"Range": f"bytes={begin}-{end - 1}"}
            url = self.address(model, commit, path)
            with request(self.connection, url, self.reporter.cancel, headers) as answer:
                if answer.status != 206 and begin:
                    raise HubAnswerUnusable(f"The Hub does not send parts of {path}.")
                parts, size = [], 0
                while size < end - begin and (part := answer.read(min(1 << 16, end - begin - size))):
                    parts.append(part)
                    size += len(part)
            return b"".join(parts)

        try:
            return persistently(self.connection, self.reporter, fetch)
        except Status as status:
            raise refusal(status, model, self.connection) from status

    def who(self) -> str:
        """The name of whoever the token belongs to. Raises AccessNeeded when the Hub does not accept it."""
        try:
            found, _ = self._json(f"{self.connection.endpoint}/api/whoami-v2", "", words=False)
        except Status as status:
            if status.status in (401, 403):
                raise AccessNeeded(
                    "The Hub does not accept this token.", hint="Copy it again; it starts with hf_."
                ) from status
            raise HubUnreachable("The Hub could not check the token.", why=f"It answered with {status}.") from status
        name = found.get("name") if isinstance(found, dict) else None
        return name if isinstance(name, str) and re.fullmatch(r"[\w.-]{1,96}", name) else "somebody"

    def _json(self, url: str, model: str, *, words: bool = True) -> tuple[Any, HTTPMessage]:
        try:
            return persistently(
                self.connection, self.reporter, lambda: get_json(self.connection, url, self.reporter.cancel)
            )
        except Status as status:
            if not words:
                raise
            raise refusal(status, model, self.connection) from status


def _search_fields(query: SearchQuery) -> list[tuple[str, str]]:
    fields = [("filter", "text-generation"), ("filter", "safetensors"), ("sort", _SORTS[query.sort])]
    fields += [("limit", str(query.limit))]
    named = {"search": query.text, "author": query.author, "cursor": query.cursor}
    fields += [(name, value) for name, value in named.items() if value]
    if query.licence:
        fields.append(("filter", f"license:{query.licence}"))
    if query.family:
        fields.append(("filter", query.family))
    if query.gated is not None:
        fields.append(("gated", "true" if query.gated else "false"))
    bounds = [("min", query.min_parameters), ("max", query.max_parameters)]
    if parameters := ",".join(f"{name}:{value}" for name, value in bounds if value is not None):
        fields.append(("num_parameters", parameters))
    return fields + [("expand[]", name) for name in _EXPAND]


def _next_page(connection: Connection, headers: HTTPMessage) -> str:
    """The address of the next page from a Link header; one on another server is not followed."""
    found = _NEXT.search(headers.get("Link", ""))
    if not found:
        return ""
    url = urljoin(connection.endpoint, found[1])
    if origin(url) != origin(connection.endpoint):
        raise HubAnswerUnusable("The Hub's next page lies on another server.")
    return url
