"""From an error to an answer: one table of statuses, one JSON shape, and the conversions of what frameworks raise.

Knows HTTP statuses and wire field names; knows nothing of what went wrong in the layers below.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

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

# error class -> (HTTP status, wire type). The nearest class in the tree counts.
STATUSES: dict[type[SmedjeError], tuple[int, str]] = {
    InvalidRequest: (400, "invalid_request_error"),
    AuthenticationFailed: (401, "authentication_error"),
    PermissionDenied: (403, "permission_error"),
    NotFound: (404, "not_found_error"),
    Conflict: (409, "conflict_error"),
    TooLarge: (413, "invalid_request_error"),
    LimitExceeded: (429, "rate_limit_error"),
    InternalError: (500, "server_error"),
    Unavailable: (503, "server_error"),
    OutOfStorage: (507, "server_error"),
    SmedjeError: (500, "server_error"),
}

# Official clients retry 409 and every 5xx by themselves; for these the same call cannot succeed a second later.
NEVER_RETRIED = (Conflict, OutOfStorage)
# Nor for a limit that does not mend itself within minutes.
SPENT = "quota_exceeded"

HTTP_ERRORS: dict[int, tuple[str, str]] = {
    404: ("unknown_url", "not_found_error"),
    405: ("method_not_allowed", "invalid_request_error"),
    413: ("too_large", "invalid_request_error"),
}

# Paths on which Azure's shape is expected. Azure's v1 paths speak OpenAI's.
AZURE_INFERENCE = ("/openai/deployments/", "/models/", "/chat/")
AZURE_AUTHORING = ("/openai/files", "/openai/fine_tuning", "/openai/models")
AZURE_CODES: dict[int, str] = {
    400: "invalidPayload",
    401: "unauthorized",
    403: "forbidden",
    404: "notFound",
    409: "conflict",
    413: "invalidPayload",
    429: "tooManyRequests",
    503: "serviceUnavailable",
    507: "quotaExceeded",
}

# An engine that died is replaced by the next request; a second is enough to let go of the old one.
RETRY_SECONDS = "1"

SERVER_ERROR_TEXT = "Something went wrong on our side. The server's log has the details under this request id."

log = logging.getLogger("smedje.api")


def error_body(message: str, *, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The one JSON shape of every error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: SmedjeError) -> tuple[int, str]:
    """HTTP status and wire type of an error, by the nearest class that the table has."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def to_body(error: SmedjeError) -> dict[str, Any]:
    """The wire form of an error of ours, as an answer or inside a stream."""
    return error_body(error.message, kind=status_of(error)[1], code=error.code, param=error.param)


def in_dialect(body: dict[str, Any], path: str, status: int) -> dict[str, Any]:
    """An error body as the dialect of `path` has it. OpenAI's fields stay, because the official client reads them.

    Azure adds target, details and innererror; its authoring routes have general codes and put the special one inside.
    """
    if not path.startswith((*AZURE_INFERENCE, *AZURE_AUTHORING)):
        return body
    error = body["error"]
    code = AZURE_CODES.get(status, "internalFailure") if path.startswith(AZURE_AUTHORING) else error["code"]
    inner = {"code": error["code"]}
    return {"error": {**error, "code": code, "target": error["param"], "details": [], "innererror": inner}}


def to_response(error: SmedjeError, path: str = "") -> JSONResponse:
    """The answer to a request for `path` that failed with an error of ours."""
    headers: dict[str, str] = {}
    if isinstance(error, NEVER_RETRIED):
        headers["x-should-retry"] = "false"
    if isinstance(error, LimitExceeded):
        if error.retry_after is not None:
            headers["retry-after"] = str(error.retry_after)
        elif error.code == SPENT:
            headers["x-should-retry"] = "false"
    if isinstance(error, Unavailable):
        headers["retry-after"] = RETRY_SECONDS
    if isinstance(error, AuthenticationFailed):
        headers["www-authenticate"] = "Bearer"
    status = status_of(error)[0]
    return JSONResponse(in_dialect(to_body(error), path, status), status_code=status, headers=headers)


def server_error() -> JSONResponse:
    """The answer to anything unforeseen: it tells nothing of what happened inside."""
    return JSONResponse(error_body(SERVER_ERROR_TEXT, kind="server_error", code="server_error"), status_code=500)


def install(app: FastAPI) -> None:
    """Give the application our answers in place of the framework's."""
    app.add_exception_handler(SmedjeError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def from_validation(problems: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The first problem of a wire body or query, in words that name the field, the value and what is allowed."""
    first = problems[0]
    kind, place = str(first["type"]), tuple(first["loc"])[1:]
    param = _path(place) or None
    if kind == "json_invalid":
        reason = (first.get("ctx") or {}).get("error", "not JSON")
        return InvalidRequest(
            f"The request body is not valid JSON: {reason} at character {place[0]}.", code="invalid_json"
        )
    if kind == "missing" and param is None:
        return InvalidRequest("The request has no JSON body.", code="invalid_json")
    if kind == "missing":
        return InvalidRequest(f"The field {param!r} is required.", code="missing_field", param=param)
    if kind == "extra_forbidden":
        return InvalidRequest(
            f"The field {param!r} is not known here. Remove it or correct its name.", code="unknown_field", param=param
        )
    if param is None and isinstance(first.get("input"), bytes):
        return InvalidRequest(
            "The request body must be a JSON object sent with the header Content-Type: application/json.",
            code="invalid_json",
        )
    reason = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequest(
        f"The field {param!r} is {_shown(first.get('input'))}: {reason}."
        if param
        else f"The request is wrong: {reason}.",
        code="invalid_value",
        param=param,
    )


def _path(place: tuple[Any, ...]) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


async def _on_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, SmedjeError)
    status = status_of(error)[0]
    if status >= 500:
        told = {"code": error.code, "status": status, "request_id": _request_id(request)}
        log.warning("request failed", extra=told)
    return to_response(error, request.url.path)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return to_response(from_validation(error.errors()), request.url.path)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, kind = HTTP_ERRORS.get(error.status_code, ("bad_request", "invalid_request_error"))
    match error.status_code:
        case 404:
            text = f"There is nothing at {request.method} {request.url.path}. The schema is at /openapi.json."
        case 405:
            text = f"{request.url.path} does not take {request.method}."
        case 413:
            text = "The request body is larger than this route takes."
        case 400:
            code, text = "invalid_json", "The request body could not be read as JSON in UTF-8."
        case _:
            text = str(error.detail)
    headers = dict(error.headers or {})
    body = in_dialect(error_body(text, kind=kind, code=code), request.url.path, error.status_code)
    return JSONResponse(body, status_code=error.status_code, headers=headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    log.info("client went away", extra={"request_id": _request_id(request)})
    body = error_body("The client closed the connection.", kind="invalid_request_error", code="client_closed_request")
    return JSONResponse(body, status_code=499)


def _request_id(request: Request) -> str:
    return str(request.scope.get("smedje.request_id", ""))
