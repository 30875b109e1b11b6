"""The request log: what changes something or fails stands out, what only looks is detail."""

from collections.abc import Iterator

import pytest
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from smedje.api.middleware import Edge
from smedje.services.meters import Meters


@pytest.fixture(autouse=True)
def every_line() -> Iterator[None]:
    """Logging as it comes, whatever level another test left behind."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


async def answer(request: Request) -> Response:
    return Response("{}")


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [("GET", "/jobs", "debug"), ("POST", "/jobs", "info"), ("DELETE", "/jobs", "info"), ("GET", "/none", "info")],
)
def test_looks_are_detail(method: str, path: str, level: str) -> None:
    """GETs that succeed are at debug, because clients that wait ask again and again; all else is at info."""
    app = Starlette(routes=[Route("/jobs", answer, methods=["GET", "POST", "DELETE"])])
    client = TestClient(Edge(app, [], {"": 1000}, Meters()), base_url="http://testserver")
    with capture_logs() as lines:
        client.request(method, path)
    assert [(line["event"], line["log_level"]) for line in lines] == [("request", level)]
