"""The outermost layer of the API: request ids, Host allow-list, body limits, security headers, the last safety net.

A plain ASGI wrapper, so that streams pass through it untouched. Knows nothing of routes.
"""

import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smedje.api.errors import server_error, to_response
from smedje.errors import InvalidRequest, SmedjeError, TooLarge
from smedje.services.meters import Meters

# Names under which a loopback server may be asked; anything else may be a web page that rebinds its own name to us.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "testserver")

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}

# What only looks is asked again and again, by supervisors, pages and scripts that wait; its lines would drown others.
LOOKS = ("GET", "HEAD", "OPTIONS")

OUR_ID = re.compile(r"[a-z]+[-_][A-Za-z0-9]{24}")

log = logging.getLogger("smedje.api")


class Edge:
    """Wraps the whole application.

    hosts: names allowed in the Host header besides the local ones; "*" allows any. body_bytes: the longest body,
    by path, where "*" stands for any id, with "" for every other path. meters: where answers are counted.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], body_bytes: Mapping[str, int], meters: Meters) -> None:
        self.app = app
        self.meters = meters
        self.body_bytes = dict(body_bytes)
        self.hosts = frozenset(name.lower() for name in (*LOCAL_HOSTS, *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = "req_" + secrets.token_hex(12)
        scope["smedje.request_id"] = request_id
        notices: list[str] = []
        scope["smedje.notices"] = notices
        begun, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for notice in notices:
                    headers.append("x-smedje-warning", notice)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        limit = self._limit(scope["path"])
        try:
            if (refusal := self._refusal(scope, limit)) is not None:
                await to_response(refusal, scope["path"])(scope, receive, send_with_headers)
            else:
                await self.app(scope, _limited(receive, limit), send_with_headers)
        except Exception:
            told = {"request_id": request_id, "method": scope["method"], "path": _told_path(scope)}
            log.exception("unforeseen error", extra=told)
            if status:
                raise  # The answer has begun; closing the connection is the only way left to say that it is not whole.
            await server_error()(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "")
            self.meters.request_ended(scope["method"], route, status, time.perf_counter() - begun)
            told = {
                "request_id": request_id,
                "method": scope["method"],
                "path": _told_path(scope),
                "status": status,
                "seconds": round(time.perf_counter() - begun, 4),
            }
            log.log(logging.DEBUG if scope["method"] in LOOKS and status < 400 else logging.INFO, "request", extra=told)

    def _limit(self, path: str) -> int:
        if path in self.body_bytes:
            return self.body_bytes[path]
        return next(
            (limit for name, limit in self.body_bytes.items() if "*" in name and fnmatchcase(path, name)),
            self.body_bytes[""],
        )

    def _refusal(self, scope: Scope, limit: int) -> SmedjeError | None:
        """What the headers alone make impossible."""
        headers = Headers(scope=scope)
        host, length = headers.get("host", ""), headers.get("content-length", "")
        if "*" not in self.hosts and _without_port(host) not in self.hosts:
            return _wrong_host(host)
        if length.isdigit() and int(length) > limit:
            return TooLarge(f"The request body has {length} bytes; this route takes at most {limit}.")
        return None


def _told_path(scope: Scope) -> str:
    """The route's template with the ids in it, which are ours; names in a path are users' and stay out of the log."""
    path: str = getattr(scope.get("route"), "path", "(no route)")
    for name, value in scope.get("path_params", {}).items():
        if OUR_ID.fullmatch(str(value)):
            path = path.replace(f"{{{name}}}", value)
    return path


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive` that raises a 413 once more than `limit` bytes of body have come, whatever the headers said."""
    total = 0

    async def counting() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            # The framework passes this class on from wherever it reads the body; others become a 400.
            raise HTTPException(413)
        return message

    return counting


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _wrong_host(host: str) -> InvalidRequest:
    return InvalidRequest(
        f"This server does not answer to the host name {host[:100]!r}. Use 127.0.0.1 or localhost, or start the server "
        "with that name allowed.",
        code="host_not_allowed",
    )
