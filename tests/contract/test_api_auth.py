"""Keys, hosts and permissions: who may ask at all."""

import httpx2
import pytest
from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from tests.api_server import TINY, Server, chat_lines, make_app

from smedje.api.auth import PUBLIC_ROUTES, SIGN_IN_ROUTES, check_routes
from smedje.api.errors import SERVER_ERROR_TEXT
from smedje.domain.files import report_key
from smedje.services import projects
from smedje.store import projects as rows


def test_every_route_needs_a_key_but_probes_and_the_sign_in_pages(server: Server) -> None:
    """Without a key each route answers 401 in the error shape, before it looks at anything else; the sign-in pages
    answer with a page or send a browser on."""
    asked = 0
    with httpx2.Client(base_url=server.url) as http:
        for found in iter_route_contexts(make_app(server.ctx).routes):
            assert found.path is not None
            for method in found.methods or ():
                path = found.path.replace("{", "").replace("}", "")
                content = b"{}" if method == "POST" else None
                answer = http.request(method, path, content=content, headers={"content-type": "application/json"})
                if found.path in PUBLIC_ROUTES:
                    assert answer.status_code == 200
                    continue
                if found.path in SIGN_IN_ROUTES:
                    # A form that no page of ours sent, a way back that nobody went: refused, and never a way in.
                    assert answer.status_code in (200, 403, 404), (method, path)
                    assert "smedje_session=" not in answer.headers.get("set-cookie", "")
                    continue
                asked += 1
                # A body is parsed before the key is looked at, so a wrong one may be what is told.
                assert answer.status_code in ((400, 401) if method == "POST" else (401,)), (method, path)
    assert asked > 20


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Bearer"}, "missing_api_key"),
        ({"authorization": "Basic abc"}, "missing_api_key"),
        ({"authorization": "Bearer short"}, "invalid_api_key"),
        ({"authorization": "Bearer " + "x" * 40}, "invalid_api_key"),
        ({"authorization": "Bearer smedje_" + "A" * 43 + "_000000"}, "invalid_api_key"),
        ({"api-key": "y" * 40}, "invalid_api_key"),
    ],
)
def test_a_missing_or_wrong_key_is_a_401(server: Server, headers: dict[str, str], code: str) -> None:
    """The answer says whether a key is missing or wrong, and asks for a bearer key."""
    answer = httpx2.get(server.url + "/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == code
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_works_in_either_header(server: Server) -> None:
    """Authorization: Bearer as OpenAI's client sends it, api-key as Azure's does."""
    for headers in ({"Authorization": f"bearer {server.key}"}, {"api-key": server.key}):
        assert httpx2.get(server.url + "/v1/models", headers=headers).status_code == 200


def test_a_revoked_or_expired_key_no_longer_works(server: Server) -> None:
    """From the moment of revocation or expiry each request is a 401 that says why."""
    key, secret = projects.create_key(server.ctx, server.project, name="short-lived")
    assert server.get("/v1/models", key=secret).status_code == 200
    projects.revoke_key(server.ctx, server.project, key.id)
    assert server.get("/v1/models", key=secret).json()["error"]["code"] == "api_key_revoked"
    _, old = projects.create_key(server.ctx, server.project, name="old", expires_at=1)
    assert server.get("/v1/models", key=old).json()["error"]["code"] == "api_key_expired"


def test_the_project_header_must_name_the_keys_project(server: Server) -> None:
    """Name or id of the key's own project are fine; any other is a 403, whether it exists or not."""
    with server.http() as http:
        for good in (server.project.id, server.project.name):
            assert http.get("/v1/models", headers={"OpenAI-Project": good}).status_code == 200
        answer = http.get("/v1/models", headers={"OpenAI-Project": "proj_other"})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "mismatched_project"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "localhost.", ""])
def test_a_foreign_host_name_is_refused(server: Server, host: str) -> None:
    """A web page that points its own name at this server gets nothing, not even from public routes."""
    answer = httpx2.get(server.url + "/healthz", headers={"host": host})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8321", "[::1]"])
def test_local_host_names_are_fine(server: Server, host: str) -> None:
    """The names of this machine's own loopback work with any port."""
    assert httpx2.get(server.url + "/healthz", headers={"host": host}).status_code == 200


def test_answers_carry_a_request_id_and_no_cross_origin_permission(server: Server) -> None:
    """Each answer has an id of its own; nothing allows other origins to read it, or to frame it."""
    with server.http() as http:
        answers = [http.get("/v1/models", headers={"origin": "https://evil.example"}), http.get("/nowhere")]
        answers.append(http.request("OPTIONS", "/v1/models", headers={"access-control-request-method": "GET"}))
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_route_without_a_permission_stops_the_server(server: Server) -> None:
    """An application with a route that declares no permission does not pass the check that runs at start-up."""
    app = make_app(server.ctx)
    check_routes(app)
    forgotten = APIRouter()

    @forgotten.get("/api/forgotten")
    def anything() -> str:
        return "secret"

    app.include_router(forgotten)
    with pytest.raises(RuntimeError, match="/api/forgotten"):
        check_routes(app)


def test_a_key_is_kept_only_as_its_digest(server: Server) -> None:
    """The secret stands in no row: only its SHA-256, a recognisable beginning and the last four characters."""
    raw = b"".join(path.read_bytes() for path in server.ctx.home.glob("smedje.db*"))
    assert server.key.encode() not in raw
    with server.ctx.database.transaction() as tx:
        key = rows.find_key(tx, projects.secret_digest(server.key))
    assert key is not None
    assert server.key.startswith(key.prefix)
    assert server.key.endswith(key.last_four)
    assert len(key.prefix) < 16


def test_an_unforeseen_error_tells_nothing(server: Server) -> None:
    """A fault inside, here a damaged report in storage, is a 500 in the error shape that gives no detail away."""
    file = server.upload(chat_lines(10) + b"a secret that is no JSON\n")
    server.ctx.objects.put(report_key(file), b"{damaged")
    answer = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file})
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": SERVER_ERROR_TEXT,
        "type": "server_error",
        "param": None,
        "code": "server_error",
    }
    assert answer.headers["x-request-id"]
