"""The request log: what changes something or fails stands out, what only looks is detail; a line an event."""

import logging
import sys

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from smedje.api.middleware import Edge
from smedje.services.meters import Meters
from smedje.wiring import EventLine


async def answer(request: Request) -> Response:
    return Response("{}")


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [("GET", "/jobs", "DEBUG"), ("POST", "/jobs", "INFO"), ("DELETE", "/jobs", "INFO"), ("GET", "/none", "INFO")],
)
def test_looks_are_detail(method: str, path: str, level: str, caplog: pytest.LogCaptureFixture) -> None:
    """GETs that succeed are at debug, because clients that wait ask again and again; all else is at info."""
    app = Starlette(routes=[Route("/jobs", answer, methods=["GET", "POST", "DELETE"])])
    client = TestClient(Edge(app, [], {"": 1000}, Meters()), base_url="http://testserver")
    with caplog.at_level(logging.DEBUG, logger="smedje"):
        client.request(method, path)
    ours = [record for record in caplog.records if record.name.startswith("smedje")]
    assert [(record.getMessage(), record.levelname) for record in ours] == [("request", level)]


def test_an_event_is_one_line_with_its_fields() -> None:
    """Time, level and event come first, then what it was told with; a trace and line breaks stay within the line."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        trace = sys.exc_info()
    record = logging.LogRecord("smedje.api", logging.WARNING, __file__, 1, "request failed", None, trace)
    record.created, record.request_id = 0.5, "req_1"
    line = EventLine().format(record)
    start = "timestamp='1970-01-01T00:00:00.500000Z' level='warning' event='request failed' request_id='req_1' "
    assert line.startswith(start)
    assert "ValueError: two" in line
    assert "\n" not in line
