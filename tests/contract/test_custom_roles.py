"""Roles of a hub's own making: what they allow, who may make and give them, and where they end."""

from collections.abc import Iterator

import httpx2
import pytest
from tests.api_server import Server, make_project

from smedje.services import projects

ADA, BO = "ada@example.org", "bo@example.org"


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    """The server owner's client."""
    with server.http() as opened:
        yield opened


def code(answer: httpx2.Response) -> str:
    """The error code of an answer."""
    return str(answer.json()["error"]["code"])


def member_key(http: httpx2.Client, email: str, role: str, *, scope: str = "project") -> str:
    """Give somebody a role and make them a key for the same place."""
    given = http.put(f"/api/members/{email}", json={"role": role, "scope": scope})
    assert given.status_code == 200, given.text
    made = http.post("/api/keys", json={"name": email, "member": email, "scope": scope})
    assert made.status_code == 200, made.text
    return str(made.json()["secret"])


def test_a_custom_role_allows_exactly_what_it_names(server: Server, http: httpx2.Client) -> None:
    """Somebody with it does that and nothing else; a change of the role holds at once, by key too; members and keys
    show its name; refusals say it."""
    body = {"name": "labeller", "permissions": ["files.read", "files.write"], "description": "labels texts"}
    made = http.post("/api/roles", json=body).json()
    assert (made["name"], made["built_in"], made["permissions"]) == ("labeller", False, ["files.read", "files.write"])
    key = member_key(http, ADA, "labeller")
    assert server.get("/v1/files", key=key).status_code == 200
    refused = server.get("/v1/models", key=key)
    assert refused.status_code == 403
    assert "The role here: labeller." in refused.json()["error"]["message"]
    assert [one["role_name"] for one in http.get("/api/members").json()["data"] if one["email"] == ADA] == ["labeller"]
    assert http.get("/api/keys").json()["data"][0]["role"] == "labeller"
    http.patch("/api/roles/labeller", json={"permissions": ["models.read"]})
    assert server.get("/v1/models", key=key).status_code == 200
    assert server.get("/v1/files", key=key).status_code == 403
    assert [one["name"] for one in http.get("/api/roles").json()["data"]][:5] == [
        "owner",
        "contributor",
        "ai_developer",
        "deployment_operator",
        "reader",
    ]


def test_nobody_makes_a_role_that_allows_what_they_lack(server: Server, http: httpx2.Client) -> None:
    """A people's officer of the hub makes roles of what they may do, and neither makes, gives, changes nor takes a
    stronger one: not to others, and not to themselves."""
    officer = ["members.read", "members.write", "files.read", "project.read", "keys.read", "keys.write"]
    assert http.post("/api/roles", json={"name": "officer", "permissions": officer}).status_code == 200
    assert http.post("/api/roles", json={"name": "strong", "permissions": ["jobs.write"]}).status_code == 200
    assert http.put(f"/api/members/{BO}", json={"role": "owner"}).status_code == 200
    key = member_key(http, "officer@example.org", "officer", scope="hub")
    with server.http(key) as weak:
        assert weak.post("/api/roles", json={"name": "fine", "permissions": ["files.read"]}).status_code == 200
        tries = [
            weak.post("/api/roles", json={"name": "more", "permissions": ["files.read", "jobs.write"]}),
            weak.patch("/api/roles/fine", json={"permissions": ["jobs.write"]}),
            weak.patch("/api/roles/strong", json={"permissions": ["files.read"]}),
            weak.delete("/api/roles/strong"),
            weak.put("/api/members/officer@example.org", json={"role": "owner", "scope": "hub"}),
            weak.put("/api/members/officer@example.org", json={"role": "strong"}),
            weak.put(f"/api/members/{BO}", json={"role": "fine"}),
            weak.delete(f"/api/members/{BO}"),
        ]
        assert {(answer.status_code, code(answer)) for answer in tries} == {(403, "role_too_strong")}
        assert code(weak.post("/api/keys", json={"name": "k", "role": "strong"})) == "key_too_strong"
        assert weak.put("/api/members/new@example.org", json={"role": "fine"}).status_code == 200


