"""Queries for hubs, projects and API keys. A deleted hub or project is in no answer but `get_project`'s."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select, update

from smedje.domain.jobs import TERMINAL
from smedje.domain.projects import ApiKey, Hub, Permission, Project, Scope
from smedje.errors import Conflict
from smedje.store.paging import insert_if_new
from smedje.store.roles import kept, role_of
from smedje.store.tables import api_keys, deployments, files, fine_tuned_models, hubs, jobs, projects


def insert_hub(tx: Connection, hub: Hub) -> None:
    """Raises Conflict when the name is taken."""
    if not insert_if_new(tx, hubs, asdict(hub)):
        raise Conflict(f"There is already a hub called {hub.name}.", code="hub_exists", param="name")


def list_hubs(tx: Connection) -> list[Hub]:
    """All hubs, oldest first."""
    return [_hub(row) for row in tx.execute(select(hubs).where(hubs.c.deleted_at.is_(None)).order_by(hubs.c.seq))]


def find_hub(tx: Connection, name_or_id: str) -> Hub | None:
    """The hub of this name or id."""
    named = or_(hubs.c.name == name_or_id, hubs.c.id == name_or_id)
    row = tx.execute(select(hubs).where(named, hubs.c.deleted_at.is_(None))).first()
    return None if row is None else _hub(row)


def save_hub(tx: Connection, hub: Hub) -> None:
    """Write every field of a hub. Raises Conflict when its new name is taken."""
    tx.execute(update(hubs).where(hubs.c.id == hub.id).values(**asdict(hub)))


def insert_project(tx: Connection, project: Project) -> None:
    """Raises Conflict when the hub has a project of this name."""
    if not insert_if_new(tx, projects, asdict(project)):
        raise Conflict(f"The hub already has a project called {project.name}.", code="project_exists", param="name")


def get_project(tx: Connection, project_id: str) -> Project | None:
    """The project with this id, a deleted one too."""
    row = tx.execute(select(projects).where(projects.c.id == project_id)).first()
    return None if row is None else _project(row)


def find_project(tx: Connection, hub_name: str, name: str) -> Project | None:
    """The project of this name in the hub of that name."""
    query = select(projects).join(hubs, hubs.c.id == projects.c.hub_id)
    row = tx.execute(
        query.where(hubs.c.name == hub_name, projects.c.name == name, projects.c.deleted_at.is_(None))
    ).first()
    return None if row is None else _project(row)


def list_projects(tx: Connection, *, hub_id: str | None = None) -> list[Project]:
    """All projects, or one hub's, oldest first."""
    query = select(projects).where(projects.c.deleted_at.is_(None)).order_by(projects.c.seq)
    return [_project(row) for row in tx.execute(query if hub_id is None else query.where(projects.c.hub_id == hub_id))]


def save_project(tx: Connection, project: Project) -> None:
    """Write every field of a project."""
    tx.execute(update(projects).where(projects.c.id == project.id).values(**asdict(project)))


def lock_project(tx: Connection, project_id: str) -> None:
    """Nobody else decides by counting what the project holds until this transaction ends."""
    tx.execute(select(projects.c.seq).where(projects.c.id == project_id).with_for_update())


def contents(tx: Connection, project_id: str) -> dict[str, int]:
    """How many things a project holds that stand in the way of deleting it; nothing that is zero."""
    found = {}
    for words, table in (("files", files), ("fine-tuned models", fine_tuned_models), ("deployments", deployments)):
        found[words] = tx.scalar(select(func.count()).select_from(table).where(table.c.project_id == project_id)) or 0
    unfinished = (jobs.c.project_id == project_id, jobs.c.status.not_in([status.value for status in TERMINAL]))
    found["unfinished jobs"] = tx.scalar(select(func.count()).select_from(jobs).where(*unfinished)) or 0
    return {words: count for words, count in found.items() if count}


