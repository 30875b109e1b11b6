"""The team's story by the command line: hub, project, roles, keys, limits, usage and audit."""

import io
import json
from typing import Any

import pytest
from tests.api_server import TINY, Server, chat_lines

from smedje.cli.main import run
from smedje.domain.ids import USAGE, new_id
from smedje.domain.usage import UsageRecord
from smedje.store import usage as usage_rows

ADA, BO = "ada@example.org", "bo@example.org"


class Shell:
    """Runs commands with a key and a project of their own."""

    def __init__(self, server: Server, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._patch = patch
        patch.setenv("SMEDJE_BASE_URL", server.url)
        patch.setenv("SMEDJE_HOME", str(server.ctx.home))
        self.use(server.key)

    def use(self, key: str, project: str = "") -> None:
        """Go on with this key, in this project."""
        self._patch.setenv("SMEDJE_API_KEY", key)
        self._patch.setenv("SMEDJE_PROJECT", project)

    def json(self, *words: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.text(*words, "--json"))

    def text(self, *words: str, code: int = 0) -> str:
        """What a command prints; standard error where it must fail."""
        found = run(words)
        out, err = self._capsys.readouterr()
        assert found == code, err
        return err if code else out


@pytest.fixture
def smedje(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell whose environment names the server."""
    return Shell(server, capsys, monkeypatch)


def older_usage(server: Server, *, days: int) -> UsageRecord:
    """An answer of the model `long-ago`, so many days ago."""
    return UsageRecord(
        id=new_id(USAGE),
        project_id=server.project.id,
        key_id="key_1",
        kind="inference",
        model="long-ago",
        prompt_tokens=10,
        completion_tokens=5,
        created_at=server.ctx.seconds() - days * 24 * 3600,
    )


def test_a_team_is_set_up_and_each_does_what_the_role_allows(server: Server, smedje: Shell) -> None:
    """Hub, project, two colleagues and their keys; the developer uploads, the reader is refused in words, code 4."""
    hub = smedje.json("hubs", "create", "forge", "--tag", "team=a", "--description", "Bells", "--location", "local")
    assert (hub["tags"], hub["description"], hub["location"]) == ({"team": "a"}, "Bells", "local")
    assert "nowhere" in smedje.text("hubs", "create", "lost", "--location", "nowhere", code=1)
    assert "forge" in smedje.text("hubs", "list")
    assert hub["id"] in smedje.text("hubs", "get", "forge")
    made = smedje.json("projects", "create", "bells", "--hub", "forge", "--description", "Casting")
    assert (made["hub_id"], made["description"]) == (hub["id"], "Casting")
    project = made["id"]
    assert project in smedje.text("projects", "list", "--hub", "forge")
    smedje.use(server.key, project)
    assert "Azure AI Developer in the project" in smedje.text("members", "add", ADA, "--role", "ai_developer")
    smedje.text("members", "add", BO, "--role", "reader")
    assert BO in smedje.text("members", "list")
    assert smedje.json("members", "add", BO, "--role", "reader", "--hub")["scope"] == "hub"
    smedje.text("members", "remove", BO, "--hub")
    assert [one["scope"] for one in smedje.json("members", "list")["data"] if one["email"] == BO] == ["project"]
    keys = {who: smedje.text("keys", "create", f"of {who}", "--member", who).strip() for who in (ADA, BO)}
    file = server.upload(chat_lines(12), key=keys[ADA])
    smedje.use(keys[BO])
    assert file in smedje.text("files", "list")
    assert "permission files.write" in smedje.text("files", "delete", file, code=4)
    smedje.use(server.key, project)
    smedje.text("members", "remove", BO)
    smedje.use(keys[BO])
    assert "The role here: none" in smedje.text("files", "list", code=4)
    smedje.use(server.key, project)
    assert "1 files" in smedje.text("projects", "delete", project, code=6)
    assert smedje.json("projects", "archive", project)["archived_at"] is not None
    assert smedje.json("projects", "archive", project, "--restore")["archived_at"] is None
    assert smedje.json("projects", "get", project)["name"] == "bells"
    smedje.use(server.key)
    assert "bells" in smedje.text("hubs", "delete", "forge", code=6)


def test_keys_limits_usage_and_audit(server: Server, smedje: Shell) -> None:
    """A key turns and ends; a limit is set and taken away; usage and the log are shown, and the log is sound."""
    made = smedje.json("keys", "create", "turning", "--role", "reader", "--days", "3", "--permission", "files.read")
    assert (made["role"], made["permissions"]) == ("reader", ["files.read"])
    assert made["expires_at"] - made["created_at"] == 3 * 24 * 3600
    turned = smedje.json("keys", "rotate", made["id"], "--grace-seconds", "0")
    assert server.get("/v1/files", key=made["secret"]).status_code == 401
    assert server.get("/v1/files", key=turned["secret"]).status_code == 200
    assert turned["secret"] not in smedje.text("keys", "list")
    assert turned["id"] in smedje.text("keys", "list")
    assert "revoked" in smedje.text("keys", "revoke", turned["id"])
    assert "active_jobs" in smedje.text("quotas", "set", "active_jobs", "5")
    assert "No limits." in smedje.text("quotas", "set", "active_jobs", "none")
    assert "No limits." in smedje.text("quotas", "list")
    chat = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    assert server.post("/v1/chat/completions", chat).status_code == 200
    assert TINY in smedje.text("usage")
    assert smedje.text("usage", "--by", "day,model", "--csv").startswith("day,project_id,model")
    assert smedje.json("usage", "--by", "kind")["data"][0]["kind"] == "inference"
    with server.ctx.database.transaction() as tx:
        usage_rows.insert_usage(tx, older_usage(server, days=3))
    assert "long-ago" not in smedje.text("usage", "--days", "2")
    assert "long-ago" in smedje.text("usage", "--days", "4")
    assert "key.revoked" in smedje.text("audit", "list")
    assert smedje.text("audit", "verify").startswith("sound: ")
    with server.ctx.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE audit SET action = 'key.created' WHERE action = 'key.revoked'")
    assert run(["audit", "verify"]) == 1


def test_accounts_and_roles_by_command_line(server: Server, smedje: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account with a password from standard input, a role of the hub's own and somebody who has it; a key tells
    whose it is; a role in use stays; a disabled account's key says so."""

    def typed(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    typed("correct horse battery staple\n")
    assert smedje.text("users", "create", "dee@example.org", "--name", "Dee").startswith("made dee@example.org (user_")
    assert [one["name"] for one in smedje.json("users", "list")["data"] if one["email"] == "dee@example.org"] == ["Dee"]
    typed("short\n")
    assert "12 to 256 characters" in smedje.text("users", "create", "eli@example.org", code=1)
    assert smedje.json("users", "create", "eli@example.org", "--no-password")["password"] is False
    assert "password" in smedje.text("users", "list")
    words = ["roles", "create", "checker", "--permission", "files.read", "--description", "Looks at data"]
    assert "made checker" in smedje.text(*words)
    roles = {one["name"]: one for one in smedje.json("roles", "list")["data"]}
    assert roles["checker"]["description"] == "Looks at data"
    assert "checker allows files.read, models.read" in smedje.text(
        "roles", "update", "checker", "--permission", "files.read", "--permission", "models.read"
    )
    assert "checker" in smedje.text("roles", "list")
    assert "dee@example.org is checker in the project" in smedje.text(
        "members", "add", "dee@example.org", "--role", "checker"
    )
    key = smedje.text("keys", "create", "of dee", "--member", "dee@example.org").strip()
    assert "Give them another role first" in smedje.text("roles", "delete", "checker", code=6)
    smedje.use(key)
    me = smedje.text("users", "me")
    assert "dee@example.org" in me
    assert "checker in default" in me
    assert "files.read, models.read" in me
    smedje.use(server.key)
    assert "is disabled" in smedje.text("users", "disable", "dee@example.org")
    smedje.use(key)
    assert "is disabled" in smedje.text("files", "list", code=4)
    smedje.use(server.key)
    assert "is enabled" in smedje.text("users", "enable", "dee@example.org")
    typed("another good password\n")
    assert "has a new password" in smedje.text("users", "password", "dee@example.org")
    smedje.text("members", "remove", "dee@example.org")
    smedje.text("keys", "revoke", smedje.json("keys", "list")["data"][0]["id"])
    assert "deleted checker" in smedje.text("roles", "delete", "checker")
