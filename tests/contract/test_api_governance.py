"""The team's story: a hub, a project, roles for colleagues, keys that carry them, and what each refusal says."""

import pytest
from tests.api_server import TINY, Server, chat_lines

ADA, BO, CY = "ada@example.org", "bo@example.org", "cy@example.org"


@pytest.fixture(scope="module")
def team(server: Server) -> dict[str, str]:
    """A hub with a project; Ada builds there, Bo reads, Cy deploys. Ids and secrets."""
    hub = server.post("/api/hubs", {"name": "nordic", "description": "Support models", "tags": {"team": "a"}})
    assert hub.status_code == 200, hub.text
    project = server.post("/api/projects", {"name": "support", "hub": "nordic"}).json()["id"]
    found = {"hub": hub.json()["id"], "project": project}
    with server.http() as http:
        http.headers["OpenAI-Project"] = project
        for member, role in ((ADA, "ai_developer"), (BO, "reader"), (CY, "deployment_operator")):
            given = http.put(f"/api/members/{member}", json={"role": role, "scope": "project"})
            assert given.status_code == 200, given.text
            made = http.post("/api/keys", json={"name": f"key of {member}", "member": member})
            assert made.status_code == 200, made.text
            found[member] = made.json()["secret"]
    return found


def test_a_hub_has_the_fields_that_were_given(server: Server, team: dict[str, str]) -> None:
    """Name, location, tags and the rest come back, by name as by id; other fields have their defaults."""
    hub = server.get("/api/hubs/nordic").json()
    assert hub == server.get(f"/api/hubs/{team['hub']}").json()
    assert (hub["name"], hub["location"], hub["tags"]) == ("nordic", "local", {"team": "a"})
    assert (hub["description"], hub["ai_services"], hub["search"]) == ("Support models", None, None)


WORDS = {
    "display_name": "Nordic models",
    "description": "For the north",
    "subscription": "sub-1",
    "resource_group": "rg-1",
    "ai_services": "speech",
    "search": "index-1",
    "tags": {"team": "b"},
}


def test_what_is_said_of_a_hub_or_project_can_be_said_anew(server: Server) -> None:
    """Each field of a new hub and of its change comes back; what a change leaves out stays. A project's alike."""
    for where, words in (("hubs", WORDS), ("projects", {n: WORDS[n] for n in ("display_name", "description", "tags")})):
        made = server.post(f"/api/{where}", {"name": "worded", **words}).json()
        assert {name: made[name] for name in words} == words
        for name in words:
            value = {"team": "c"} if name == "tags" else f"other {name}"
            with server.http() as http:
                made |= {name: value, "archived_at": None}
                assert http.patch(f"/api/{where}/{made['id']}", json={name: value}).json() == made
                assert http.patch(f"/api/{where}/{made['id']}", json={"archived": True}).json()["archived_at"]
                assert http.patch(f"/api/{where}/{made['id']}", json={"archived": False}).json() == made


def test_accounts_are_listed_page_by_page(server: Server) -> None:
    """`after` goes on behind an account, the newest first."""
    for number in range(3):
        server.post("/api/users", {"email": f"page-{number}@example.org"})
    whole = [one["id"] for one in server.get("/api/users").json()["data"]]
    rest = [one["id"] for one in server.get(f"/api/users?after={whole[0]}&limit=1").json()["data"]]
    assert rest == whole[1:2]


def test_a_developer_tunes_and_deploys_but_manages_no_hub(server: Server, team: dict[str, str]) -> None:
    """Ada uploads, starts a job and deploys in the project; a new hub, a key or a role are refused in words."""
    key = team[ADA]
    file = server.upload(chat_lines(12), key=key)
    assert server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file}, key=key).status_code == 200
    assert server.post("/api/deployments", {"name": "ada", "model": TINY}, key=key).status_code == 200
    refused = {
        "hubs.write": server.post("/api/hubs", {"name": "mine"}, key=key),
        "projects.create": server.post("/api/projects", {"name": "mine", "hub": "nordic"}, key=key),
        "keys.write": server.post("/api/keys", {"name": "k", "role": "reader"}, key=key),
    }
    with server.http(key) as http:
        refused["project.write"] = http.patch(f"/api/projects/{team['project']}", json={"archived": True})
        refused["members.write"] = http.put(f"/api/members/{BO}", json={"role": "owner"})
    for permission, answer in refused.items():
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "permission_denied"), (permission, error)
        assert f"needs the permission {permission} " in error["message"]
        assert "The role here: Azure AI Developer" in error["message"] or "none" in error["message"]
        assert "It is part of Owner" in error["message"]


