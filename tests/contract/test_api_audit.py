"""The audit log: complete, chained, told only to those who may, and free of what people wrote."""

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.api_server import TINY, Server, chat_lines, make_app, serving
from tests.databases import *  # noqa: F403

from smedje.api.state import Services
from smedje.objects.store import open_objects
from smedje.services import audit
from smedje.services.context import Context
from smedje.services.projects import ensure_defaults
from smedje.store.database import Database
from smedje.wiring import EventLine

CANARY = "canary-" + secrets.token_hex(4)


def entries(server: Server) -> list[dict[str, object]]:
    """The project's entries, newest first."""
    found: list[dict[str, object]] = server.get("/api/audit").json()["data"]
    return found


def test_who_did_what_from_where(server: Server) -> None:
    """An entry names the action, the object's id, the key, the address and the request; the answer had that id."""
    with server.http() as http:
        made = http.post("/api/deployments", json={"name": "seen", "model": TINY})
    newest = entries(server)[0]
    assert (newest["action"], newest["object_id"]) == ("deployment.created", made.json()["id"])
    assert (newest["address"], newest["request_id"]) == ("127.0.0.1", made.headers["x-request-id"])
    assert str(newest["key_id"]).startswith("key_")
    assert "seen" not in server.get("/api/audit").text


def test_the_chain_shows_every_tampering(database: Database, tmp_path: Path) -> None:
    """A changed, missing or reordered entry is found where it begins; an untouched chain is sound."""
    ctx = Context(database=database, objects=open_objects("memory:///"), home=tmp_path)
    for number in range(6):
        with database.transaction() as tx:
            audit.record(ctx, tx, "thing.made", audit.Subject(id=f"thing-{number}"), {"n": number})
    sound = audit.verify(ctx)
    assert (sound.entries, sound.broken_at) == (6, None)
    with database.transaction() as tx:
        tx.exec_driver_sql("UPDATE audit SET object_id = 'thing-x' WHERE object_id = 'thing-3'")
    changed = audit.verify(ctx)
    assert changed.entries == 3
    assert changed.broken_at is not None
    with database.transaction() as tx:
        tx.exec_driver_sql("DELETE FROM audit WHERE object_id = 'thing-x'")
    assert audit.verify(ctx).entries == 3


def test_changes_above_projects_are_told_to_those_above(server: Server) -> None:
    """Who made a hub stands in the log of server-wide keys and of no project's."""
    hub = server.post("/api/hubs", {"name": "logged"}).json()["id"]
    assert entries(server)[0]["object_id"] == hub
    made = server.post("/api/keys", {"name": "project owner", "role": "owner"}).json()["secret"]
    assert hub not in server.get("/api/audit", key=made).text


def test_a_failed_change_leaves_no_entry(server: Server) -> None:
    """What was refused is not in the log, because the entry lives and dies with the change."""
    before = len(entries(server))
    server.post("/api/deployments", {"name": "no", "model": "ft:none"})
    server.post("/api/hubs", {"name": "../bad"})
    assert len(entries(server)) == before
    assert server.get("/api/audit/verify").json()["sound"] is True


@pytest.fixture
def logged(server: Server, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server over the same state that logs into a file; its URL and the file."""
    file = tmp_path / "server.log"
    app = make_app(server.ctx)
    assert isinstance(app.state.services, Services)
    with serving(app) as url, file.open("w") as out:
        lines, ours = logging.StreamHandler(out), logging.getLogger("smedje")
        lines.setFormatter(EventLine())
        ours.addHandler(lines)
        ours.setLevel(logging.DEBUG)
        try:
            yield url, file
        finally:
            ours.removeHandler(lines)
            ours.setLevel(logging.CRITICAL)


def test_canaries_reach_neither_log_nor_audit_nor_events(server: Server, logged: tuple[str, Path]) -> None:
    """Words in prompts, rows, file names, tags, descriptions, key names and headers: 0 hits in the three."""
    url, file = logged
    seen = Server(url=url, key=server.key, ctx=server.ctx, project=server.project)
    words = [f"{CANARY}-{n}" for n in range(12)]
    with seen.http() as http:
        http.headers["x-canary"] = words[0]
        http.headers["user-agent"] = words[1]
        chat = {"model": TINY, "messages": [{"role": "user", "content": words[2]}], "max_tokens": 2}
        assert http.post("/v1/chat/completions", json=chat).status_code == 200
        form = {"file": (f"{words[3]}.jsonl", chat_lines(12, text=words[4]))}
        upload = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}).json()["id"]
        body = {"model": TINY, "training_file": upload, "metadata": {"note": words[5]}}
        job = http.post("/v1/fine_tuning/jobs", json=body).json()["id"]
        project = {"name": "quiet", "description": words[6], "tags": {words[7]: words[8]}}
        assert http.post("/api/projects", json=project).status_code == 200
        key = http.post("/api/keys", json={"name": words[9], "role": "reader"}).json()["secret"]
        refusals = [
            http.post("/v1/chat/completions", json={**chat, "messages": [{"role": words[10], "content": "x"}]}),
            http.get("/v1/models", headers={"authorization": f"Bearer {key[:-3]}zzz"}),
            http.get("/v1/files", headers={"OpenAI-Project": words[11]}),
        ]
        assert [answer.status_code for answer in refusals] == [400, 401, 403]
        events = http.get(f"/v1/fine_tuning/jobs/{job}/events").text
        trail = http.get("/api/audit").text
    log = file.read_text()
    assert "/v1/chat/completions" in log
    for place in (log, events, trail):
        assert CANARY not in place
        assert key not in place
        assert server.key not in place
    assert all(key not in answer.text and server.key not in answer.text for answer in refusals)


def test_the_first_key_is_not_in_the_database(tmp_path: Path) -> None:
    """Neither the owner key nor any part of it beyond what identifies it is written to the database."""
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    database.migrate()
    made = ensure_defaults(Context(database=database, objects=open_objects("memory:///"), home=tmp_path), None, "local")
    database.close()
    assert made.new_secret is not None
    assert all(made.new_secret[12:-4].encode() not in path.read_bytes() for path in tmp_path.glob("x.db*"))
