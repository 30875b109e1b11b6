"""Every route against every caller and every object: ours, another project's, nobody's. Generated from the schema.

Each cell is pinned in isolation_matrix.txt, so that a new route fails here until its row has been looked at. After a
change on purpose run this file with UPDATE_SNAPSHOTS=1 and read the difference.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api_server import TINY, Server, chat_lines, make_app, make_project
from tests.people import SAME_ORIGIN, session_secret

from smedje.api.auth import PUBLIC_ROUTES, SESSION_COOKIE
from smedje.domain.catalog import FineTunedModel
from smedje.domain.ids import ERASURE, KEY, MEMBER, ROLE, WEBHOOK, new_id
from smedje.domain.projects import Assignment, Member, Project, Role
from smedje.domain.roles import CustomRole, Permission
from smedje.domain.upkeep import Erasure, ErasureState
from smedje.domain.webhooks import EventType, Webhook
from smedje.services import projects, sessions
from smedje.store import catalog as model_rows
from smedje.store import members as member_rows
from smedje.store import roles as role_rows
from smedje.store import upkeep as upkeep_rows
from smedje.store import webhooks as webhook_rows

SNAPSHOT = Path(__file__).with_name("isolation_matrix.txt")
NOBODIES = ("no key", "malformed", "revoked", "expired", "ended session")
# Browser sessions: of somebody with a role in the project, and of somebody without any role anywhere.
SESSIONS = ("developer's session", "session without a role")
ROLES = tuple(Role)
# What the schema alone cannot say: a body that goes as far as the objects that it names.
MESSAGES = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BODIES: dict[str, Any] = {
    "POST /v1/chat/completions": MESSAGES,
    "POST /models/chat/completions": MESSAGES,
    "POST /openai/deployments/{name}/chat/completions": {"messages": MESSAGES["messages"], "max_tokens": 1},
    "POST /openai/deployments/{name}/completions": {"prompt": "hi", "max_tokens": 1},
    # Takes away a limit that is not there, so that none stands in the way of the rows that follow.
    "PUT /api/quotas": {"name": "active_jobs", "value": None},
    "POST /v1/completions": {"model": TINY, "prompt": "hi", "max_tokens": 1},
    "PUT /api/members/{member}": {"role": "reader"},
    "PATCH /api/deployments/{name}": {"model": TINY},
    "POST /api/deployments/{name}/rollback": {"revision": 1},
    "POST /api/roles": {"name": "x", "permissions": ["files.read"]},
}
# Changes nothing that outlives the answer but usage, which has rows of its own.
NOT_AUDITED = ("completions", "/estimate", "/test", "/checkpoints", "/events", "/uploads")
# Giving a role invites whoever has the address, known here or not.
INVITING = "PUT /api/members/{member}"


@dataclass
class World:
    """Two projects on one server: whose keys there are, and objects of each kind."""

    server: Server
    ours: Project
    theirs: Project
    owner: dict[str, str]
    callers: dict[str, dict[str, str]]
    job_files: dict[str, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def make(self, kind: str, project: Project) -> str:
        """A fresh object of this kind in a project; the value of the path parameter that names it."""
        return MAKERS[kind](self, project)


def a_file(world: World, project: Project) -> str:
    return world.server.upload(chat_lines(12), key=world.owner[project.id])


def a_job(world: World, project: Project) -> str:
    if project.id not in world.job_files:
        world.job_files[project.id] = a_file(world, project)
    body = {"model": TINY, "training_file": world.job_files[project.id]}
    return str(world.server.post("/v1/fine_tuning/jobs", body, key=world.owner[project.id]).json()["id"])


def a_model(world: World, project: Project) -> str:
    name = f"ft:{TINY}:p:s{next(world.numbers)}:AbCd1234"
    job = a_job(world, project)
    with world.server.ctx.database.transaction() as tx:
        model_rows.insert_model(
            tx,
            FineTunedModel(
                id=name,
                project_id=project.id,
                base_model=TINY,
                job_id=job,
                suffix="s",
                checkpoint_key=f"runs/{job}/checkpoints/3",
                step=3,
                created_at=5,
            ),
        )
    return name


def a_deployment(world: World, project: Project) -> str:
    name = f"d{next(world.numbers)}"
    made = world.server.post("/api/deployments", {"name": name, "model": TINY}, key=world.owner[project.id])
    assert made.status_code == 200, made.text
    return name


def a_member(world: World, project: Project) -> str:
    member = Member(id=new_id(MEMBER), email=f"m{next(world.numbers)}@example.org", name="M", created_at=1)
    with world.server.ctx.database.transaction() as tx:
        member_rows.insert_member(tx, member)
        given = Assignment(
            member_id=member.id, hub_id=project.hub_id, project_id=project.id, role=Role.READER, created_at=1
        )
        member_rows.put_assignment(tx, given)
    return member.email


def an_upload(world: World, project: Project) -> str:
    body = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
    made = world.server.post("/v1/uploads", body, key=world.owner[project.id])
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def a_webhook(world: World, project: Project) -> str:
    webhook = Webhook(
        id=new_id(WEBHOOK),
        project_id=project.id,
        name="w",
        url="http://127.0.0.1/",
        event_types=(EventType.JOB_FAILED,),
        secret_version=1,
        created_at=1,
        updated_at=1,
    )
    with world.server.ctx.database.transaction() as tx:
        webhook_rows.insert_webhook(tx, webhook)
    return webhook.id


def a_role(world: World, project: Project) -> str:
    # Of the hub that a project lies in, which only roles of the hub may change.
    role = CustomRole(
        id=new_id(ROLE),
        hub_id=project.hub_id,
        name=f"r{next(world.numbers)}",
        description="",
        permissions=frozenset({Permission.FILES_READ}),
        created_at=1,
    )
    with world.server.ctx.database.transaction() as tx:
        role_rows.insert_role(tx, role)
    return role.id


def an_erasure(world: World, project: Project) -> str:
    erasure = Erasure(
        id=new_id(ERASURE),
        project_id=project.id,
        created_at=1,
        state=ErasureState.DONE,
        leftovers=(),
        certificate="{}",
        sha256="0" * 64,
    )
    with world.server.ctx.database.transaction() as tx:
        upkeep_rows.insert_erasure(tx, erasure)
    return erasure.id


# Path parameter -> how to make what it names. A new parameter needs a line here and one in NEVER.
MAKERS: Mapping[str, Callable[[World, Project], str]] = {
    "file_id": a_file,
    "job_id": a_job,
    "model": a_model,
    "name": a_deployment,
    "hub": lambda world, project: project.hub_id,
    "project": lambda world, project: project.id,
    "member": a_member,
    "key_id": lambda world, project: projects.create_key(world.server.ctx, project, name="k", role=Role.READER)[0].id,
    "upload_id": an_upload,
    "webhook_id": a_webhook,
    "erasure_id": an_erasure,
    "role": a_role,
    "user": a_member,
}
NEVER = {
    "file_id": "file-" + "x" * 24,
    "job_id": "ftjob-" + "x" * 24,
    "model": f"ft:{TINY}:p:never:AbCd1234",
    "name": "never",
    "hub": "hub_" + "x" * 24,
    "project": "proj_" + "x" * 24,
    "member": "nobody@example.org",
    "key_id": KEY + "x" * 24,
    "upload_id": "upload_" + "x" * 24,
    "webhook_id": WEBHOOK + "x" * 24,
    "erasure_id": ERASURE + "x" * 24,
    "role": ROLE + "x" * 24,
    "user": "nobody@example.org",
}
# Parts of a path that name nothing by themselves.
FIXED = {"kind": "embeddings", "row": "1", "file": "README.md", "slot": "primary"}


@pytest.fixture(scope="module")
def world(server: Server) -> World:
    """Keys and sessions of every sort in the first project, and a second project beside it."""
    ctx = server.ctx
    ours, our_owner = make_project(ctx, "ours")
    theirs, their_owner = make_project(ctx, "theirs")
    made = {role.value: projects.create_key(ctx, ours, name=role.value, role=role)[1] for role in ROLES}
    ended, revoked = projects.create_key(ctx, ours, name="revoked")
    projects.revoke_key(ctx, ours, ended.id)
    expired = projects.create_key(ctx, ours, name="expired", expires_at=1)[1]
    over = session_secret(server, "over@example.org")
    sessions.sign_out(ctx, over)
    hub_key, hub_secret = projects.create_key(ctx, ours, name="hub owner")
    signed_in = dict(zip(SESSIONS, (session_secret(server, f"s{n}@example.org") for n in range(2)), strict=True))
    with ctx.database.transaction() as tx:
        tx.exec_driver_sql(f"UPDATE api_keys SET scope = 'hub' WHERE id = '{hub_key.id}'")
        developer = member_rows.find_member(tx, "s0@example.org")
        assert developer is not None
        given = Assignment(
            member_id=developer.id, hub_id=ours.hub_id, project_id=ours.id, role=Role.AI_DEVELOPER, created_at=1
        )
        member_rows.put_assignment(tx, given)
    callers = {
        "no key": {},
        **{name: bearer(key) for name, key in zip(NOBODIES[1:4], (revoked[:-1] + "!", revoked, expired), strict=True)},
        "ended session": cookie(over),
        **{name: bearer(key) for name, key in made.items()},
        "hub owner": bearer(hub_secret),
        **{name: cookie(secret) for name, secret in signed_in.items()},
        "stranger": bearer(their_owner),
    }
    owner = {ours.id: our_owner, theirs.id: their_owner}
    return World(server=server, ours=ours, theirs=theirs, owner=owner, callers=callers)


def bearer(key: str) -> dict[str, str]:
    """The header of an API key."""
    return {"authorization": f"Bearer {key}"}


def cookie(secret: str) -> dict[str, str]:
    """The headers of a browser's session, on a page of the server's own."""
    return {"cookie": f"{SESSION_COOKIE}={secret}", **SAME_ORIGIN}


def sample(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Any:
    """The smallest value that a JSON schema asks for."""
    if "$ref" in schema:
        return sample(defs[schema["$ref"].rpartition("/")[2]], defs)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return sample(schema[word][0], defs)
    if "enum" in schema or "const" in schema:
        return schema["const"] if "const" in schema else schema["enum"][-1]
    match schema.get("type"):
        case "object":
            return {name: sample(schema["properties"][name], defs) for name in schema.get("required", ())}
        case "array":
            return [sample(schema["items"], defs)] if schema.get("minItems") else []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
    return "x"


def routes(server: Server) -> list[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """Method, path, operation and component schemas of every route."""
    schema = make_app(server.ctx).openapi()
    return [
        (method.upper(), path, operation, schema["components"]["schemas"])
        for path, operations in sorted(schema["paths"].items())
        for method, operation in sorted(operations.items())
    ]


def ask(
    http: httpx2.Client, headers: Mapping[str, str], method: str, url: str, options: Mapping[str, Any]
) -> httpx2.Response:
    """One request."""
    return http.request(method, url, headers=dict(headers), **options)


def told(answer: httpx2.Response) -> str:
    """Status and error code, the part of an answer that is pinned."""
    if answer.status_code < 400:
        return str(answer.status_code)
    body = answer.json()
    return f"{answer.status_code} {(body.get('error') or {}).get('code')}"


def how(route: str, operation: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """Query and body of a route's request."""
    options: dict[str, Any] = {
        "params": {
            one["name"]: TINY if one["name"] == "model" else sample(one["schema"], defs)
            for one in operation.get("parameters", ())
            if one["in"] == "query" and one.get("required")
        }
    }
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        options["json"] = BODIES.get(route, sample(content["application/json"]["schema"], defs))
    elif content:
        options |= {"files": {"file": ("a.jsonl", chat_lines(12))}, "data": {"purpose": "fine-tune"}}
    return options