def test_a_reader_looks_and_cannot_tune(server: Server, team: dict[str, str]) -> None:
    """Bo sees jobs and files; starting a job is refused with the permission and the roles that have it."""
    assert server.get("/v1/fine_tuning/jobs", key=team[BO]).status_code == 200
    answer = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": "file-x"}, key=team[BO])
    assert answer.status_code == 403
    assert answer.json()["error"]["message"] == (
        "This needs the permission jobs.write in this project. The role here: Reader. It is part of Owner, Contributor "
        "and Azure AI Developer. Ask an owner."
    )


def test_an_operator_deploys_and_cannot_tune(server: Server, team: dict[str, str]) -> None:
    """Cy deploys a model; neither a job nor even the list of files is Cy's to see."""
    assert server.post("/api/deployments", {"name": "cy", "model": TINY}, key=team[CY]).status_code == 200
    for answer in (
        server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": "file-x"}, key=team[CY]),
        server.get("/v1/files", key=team[CY]),
    ):
        assert answer.status_code == 403
        assert "Azure AI Inference Deployment Operator" in answer.json()["error"]["message"]


def test_a_role_taken_back_ends_what_its_keys_can_do(server: Server, team: dict[str, str]) -> None:
    """A member's key does nothing more once the role is gone, and does it again when the role is back."""
    with server.http() as http:
        http.headers["OpenAI-Project"] = team["project"]
        assert http.delete(f"/api/members/{BO}").status_code == 200
        assert server.get("/v1/files", key=team[BO]).status_code == 403
        assert "The role here: none" in server.get("/v1/files", key=team[BO]).json()["error"]["message"]
        assert http.put(f"/api/members/{BO}", json={"role": "reader", "scope": "hub"}).status_code == 200
        assert server.get("/v1/files", key=team[BO]).status_code == 200
        assert [one["scope"] for one in http.get("/api/members").json()["data"] if one["email"] == BO] == ["hub"]


def test_the_header_picks_a_project_that_the_key_may_act_in(server: Server, team: dict[str, str]) -> None:
    """A role in the hub opens each of its projects by name; a role in one project opens no other."""
    other = server.post("/api/projects", {"name": "second", "hub": "nordic"}).json()["id"]
    with server.http() as http:
        http.headers["OpenAI-Project"] = team["project"]
        wide = http.post("/api/keys", json={"name": "wide", "member": BO, "scope": "hub"}).json()["secret"]
    for key, status in ((wide, 200), (team[BO], 403), (team[ADA], 403)):
        with server.http(key) as http:
            assert http.get("/v1/files", headers={"OpenAI-Project": "second"}).status_code == status
            assert http.get("/v1/files", headers={"OpenAI-Project": other}).status_code == status
    assert [p["name"] for p in server.get("/api/projects", key=wide).json()["data"]] == ["support", "second"]
    assert [p["name"] for p in server.get("/api/projects", key=team[BO]).json()["data"]] == ["support"]
    assert [p["name"] for p in server.get("/api/projects", key=team[ADA]).json()["data"]] == ["support"]


