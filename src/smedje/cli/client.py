"""A small client of the public HTTP API. Knows paths' common ground: keys, errors, pages, streams, uploads.

Knows nothing of any noun; the commands name the paths. Every failure is one of smedje's errors.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2

from smedje.errors import (
    AuthenticationFailed,
    Conflict,
    InternalError,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    OutOfStorage,
    PermissionDenied,
    SmedjeError,
    TooLarge,
    Unavailable,
)

DEFAULT_BASE_URL = "http://127.0.0.1:8321"
OWNER_KEY_FILE = "owner_key"
PAGE = 100

STATUSES: dict[int, type[SmedjeError]] = {
    400: InvalidRequest,
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: LimitExceeded,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: OutOfStorage,
}


class Client:
    """One connection pool to one server with one key. Use it as a context manager."""

    def __init__(self, base_url: str, api_key: str, *, project: str | None = None) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        # A proxy that the environment names must not get between this machine and itself.
        self._http = httpx2.Client(
            base_url=self.base_url,
            headers={"authorization": f"Bearer {api_key}", **({"openai-project": project} if project else {})},
            timeout=httpx2.Timeout(600, connect=5),
            trust_env=not is_loopback(self.base_url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object at `path`."""
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a JSON body (or none); the JSON object that comes back."""
        return self._json("POST", path, body=body)

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Put a JSON body in the place of what is at `path`; the JSON object that comes back."""
        return self._json("PUT", path, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change what is at `path` by a JSON body; the JSON object that comes back."""
        return self._json("PATCH", path, body=body)

    def delete(self, path: str) -> dict[str, Any]:
        """Delete what is at `path`; the server's JSON answer, `{}` when it has none."""
        return self._json("DELETE", path)

    def page(self, path: str, params: Mapping[str, Any] | None = None, *, limit: int) -> dict[str, Any]:
        """Up to `limit` elements of a list, over as many pages as it takes: {object, data, has_more}."""
        found: list[dict[str, Any]] = []
        query = dict(params or {})
        while True:
            answer = self.get(path, {**query, "limit": min(PAGE, limit - len(found))})
            found += answer["data"]
            more = bool(answer.get("has_more")) and bool(answer["data"])
            if not more or len(found) >= limit:
                return {"object": "list", "data": found[:limit], "has_more": more}
            query["after"] = found[-1]["id"]

    def upload(self, path: Path, purpose: str) -> dict[str, Any]:
        """Send a local file to the Files API; the file object."""
        from smedje.cli.output import byte_progress

        with byte_progress() as progress, progress.open(path, "rb", description=f"uploading {path.name}") as file:
            parts = {"file": (path.name, file, "application/octet-stream")}
            with self._failures():
                answer = self._http.post("/v1/files", files=parts, data={"purpose": purpose})
            return _object(answer)

    def download(self, path: str) -> Iterator[bytes]:
        """The bytes at `path`, piece by piece."""
        with self._failures(), self._http.stream("GET", path) as answer:
            _raise_for_status(answer)
            yield from answer.iter_bytes()

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a server-sent event stream, up to `[DONE]`."""
        with self._failures(), self._http.stream("POST", path, json=dict(body)) as answer:
            _raise_for_status(answer)
            for event in httpx2.EventSource(answer):
                if event.data == "[DONE]":
                    return
                chunk = json.loads(event.data)
                if chunk.get("error"):
                    raise _error(500, chunk)
                yield chunk

    def _json(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        query = {name: value for name, value in (params or {}).items() if value is not None}
        content = None if body is None else dict(body)
        with self._failures():
            answer = self._http.request(method, path, params=query or None, json=content)
        return _object(answer)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise Unavailable(f"The server at {self.base_url} did not answer in time.", code="server_timeout") from None
        except httpx2.TransportError as problem:
            reason = str(problem) or type(problem).__name__
            raise Unavailable(f"No server answers at {self.base_url} ({reason}).", code="server_unreachable") from None


def open_client() -> Client:
    """A client from the environment: SMEDJE_BASE_URL and SMEDJE_API_KEY, else the owner key on this machine.

    The owner key is read for a server on this machine only, so that it is never sent anywhere else. SMEDJE_PROJECT
    names another project than the key's own to act in.
    """
    from smedje.settings import load_settings

    base_url = os.environ.get("SMEDJE_BASE_URL") or DEFAULT_BASE_URL
    if urlsplit(base_url).scheme not in ("http", "https"):
        raise InvalidRequest(
            f"SMEDJE_BASE_URL is {base_url!r}; it must begin with http:// or https://.",
            code="invalid_setting",
            param="SMEDJE_BASE_URL",
        )
    settings = load_settings()
    key = os.environ.get("SMEDJE_API_KEY", "")
    if not key and is_loopback(base_url):
        key = settings.bootstrap_api_key or read_owner_key(settings.home)
    if not key:
        raise AuthenticationFailed(f"There is no API key for {base_url}.", code="missing_api_key")
    return Client(base_url, key, project=os.environ.get("SMEDJE_PROJECT"))


def read_owner_key(home: Path) -> str:
    """The owner key that the server wrote into its state folder; empty when there is none to read."""
    try:
        return (home / OWNER_KEY_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def is_loopback(url_or_host: str) -> bool:
    """Whether a URL or host name is this machine's own loopback address."""
    host = urlsplit(url_or_host).hostname if "://" in url_or_host else url_or_host
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False


def segment(text: str) -> str:
    """Text as one part of a path: names with slashes and colons stay whole."""
    return quote(text, safe=":")


def _object(answer: httpx2.Response) -> dict[str, Any]:
    _raise_for_status(answer)
    if not answer.content:
        return {}
    found = _parse(answer)
    if found is None:
        raise Unavailable(
            f"{answer.url.scheme}://{answer.url.netloc.decode()} does not speak smedje's API: its answer is not JSON.",
            code="not_a_smedje_server",
        )
    return found


def _raise_for_status(answer: httpx2.Response) -> None:
    if answer.status_code < 400:
        return
    answer.read()
    raise _error(answer.status_code, _parse(answer) or {}, retry_after=answer.headers.get("retry-after"))


def _error(status: int, body: Mapping[str, Any], *, retry_after: str | None = None) -> SmedjeError:
    found = body.get("error")
    told: Mapping[str, Any] = found if isinstance(found, dict) else {}
    message = str(told.get("message") or f"The server answered with status {status} and no reason.")
    if retry_after:
        message += f" Try again in {retry_after} s."
    kind = STATUSES.get(status, InternalError if status >= 500 else InvalidRequest)
    code, param = told.get("code"), told.get("param")
    return kind(message, code=str(code) if code else None, param=str(param) if param else None)


def _parse(answer: httpx2.Response) -> dict[str, Any] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