def test_a_role_in_use_stays_and_its_name_is_free_afterwards(server: Server, http: httpx2.Client) -> None:
    """Deletion is refused naming who has it; when nobody has, it is gone and another may have the name; ended keys
    still say what they were."""
    made = http.post("/api/roles", json={"name": "brief", "permissions": ["files.read"]}).json()
    http.put("/api/members/cy@example.org", json={"role": "brief"})
    key = http.post("/api/keys", json={"name": "k", "role": "brief"}).json()
    refused = http.delete("/api/roles/brief")
    assert (refused.status_code, code(refused)) == (409, "role_in_use")
    assert key["id"] in refused.json()["error"]["message"]
    http.delete("/api/members/cy@example.org")
    http.delete(f"/api/keys/{key['id']}")
    assert http.delete("/api/roles/brief").json()["id"] == made["id"]
    assert code(http.put("/api/members/cy@example.org", json={"role": "brief"})) == "unknown_role"
    assert http.post("/api/roles", json={"name": "brief", "permissions": ["chat"]}).status_code == 200
    assert key["id"] in [one["id"] for one in http.get("/api/keys").json()["data"]]


def test_a_role_is_known_in_its_hub_alone(server: Server, http: httpx2.Client) -> None:
    """Another hub neither sees nor gives it, by name or by id, and may have one of the same name."""
    made = http.post("/api/roles", json={"name": "ours", "permissions": ["files.read"]}).json()
    project, _ = make_project(server.ctx, "elsewhere")
    http.headers["openai-project"] = project.id
    names = [one["name"] for one in http.get("/api/roles").json()["data"]]
    assert "ours" not in names
    for word in ("ours", made["id"]):
        assert code(http.put(f"/api/members/{ADA}", json={"role": word})) == "unknown_role"
        assert code(http.delete(f"/api/roles/{word}")) == "role_not_found"
    assert http.post("/api/roles", json={"name": "ours", "permissions": ["chat"]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"name": "owner", "permissions": ["chat"]}, "invalid_name"),
        ({"name": "Azure AI Developer", "permissions": ["chat"]}, "invalid_name"),
        ({"name": "a b", "permissions": ["chat"]}, "invalid_name"),
        ({"name": "../x", "permissions": ["chat"]}, "invalid_name"),
        ({"name": "none", "permissions": []}, "invalid_value"),
        ({"name": "none", "permissions": ["everything"]}, "invalid_value"),
        ({"name": "none"}, "missing_field"),
        ({"name": "none", "permissions": ["chat"], "admin": True}, "unknown_field"),
    ],
)
def test_a_role_needs_a_name_of_its_own_and_known_permissions(
    http: httpx2.Client, body: dict[str, object], wanted: str
) -> None:
    """A built-in role's word or title, an odd name, nothing to allow and unknown words are refused by field."""
    answer = http.post("/api/roles", json=body)
    assert (answer.status_code, code(answer)) == (400, wanted)


def test_a_project_owner_gives_the_hubs_roles_but_does_not_make_them(server: Server, http: httpx2.Client) -> None:
    """A role belongs to the hub: making one needs members.write there; giving one in the project does not."""
    assert http.post("/api/roles", json={"name": "shared", "permissions": ["chat"]}).status_code == 200
    _, secret = projects.create_key(server.ctx, server.project, name="project owner")
    with server.http(secret) as owner:
        assert owner.post("/api/roles", json={"name": "mine", "permissions": ["chat"]}).status_code == 403
        assert owner.put("/api/members/dee@example.org", json={"role": "shared"}).status_code == 200
        assert owner.put("/api/members/dee@example.org", json={"role": "shared", "scope": "hub"}).status_code == 403
