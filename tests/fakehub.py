"""A Hub on this machine: a real HTTP server that speaks the parts of the protocol that we use, with faults on demand.

A repository is a folder ROOT/owner/name, a dataset ROOT/datasets/owner/name; its one commit is a checksum of its files,
and `main` points to it. Weights are kept as LFS files: `resolve` sends to another origin (localhost instead of
127.0.0.1), as the real Hub does.

    python tests/fakehub.py ROOT [PORT]

serves until interrupted; then `HF_ENDPOINT=http://127.0.0.1:PORT quantstudio search`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

LFS = (".safetensors", ".bin", ".gguf", ".parquet")
GOOD_TOKEN = "hf_goodgoodgoodgood"
PIECE = 1 << 16


@dataclass
class Fault:
    """Something that goes wrong for `times` requests of one file (or of the API: path "api").

    kinds: close, reset, stall (after `at` bytes) | silent (never answers) | wrong (flipped bytes) | short (cut body,
    length that fits) | norange (answers 200 to ranges) | badrange (sends another part) | status.
    """

    kind: str
    at: int = 0
    times: int = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    range: str
    token: str
    host: str


class FakeHub(ThreadingHTTPServer):
    """Start with `start()`; `seen` records every request, `sent` counts bytes of file contents."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.root = Path(root)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.gated: set[str] = set()
        self.seen: list[Seen] = []
        self.sent = 0
        self.rate = 0.0
        """Bytes a second; 0: as fast as it goes."""
        self.etag = ""
        self.extra_entries: list[dict] = []
        """Entries that every tree gets beside the real files."""
        self.on_request = lambda path: None
        self._faults: dict[str, list[Fault]] = {}
        self._sums: dict[tuple, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def start(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the game."""

    def fault(self, path: str, kind: str, **settings) -> None:
        self._faults.setdefault(path, []).append(Fault(kind, **settings))

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults.get(path, []):
                if fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def repos(self) -> list[str]:
        models = (path for path in self.root.glob("*/*") if path.is_dir() and path.parent.name != "datasets")
        return sorted(f"{path.parent.name}/{path.name}" for path in models)

    def has(self, repo: str) -> bool:
        return repo in self.repos() or (repo.startswith("datasets/") and (self.root / repo).is_dir())

    def sums(self, path: Path) -> tuple[str, str]:
        """(git sha1, sha256) of a file, remembered while it does not change."""
        found = path.stat()
        key = (path, found.st_mtime_ns, found.st_size)
        if key not in self._sums:
            sha1, sha256 = hashlib.sha1(b"blob %d\0" % found.st_size, usedforsecurity=False), hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    sha1.update(piece)
                    sha256.update(piece)
            self._sums[key] = sha1.hexdigest(), sha256.hexdigest()
        return self._sums[key]

    def tree(self, repo: str) -> list[dict]:
        entries = []
        for path in sorted((self.root / repo).rglob("*")):
            if path.is_file():
                sha1, sha256 = self.sums(path)
                entry = {"type": "file", "path": path.relative_to(self.root / repo).as_posix()}
                entry |= {"size": path.stat().st_size, "oid": sha1}
                if path.suffix in LFS:
                    entry["lfs"] = {"oid": sha256, "size": entry["size"], "pointerSize": 134}
                entries.append(entry)
        return entries + self.extra_entries

    def entries(self, repo: str) -> list[dict]:
        """The tree with its folders."""
        files = self.tree(repo) if self.has(repo) else []
        folders = {str(parent) for entry in files for parent in Path(entry["path"]).parents if str(parent) != "."}
        return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + files

    def describe_dataset(self, repo: str) -> dict:
        """With a card of the one line that says the licence."""
        card = (self.root / repo / "README.md").read_text(encoding="utf-8")
        licence = re.search(r"^license: (.*)$", card, re.MULTILINE)
        return {
            "_id": "0",
            "id": repo.removeprefix("datasets/"),
            "sha": self.commit(repo),
            "gated": "auto" if repo in self.gated else False,
            "private": False,
            "disabled": False,
            "tags": [],
            "cardData": {"license": licence[1]} if licence else {},
            "siblings": [{"rfilename": entry["path"]} for entry in self.tree(repo)],
        }

    def commit(self, repo: str) -> str:
        return hashlib.sha1(json.dumps(self.tree(repo)).encode(), usedforsecurity=False).hexdigest()

    def describe(self, repo: str) -> dict:
        folder = self.root / repo
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError):
            config = {}
        counts = {}
        with contextlib.suppress(OSError, ValueError, KeyError, struct.error):
            for path in folder.glob("*.safetensors"):
                with path.open("rb") as file:
                    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
                for name, entry in header.items():
                    if name != "__metadata__":
                        count = 1
                        for length in entry["shape"]:
                            count *= length
                        counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + count
        card = {"license": "apache-2.0"}
        quant = config.get("quantization_config")
        return {
            "id": repo,
            "sha": self.commit(repo),
            "gated": "auto" if repo in self.gated else False,
            "private": False,
            "downloads": 1000 - len(repo),
            "likes": len(repo),
            "lastModified": "2026-01-02T03:04:05.000Z",
            "tags": ["safetensors", "text-generation", "license:apache-2.0"],
            "cardData": card,
            "config": {
                "model_type": config.get("model_type"),
                "architectures": config.get("architectures"),
                **({"quantization_config": quant} if quant else {}),
            },
            "safetensors": {"parameters": counts, "total": sum(counts.values())} if counts else None,
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/paths-info/([^/]+)", unquote(urlsplit(self.path).path))
        if not found:
            return self._error(404, "EntryNotFound")
        paths = set(json.loads(body)["paths"])
        known = self.server.entries(found[1])
        return self._repo(found[1], found[2], lambda repo: self._json([e for e in known if e["path"] in paths]))

    def do_GET(self):
        hub, parts = self.server, urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        range_ = self.headers.get("Range") or ""
        hub.seen.append(Seen(self.command, self.path, range_, token, self.headers.get("Host", "")))
        hub.on_request(self.path)
        query = parse_qs(parts.query)
        path = unquote(parts.path)
        if path.startswith("/api/") and (fault := hub.take_fault("api")) and self._broken_api(fault):
            return
        if path == "/api/whoami-v2":
            if token != GOOD_TOKEN:
                self._json({"error": "Invalid"}, 401)
            else:
                self._json({"type": "user", "name": "ada"})
        elif path == "/api/models":
            self._list(query)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._repo(found[1], found[2], lambda repo: self._json(hub.describe(repo)))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._repo(found[1], found[2], lambda repo: self._json(hub.tree(repo)))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._repo(found[1], found[2], lambda repo: self._resolve(repo, found[3], token))
        elif found := re.fullmatch(r"/cdn/((?:datasets/)?[^/]+/[^/]+)/(.+)", path):
            self._contents(found[1], found[2])
        elif not self._dataset(path, token):
            self._error(404, "EntryNotFound")

    def _dataset(self, path, token) -> bool:
        """Answer what is asked about a dataset; False: nothing is."""
        hub = self.server
        if found := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+?)(?:/revision/(.+))?", path):
            self._repo(found[1], found[2] or "main", lambda repo: self._json(hub.describe_dataset(repo)))
        elif found := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            within = f"{found[3]}/" if found[3] else ""
            deep = "recursive=true" in self.path.lower()
            entries = [entry for entry in hub.entries(found[1]) if entry["path"].startswith(within)]
            entries = [entry for entry in entries if deep or "/" not in entry["path"].removeprefix(within)]
            self._repo(found[1], found[2], lambda repo: self._json(entries))
        elif found := re.fullmatch(r"/(datasets/[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._repo(found[1], found[2], lambda repo: self._resolve(repo, found[3], token))
        else:
            return False
        return True

    def _broken_api(self, fault: Fault) -> bool:
        if fault.kind == "silent":
            self.server.stopping.wait(60)
            self.close_connection = True
        elif fault.kind == "close":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._error(fault.status, "", fault.headers)
        return True

    def _list(self, query):
        hub = self.server
        found = [hub.describe(repo) for repo in hub.repos()]
        text = query.get("search", [""])[0].lower()
        author = query.get("author", [""])[0]
        low, high = 0, 1 << 60
        for bound in query.get("num_parameters", [""])[0].split(","):
            name, _, number = bound.partition(":")
            low, high = (int(number), high) if name == "min" else (low, int(number)) if name == "max" else (low, high)
        names = set(query.get("filter", []))
        licences = {name.removeprefix("license:") for name in names if name.startswith("license:")}
        base = [name for name in names if name.startswith("base_model:")]
        families = {name for name in names if ":" not in name} - {"text-generation", "safetensors"}
        kept = [
            info
            for info in found
            if text in info["id"].lower()
            and (not author or info["id"].startswith(f"{author}/"))
            and low <= ((info["safetensors"] or {}).get("total") or 0) <= high
            and (not licences or info["cardData"]["license"] in licences)
            and (not families or info["config"]["model_type"] in families)
            and ("gated" not in query or bool(info["gated"]) is (query["gated"] == ["true"]))
            and (not base or "quantization_config" in info["config"])
        ]
        sort = query.get("sort", ["trendingScore"])[0]
        kept.sort(key=lambda info: info.get(sort) or 0, reverse=True)
        start, limit = int(query.get("cursor", ["0"])[0]), int(query.get("limit", ["1000"])[0])
        headers = {}
        if start + limit < len(kept):
            following = urlencode({**query, "cursor": start + limit}, doseq=True)
            headers["Link"] = f'<{hub.url}/api/models?{following}>; rel="next"'
        self._json(kept[start : start + limit], headers=headers)

    def _repo(self, repo, revision, answer):
        hub = self.server
        if not hub.has(repo):
            self._error(404, "RepoNotFound")
        elif revision not in ("main", hub.commit(repo)):
            self._error(404, "RevisionNotFound")
        else:
            answer(repo)

    def _resolve(self, repo, name, token):
        hub = self.server
        path = hub.root / repo / name
        if repo in hub.gated and token != GOOD_TOKEN:
            self._error(403 if token else 401, "GatedRepo")
        elif not path.is_file():
            self._error(404, "EntryNotFound")
        elif path.suffix in LFS:
            sha256 = hub.sums(path)[1]
            self._send(
                302,
                b"",
                {
                    "Location": f"http://localhost:{hub.port}/cdn/{repo}/{name}",
                    "X-Repo-Commit": hub.commit(repo),
                    "X-Linked-Size": str(path.stat().st_size),
                    "X-Linked-Etag": hub.etag or f'"{sha256}"',
                },
            )
        else:
            self._contents(repo, name)

    def _contents(self, repo, name):
        hub, path = self.server, self.server.root / repo / name
        fault = hub.take_fault(name)
        if fault and fault.kind == "status":
            return self._error(fault.status, "", fault.headers)
        if fault and fault.kind == "silent":
            hub.stopping.wait(60)
            self.close_connection = True
            return None
        size = path.stat().st_size
        if fault and fault.kind == "short":
            size = fault.at
        begin, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not (fault and fault.kind == "norange"):
            begin, end, status = int(asked[1]), min(size, int(asked[2]) + 1 if asked[2] else size), 206
            if begin >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            if fault and fault.kind == "badrange":
                begin = max(0, begin - 7)
        self.send_response(status)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", hub.etag or f'"{hub.sums(path)[0]}"')
        self.send_header("X-Repo-Commit", hub.commit(repo))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self._body(path, begin, end, fault)

    def _body(self, path, begin, end, fault):
        hub = self.server
        stop = begin + fault.at if fault and fault.kind in ("close", "reset", "stall") else end
        with path.open("rb") as file:
            file.seek(begin)
            position = begin
            while position < min(stop, end):
                piece = file.read(min(PIECE, min(stop, end) - position))
                if fault and fault.kind == "wrong" and position <= fault.at < position + len(piece):
                    cut = fault.at - position
                    piece = piece[:cut] + bytes([piece[cut] ^ 255]) + piece[cut + 1 :]
                self.wfile.write(piece)
                position += len(piece)
                hub.sent += len(piece)
                if hub.rate:
                    time.sleep(len(piece) / hub.rate)
        if fault and stop < end:
            if fault.kind == "stall":
                hub.stopping.wait(60)
            time.sleep(0.05)  # let what was sent arrive
            if fault.kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True

    def _json(self, data, status=200, headers=None):
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status, code, headers=None):
        self._send(status, b"{}", {**({"X-Error-Code": code} if code else {}), **(headers or {})})

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


if __name__ == "__main__":
    server = FakeHub(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