def entries(world: World) -> int:
    """How many audit entries there are."""
    with world.server.ctx.database.transaction() as tx:
        return int(tx.exec_driver_sql("SELECT count(*) FROM audit").scalar_one())


def rows_of(world: World, http: httpx2.Client, method: str, path: str, options: Mapping[str, Any]) -> Iterator[str]:
    """The cells of one route, one line an object, and the laws that hold in every row."""
    kind = next((name for name in MAKERS if f"{{{name}}}" in path), None)
    route = f"{method} {path}"
    callers = {**world.callers}
    stranger = callers.pop("stranger")

    def url(value: str | None) -> str:
        text = path if kind is None or value is None else path.replace(f"{{{kind}}}", value)
        for name, fixed in FIXED.items():
            text = text.replace(f"{{{name}}}", fixed)
        assert "{" not in text, f"{route}: say in MAKERS and NEVER what this parameter names"
        return text

    kept = world.make(kind, world.ours) if kind else None
    cells: dict[str, dict[str, list[str]]] = {}
    for caller, key in callers.items():
        destroys = method != "GET" and caller not in NOBODIES and kind is not None
        value = world.make(str(kind), world.ours) if destroys else kept
        before = entries(world) if method != "GET" else 0
        answer = ask(http, key, method, url(value), options)
        cells.setdefault("ours" if kind else "-", {}).setdefault(told(answer), []).append(caller)
        if path in PUBLIC_ROUTES:
            continue
        assert (answer.status_code == 401) == (caller in NOBODIES), (route, caller, answer.text)
        if method != "GET" and answer.status_code < 300 and not any(word in path for word in NOT_AUDITED):
            assert entries(world) > before, f"{route} leaves no audit entry"
    if kind is None:
        cells["-"].setdefault(told(ask(http, stranger, method, url(None), options)), []).append("stranger")
    else:
        their = world.make(kind, world.theirs)
        for caller, key in callers.items():
            foreign, absent = (ask(http, key, method, url(value), options) for value in (their, NEVER[kind]))
            same = foreign.text.replace(their, "ID") == absent.text.replace(NEVER[kind], "ID")
            assert foreign.status_code == absent.status_code, (route, caller, foreign.text, absent.text)
            assert same or route == INVITING, (route, caller, foreign.text, absent.text)
            assert foreign.status_code >= 400 or route == INVITING, (route, caller)
            cells.setdefault("theirs = nobody's", {}).setdefault(told(foreign), []).append(caller)
        crossed, absent = (ask(http, stranger, method, url(value), options) for value in (kept, NEVER[kind]))
        assert crossed.text.replace(str(kept), "ID") == absent.text.replace(NEVER[kind], "ID") or route == INVITING
        cells["ours"].setdefault(told(crossed), []).append("stranger")
    for owner, outcomes in cells.items():
        told_all = "; ".join(f"{outcome}: {', '.join(who)}" for outcome, who in outcomes.items())
        yield f"{route} [{owner}] {told_all}\n"


def test_every_cell_is_as_it_was_looked_at(world: World) -> None:
    """No key opens what it should not, foreign is absent word for word, each change is audited, cells are pinned."""
    found = []
    with httpx2.Client(base_url=world.server.url, timeout=60) as http:
        for method, path, operation, defs in routes(world.server):
            found += rows_of(world, http, method, path, how(f"{method} {path}", operation, defs))
    count = sum(line.count(",") + line.count(";") + 1 for line in found)
    looked_at = count + sum("theirs" in line for line in found) * len(world.callers)
    print(f"isolation matrix: {len(routes(world.server))} routes, {looked_at} cells")
    text = "".join(found)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8"), "see this file's first lines"
