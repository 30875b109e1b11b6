"""OpenAI's audit-log route with the official client: events, actors, filters, pages, and what each may see."""

import time
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from tests.api_server import Server, make_project
from tests.people import PASSWORD, SAME_ORIGIN, browser, log_in, make_person

ADA = "ada@example.org"


@pytest.fixture(scope="module")
def story(server: Server) -> dict[str, Any]:
    """Some people's doings: ids of what they did it to."""
    ada = make_person(server, ADA, role="owner")
    with httpx2.Client(base_url=server.url, headers=SAME_ORIGIN) as http:
        log_in(http, ADA, "wrong wrong wrong")
    with browser(server, ADA) as http:
        key = http.post("/api/keys", json={"name": "k", "role": "reader"}).json()
        http.post(f"/api/keys/{key['id']}/rotate", json={})
        http.delete(f"/api/keys/{key['id']}")
        http.post("/logout")
    server.post("/api/roles", {"name": "auditor", "permissions": ["audit.read"]})
    with server.http() as http:
        http.put("/api/quotas", json={"name": "active_jobs", "value": 3})
        http.put("/api/members/ci@services.internal", json={"role": "owner"})
        made = http.post("/api/keys", json={"name": "ci", "member": "ci@services.internal"}).json()
    server.post("/api/keys", {"name": "by ci", "role": "reader"}, key=made["secret"])
    theirs, their_key = make_project(server.ctx, "theirs")
    server.post("/api/keys", {"name": "their reader", "role": "reader"}, key=their_key)
    return {"ada": ada.id, "key": key["id"], "ci_key": made["id"], "theirs": theirs.id, "their_key": their_key}


def logs(client: OpenAI, **filters: Any) -> list[Any]:
    """Every entry that meets the filters, newest first, page by page."""
    return list(client.admin.organization.audit_logs.list(**filters))


@pytest.fixture
def admin(server: Server) -> OpenAI:
    """The official client with the server owner's key as its admin key."""
    return OpenAI(base_url=f"{server.url}/v1", api_key=server.key, admin_api_key=server.key, max_retries=0)


def test_events_have_openais_names_and_shapes(admin: OpenAI, story: dict[str, Any]) -> None:
    """Sign-ins, failures, keys, roles and limits are told as OpenAI tells them, with actor, project and details."""
    found = {one.type: one for one in logs(admin)}
    wanted = {
        "login.succeeded",
        "login.failed",
        "logout.succeeded",
        "api_key.created",
        "api_key.updated",
        "api_key.deleted",
        "role.created",
        "role.assignment.created",
        "rate_limit.updated",
        "user.added",
    }
    assert wanted <= set(found)
    login = found["login.succeeded"]
    assert login.actor.type == "session"
    assert (login.actor.session.user.id, login.actor.session.user.email) == (story["ada"], ADA)
    assert login.actor.session.ip_address == "127.0.0.1"
    assert found["login.failed"].actor.session.user.email == ADA
    deleted = found["api_key.deleted"]
    assert (deleted.actor.session.user.email, deleted.api_key_deleted.id) == (ADA, story["key"])
    assert deleted.project.name == "default"
    assert abs(deleted.effective_at - time.time()) < 300
    assigned = found["role.assignment.created"].role_assignment_created
    assert (assigned.id, assigned.resource_type) == ("owner", "project")
    assert found["role.created"].role_created.permissions == ["audit.read"]
    by_ci = logs(admin, actor_ids=[story["ci_key"]])
    assert [one.type for one in by_ci] == ["api_key.created"]
    assert by_ci[0].actor.api_key.type == "service_account"


def test_filters_narrow_and_combine(admin: OpenAI, server: Server, story: dict[str, Any]) -> None:
    """By event, actor, address, object, project and time; filters of different kinds all have to fit."""
    everything = logs(admin)
    by_type = logs(admin, event_types=["api_key.created", "login.failed"])
    assert {one.type for one in by_type} == {"api_key.created", "login.failed"}
    assert len(by_type) == sum(one.type in ("api_key.created", "login.failed") for one in everything)
    mine = logs(admin, actor_emails=[ADA])
    assert {one.id for one in mine} == {one.id for one in logs(admin, actor_ids=[story["ada"]])}
    assert {"login.succeeded", "api_key.created", "logout.succeeded"} <= {one.type for one in mine}
    assert logs(admin, actor_emails=["nobody@example.org"]) == []
    about = logs(admin, resource_ids=[story["key"]], event_types=["api_key.deleted"])
    assert [one.type for one in about] == ["api_key.deleted"]
    assert {one.project.id for one in logs(admin, project_ids=[story["theirs"]])} == {story["theirs"]}
    now = int(time.time())
    assert logs(admin, effective_at={"gt": now + 60}) == []
    assert len(logs(admin, effective_at={"gte": now - 600, "lte": now + 60})) == len(everything)
    moments = {one.effective_at for one in logs(admin, effective_at={"lt": everything[0].effective_at})}
    assert all(moment < everything[0].effective_at for moment in moments)


def test_pages_go_both_ways(server: Server, story: dict[str, Any]) -> None:
    """after leads to older entries and before to newer ones; walking back gives the same pages."""

    def page(query: str) -> dict[str, Any]:
        found: dict[str, Any] = server.get(f"/v1/organization/audit_logs?limit=4{query}").json()
        return found

    first = page("")
    second = page(f"&after={first['last_id']}")
    third = page(f"&after={second['last_id']}")
    assert first["has_more"] is True
    back = page(f"&before={third['first_id']}")
    assert [one["id"] for one in back["data"]] == [one["id"] for one in second["data"]]
    top = page(f"&before={second['first_id']}")
    assert [one["id"] for one in top["data"]] == [one["id"] for one in first["data"]]
    assert top["has_more"] is False


@pytest.mark.parametrize(
    "query",
    ["effective_at[gt]=yesterday", "effective_at[lt]=-1", "after=a&before=b", "limit=0", "limit=101", "colour=red"],
)
def test_a_query_that_means_nothing_is_a_400(server: Server, query: str) -> None:
    """The answer names the parameter."""
    answer = server.get(f"/v1/organization/audit_logs?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"]


def test_each_sees_the_log_of_their_own_places(server: Server, story: dict[str, Any]) -> None:
    """A project's owner sees that project's entries and no other's, whatever the filter asks for; a foreign entry is
    no cursor."""
    mine = server.get("/v1/organization/audit_logs?limit=100", key=story["their_key"]).json()["data"]
    assert mine
    assert {one["project"]["id"] for one in mine} == {story["theirs"]}
    other = f"/v1/organization/audit_logs?project_ids[]={server.project.id}"
    assert server.get(other, key=story["their_key"]).json()["data"] == []
    newest = server.get("/v1/organization/audit_logs?limit=1").json()["data"][0]["id"]
    foreign = [one["id"] for one in server.get("/v1/organization/audit_logs?limit=100").json()["data"]]
    outside = next(one for one in [newest, *foreign] if one not in {entry["id"] for entry in mine})
    assert server.get(f"/v1/organization/audit_logs?after={outside}", key=story["their_key"]).status_code == 404


def test_no_words_of_people_are_in_it(server: Server, story: dict[str, Any]) -> None:
    """Neither passwords nor names of keys or roles are in the log that the route is made of."""
    text = server.get("/v1/organization/audit_logs?limit=100").text
    assert PASSWORD not in text
    assert "their reader" not in text
    assert server.get("/api/audit/verify").json()["sound"] is True