def insert_key(tx: Connection, key: ApiKey, sha256: str) -> None:
    """Record a key. sha256: hex digest of its secret. Raises Conflict when that secret is known already."""
    narrowed = None if key.permissions is None else sorted(one.value for one in key.permissions)
    values = {**vars(key), "role": kept(key.role), "permissions": narrowed, "sha256": sha256}
    if not insert_if_new(tx, api_keys, values):
        raise Conflict("This API key exists already.", code="key_exists")


def find_key(tx: Connection, sha256: str) -> ApiKey | None:
    """The key whose secret has this digest; revoked and expired ones too."""
    row = tx.execute(select(api_keys).where(api_keys.c.sha256 == sha256)).first()
    return None if row is None else _key(tx, row)


def list_keys(tx: Connection, project_id: str) -> list[ApiKey]:
    """A project's keys, newest first; revoked and expired ones too."""
    query = select(api_keys).where(api_keys.c.project_id == project_id).order_by(api_keys.c.seq.desc())
    return [_key(tx, row) for row in tx.execute(query)]


def revoke_key(tx: Connection, project_id: str, key_id: str, now: int) -> bool:
    """End a key; one that was revoked before keeps its time. Returns whether the project has such a key."""
    ours = (api_keys.c.project_id == project_id, api_keys.c.id == key_id)
    tx.execute(update(api_keys).where(*ours, api_keys.c.revoked_at.is_(None)).values(revoked_at=now))
    return tx.execute(select(api_keys.c.seq).where(*ours)).first() is not None


def get_key(tx: Connection, project_id: str, key_id: str) -> ApiKey | None:
    """The project's key with this id; a revoked or expired one too."""
    row = tx.execute(select(api_keys).where(api_keys.c.project_id == project_id, api_keys.c.id == key_id)).first()
    return None if row is None else _key(tx, row)


def end_key(tx: Connection, key_id: str, expires_at: int) -> None:
    """Let a key end at a time, or earlier if it was to end earlier."""
    later = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > expires_at)
    tx.execute(update(api_keys).where(api_keys.c.id == key_id, later).values(expires_at=expires_at))


def revoke_keys(tx: Connection, project_id: str, now: int) -> None:
    """End every key of a project."""
    ours = (api_keys.c.project_id == project_id, api_keys.c.revoked_at.is_(None))
    tx.execute(update(api_keys).where(*ours).values(revoked_at=now))


def deployment_keys(tx: Connection, project_id: str, deployment: str, *, now: int) -> list[ApiKey]:
    """The keys of one deployment that have not ended, newest first."""
    query = select(api_keys).where(
        api_keys.c.project_id == project_id,
        api_keys.c.deployment == deployment,
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
    )
    return [_key(tx, row) for row in tx.execute(query.order_by(api_keys.c.seq.desc()))]


def revoke_deployment_keys(tx: Connection, project_id: str, deployment: str, now: int) -> None:
    """End every key of a deployment."""
    ours = (api_keys.c.project_id == project_id, api_keys.c.deployment == deployment, api_keys.c.revoked_at.is_(None))
    tx.execute(update(api_keys).where(*ours).values(revoked_at=now))


def touch_key(tx: Connection, key_id: str, now: int) -> None:
    """Remember when a key was last used."""
    tx.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now))


def _hub(row: Row[Any]) -> Hub:
    values = row._asdict()
    del values["seq"]
    return Hub(**{**values, "tags": row.tags or {}})


def _project(row: Row[Any]) -> Project:
    values = row._asdict()
    del values["seq"]
    return Project(**{**values, "tags": row.tags or {}})


def _key(tx: Connection, row: Row[Any]) -> ApiKey:
    values = row._asdict()
    del values["seq"], values["sha256"]
    narrowed = None if row.permissions is None else frozenset(Permission(one) for one in row.permissions)
    return ApiKey(**{**values, "role": role_of(tx, row.role), "scope": Scope(row.scope), "permissions": narrowed})
