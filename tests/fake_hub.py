"""A local server with the hub's routes for reading a model: listing, resolve with HEAD, Range, ETag and redirect.

Large files (here: safetensors) are answered as the hub does, by a redirect to storage on another host with the hash in
X-Linked-Etag.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class SeenRequest:
    """One request as the server saw it. start: first byte asked for by a Range header, 0 without one."""

    method: str
    path: str
    start: int
    token: str


@dataclass
class FakeHub:
    """What the server holds and how it misbehaves; set the fields before or between requests.

    repos: repository -> file name -> content. gated: repositories that want `token`. cut: file name -> bytes after
    which the connection is dropped, once for each entry of the list. busy: how many downloads are answered 503 first.
    ignores_range: answers 200 with the whole file. stated: file name -> SHA-256 to state instead of the true one.
    listing: sent in place of every listing.
    """

    repos: dict[str, dict[str, bytes]]
    token: str = "hf_secret"
    gated: frozenset[str] = frozenset()
    cut: dict[str, list[int]] = field(default_factory=dict)
    busy: int = 0
    ignores_range: bool = False
    stated: dict[str, str] = field(default_factory=dict)
    without_hashes: bool = False
    listing: bytes | None = None
    endpoint: str = ""
    seen: list[SeenRequest] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sha256(self, name: str, content: bytes) -> str:
        """The hash that the hub states for a large file."""
        return self.stated.get(name) or hashlib.sha256(content).hexdigest()

    def downloads(self, name: str) -> list[SeenRequest]:
        """The requests for a file's bytes, in order."""
        return [r for r in self.seen if r.method == "GET" and r.path.endswith("/" + name)]


@contextmanager
def serve_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve until the block ends; `hub.endpoint` is the address."""

    class Routes(_Routes):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Routes)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path)
        found = re.match(r"bytes=(\d+)-\Z", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with hub.lock:
            hub.seen.append(SeenRequest(self.command, path, start, token))
        if listing := re.match(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?\Z", path):
            self._listing(listing[1], listing[2] or "main", token)
        elif file := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)\Z", path):
            self._resolve(file[1], file[3], token, start)
        elif file := re.match(r"/storage/([^/]+/[^/]+)/(.+)\Z", path):
            self._content(file[2], hub.repos[file[1]][file[2]], start)
        else:
            self._empty(404)

    def _listing(self, repo: str, revision: str, token: str) -> None:
        hub = self.served
        if hub.listing is not None:
            return self._send(200, hub.listing, {})
        if repo not in hub.repos:
            return self._empty(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self._empty(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name, content in hub.repos[repo].items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            if not hub.without_hashes:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                if _is_large(name):
                    entry["lfs"] = {"sha256": hub.sha256(name, content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        gated = "manual" if repo in hub.gated else False
        body = json.dumps({"id": repo, "sha": COMMIT, "gated": gated, "siblings": siblings}).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, repo: str, name: str, token: str, start: int) -> None:
        hub = self.served
        if repo in hub.gated and token != hub.token:
            return self._empty(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        content = hub.repos.get(repo, {}).get(name)
        if content is None:
            return self._empty(404, {"X-Error-Code": "EntryNotFound"})
        with hub.lock:
            hub.busy -= 1
            if hub.busy >= 0:
                return self._empty(503)
        headers = {"X-Repo-Commit": COMMIT}
        if not _is_large(name):
            return self._content(name, content, start, headers)
        storage = hub.endpoint.replace("127.0.0.1", "localhost")
        headers |= {"X-Linked-Etag": f'"{hub.sha256(name, content)}"', "X-Linked-Size": str(len(content))}
        return self._empty(302, headers | {"Location": f"{storage}/storage/{repo}/{name}"})

    def _content(self, name: str, content: bytes, start: int, headers: dict[str, str] | None = None) -> None:
        hub = self.served
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"} | (headers or {})
        status = 200
        if start and not hub.ignores_range:
            if start >= len(content):
                return self._empty(416, {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        with hub.lock:
            cuts = hub.cut.get(name, [])
            cut = cuts.pop(0) if cuts else None
        self._send(status, content, headers, cut=cut)

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")
