"""The command line's HTTP client against real sockets: errors, pages, streams, keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse, StreamingResponse
from tests.api_server import serving

from smedje import errors
from smedje.api.errors import install
from smedje.cli.client import Client, is_loopback, open_client, segment

ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.SmedjeError) and kind is not errors.SmedjeError
}
# On the wire these are their parent: the status is the same, and the code still tells them apart.
MERGED = {errors.UnsupportedField: errors.InvalidRequest, errors.InvalidData: errors.InvalidRequest}


def make_app() -> FastAPI:
    """A server that fails in every way that ours can, pages, and streams."""
    app = FastAPI()
    install(app)

    @app.get("/fail/{name}")
    def fail(name: str) -> None:
        """Raise the error of this name."""
        raise ERRORS[name]("What, where, and what to do.", code="a_code", param="a.field")

    @app.get("/numbers")
    def numbers(limit: int, after: str | None = None) -> dict[str, object]:
        """Ten numbers, at most four a page whatever is asked for."""
        first = 0 if after is None else int(after) + 1
        found = [{"id": str(n)} for n in range(first, 10)][: min(limit, 4)]
        return {"object": "list", "data": found, "has_more": first + len(found) < 10}

    @app.get("/page")
    def page() -> HTMLResponse:
        """What a wrong address answers."""
        return HTMLResponse("<html>welcome</html>")

    @app.post("/stream/{ending}")
    def stream(ending: str) -> StreamingResponse:
        """Two chunks, then the end, an error, or nothing more."""
        last = {"done": "[DONE]", "error": '{"error": {"message": "broke", "code": "server_error"}}'}[ending]
        return StreamingResponse(
            iter(f"data: {text}\n\n" for text in ('{"n": 1}', '{"n": 2}', last)), media_type="text/event-stream"
        )

    return app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where that server is."""
    with serving(make_app()) as found:
        yield found


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_comes_back_as_itself(url: str, name: str) -> None:
    """An error that a service raises is the same error again on the client's side, with message, code and field.

    One that passes by itself also says when to try again.
    """
    with Client(url, "key") as client, pytest.raises(errors.SmedjeError) as caught:
        client.get(f"/fail/{name}")
    assert type(caught.value) is MERGED.get(ERRORS[name], ERRORS[name])
    waits = " Try again in 1 s." if ERRORS[name] is errors.Unavailable else ""
    assert caught.value.message == f"What, where, and what to do.{waits}"
    assert (caught.value.code, caught.value.param) == ("a_code", "a.field")


def test_no_server_and_a_foreign_server_are_told_apart(url: str) -> None:
    """A closed port says that nothing answers; a web page says that it is not smedje."""
    with Client("http://127.0.0.1:9", "key") as client, pytest.raises(errors.Unavailable) as nobody:
        client.get("/v1/models")
    assert nobody.value.code == "server_unreachable"
    with Client(url, "key") as client, pytest.raises(errors.Unavailable) as stranger:
        client.get("/page")
    assert stranger.value.code == "not_a_smedje_server"


@pytest.mark.parametrize(("limit", "count", "more"), [(3, 3, True), (7, 7, True), (10, 10, False), (99, 10, False)])
def test_pages_are_put_together(url: str, limit: int, count: int, more: bool) -> None:
    """As many elements as were asked for, over as many pages as it takes, none twice."""
    with Client(url, "key") as client:
        found = client.page("/numbers", limit=limit)
    assert [one["id"] for one in found["data"]] == [str(n) for n in range(count)]
    assert found["has_more"] is more


def test_a_stream_ends_at_done_and_raises_in_the_middle(url: str) -> None:
    """Chunks come as they are; an error among them is raised after what came before it."""
    with Client(url, "key") as client:
        assert [chunk["n"] for chunk in client.stream("/stream/done", {})] == [1, 2]
        broken = client.stream("/stream/error", {})
        assert [next(broken)["n"], next(broken)["n"]] == [1, 2]
        with pytest.raises(errors.InternalError, match="broke"):
            next(broken)


def test_a_proxy_never_gets_between_this_machine_and_itself(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not used for a loopback address."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Client(url, "key") as client:
        assert client.page("/numbers", limit=1)["data"]


def test_the_owner_key_is_for_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SMEDJE_API_KEY the key file is used for a local server, and never sent anywhere else."""
    (tmp_path / "owner_key").write_text("smedje_secret_of_this_machine\n")
    monkeypatch.setenv("SMEDJE_HOME", str(tmp_path))
    monkeypatch.delenv("SMEDJE_API_KEY", raising=False)
    monkeypatch.setenv("SMEDJE_BASE_URL", "http://127.0.0.1:9/v1")
    with open_client() as client:
        assert client.base_url == "http://127.0.0.1:9"
    monkeypatch.setenv("SMEDJE_BASE_URL", "https://smedje.example.org")
    with pytest.raises(errors.AuthenticationFailed) as caught:
        open_client()
    assert caught.value.code == "missing_api_key"


@pytest.mark.parametrize("text", ["ftp://x", "localhost:8321", "127.0.0.1"])
def test_a_base_url_needs_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is no http address is refused by name before anything is sent."""
    monkeypatch.setenv("SMEDJE_HOME", str(tmp_path))
    monkeypatch.setenv("SMEDJE_BASE_URL", text)
    with pytest.raises(errors.InvalidRequest, match="SMEDJE_BASE_URL"):
        open_client()


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("http://127.0.0.1:1", True),
        ("http://[::1]:80/v1", True),
        ("https://localhost", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("http://10.0.0.1", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_recognised(text: str, local: bool) -> None:
    """Only this machine's own addresses count, whatever else a name resembles."""
    assert is_loopback(text) is local


def test_names_stay_one_part_of_a_path() -> None:
    """A slash, a question mark or dots in a name cannot lead to another route."""
    assert segment("ft:a:b:c:d") == "ft:a:b:c:d"
    assert segment("../keys?x#y") == "..%2Fkeys%3Fx%23y"