def test_no_key_is_stronger_than_its_maker(server: Server, team: dict[str, str]) -> None:
    """A contributor makes keys up to Contributor; an owner of a project none that reaches beyond the project."""
    made = server.post("/api/keys", {"name": "contributor", "role": "contributor"}).json()
    answer = server.post("/api/keys", {"name": "boss", "role": "owner"}, key=made["secret"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "key_too_strong")
    assert "members.write" in answer.json()["error"]["message"]
    assert server.post("/api/keys", {"name": "same", "role": "contributor"}, key=made["secret"]).status_code == 200
    owner = server.post("/api/keys", {"name": "project owner", "role": "owner"}).json()["secret"]
    assert server.post("/api/keys", {"name": "up", "role": "owner", "scope": "server"}, key=owner).status_code == 403
    assert server.post("/api/hubs", {"name": "mine"}, key=owner).status_code == 403


def test_a_narrow_key_does_only_what_it_was_given(server: Server) -> None:
    """A key of a role with a few permissions named does those and says so for the others."""
    body = {"name": "chat only", "role": "owner", "permissions": ["chat", "models.read"]}
    key = server.post("/api/keys", body).json()["secret"]
    assert server.get("/v1/models", key=key).status_code == 200
    answer = server.get("/v1/files", key=key)
    assert answer.status_code == 403
    assert "only some of its role's permissions" in answer.json()["error"]["message"]
    wrong = server.post("/api/keys", {**body, "permissions": ["everything"]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "permissions")


def test_rotation_drops_no_request(server: Server) -> None:
    """Old and new secret both work in the grace period; with none, the old one ends at once."""
    made = server.post("/api/keys", {"name": "turning", "role": "reader"}).json()
    turned = server.post(f"/api/keys/{made['id']}/rotate", {}).json()
    assert turned["id"] != made["id"]
    for secret in (made["secret"], turned["secret"]):
        assert server.get("/v1/models", key=secret).status_code == 200
    last = server.post(f"/api/keys/{turned['id']}/rotate", {"grace_seconds": 0}).json()
    assert server.get("/v1/models", key=turned["secret"]).json()["error"]["code"] == "api_key_expired"
    assert server.get("/v1/models", key=last["secret"]).status_code == 200
    again = server.post(f"/api/keys/{turned['id']}/rotate", {})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "key_ended")
    listed = {key["id"]: key for key in server.get("/api/keys").json()["data"]}
    assert listed[last["id"]]["last_used_at"] is not None
    assert last["secret"] not in server.get("/api/keys").text


def test_projects_and_hubs_are_deleted_only_when_empty(server: Server) -> None:
    """The refusal counts what is inside; afterwards the name is free and the keys have ended."""
    server.post("/api/hubs", {"name": "brief"})
    project = server.post("/api/projects", {"name": "brief", "hub": "brief"}).json()["id"]
    with server.http() as http:
        http.headers["OpenAI-Project"] = project
        key = http.post("/api/keys", json={"name": "k", "role": "owner"}).json()["secret"]
    file = server.upload(chat_lines(12), key=key)
    with server.http() as http:
        refused = http.delete(f"/api/projects/{project}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "project_not_empty")
        assert "1 files" in refused.json()["error"]["message"]
        assert http.delete("/api/hubs/brief").json()["error"]["code"] == "hub_not_empty"
        assert server.client(key).files.delete(file).deleted
        assert http.delete(f"/api/projects/{project}").json()["deleted"]
        assert http.get(f"/api/projects/{project}").status_code == 404
        assert server.get("/v1/files", key=key).json()["error"]["code"] == "api_key_revoked"
        assert http.delete("/api/hubs/brief").json()["deleted"]
        assert http.post("/api/hubs", json={"name": "brief"}).status_code == 200
        assert http.delete("/api/hubs/brief").json()["deleted"]
        assert http.delete(f"/api/projects/{server.project.id}").json()["error"]["code"] == "default_stays"


def test_an_archived_project_is_read_only(server: Server) -> None:
    """Reading goes on, changes are refused with what to do, and restoring lets them through again."""
    project = server.post("/api/projects", {"name": "old"}).json()["id"]
    with server.http() as http:
        http.headers["OpenAI-Project"] = project
        assert http.patch(f"/api/projects/{project}", json={"archived": True}).json()["archived_at"]
        assert http.get("/v1/files").status_code == 200
        refused = http.post("/api/deployments", json={"name": "d", "model": TINY})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "project_archived")
        assert http.patch(f"/api/projects/{project}", json={"archived": False}).json()["archived_at"] is None
        assert http.post("/api/deployments", json={"name": "d", "model": TINY}).status_code == 200


HOSTILE = ["../../etc", "<script>", "a" * 10_000, "\u202etxt", "a\x00b", "ünïcode", "", " ", "a/b", "-a"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_refused(server: Server, name: str) -> None:
    """Neither a hub nor a project takes a name that could be a path, markup or a trick of writing."""
    for path in ("/api/hubs", "/api/projects"):
        answer = server.post(path, {"name": name})
        assert answer.status_code == 400, name
        assert answer.json()["error"]["param"] == "name"
