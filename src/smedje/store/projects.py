"""Queries for hubs, projects and API keys."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, select, update

from smedje.domain.projects import ApiKey, Hub, Project, Role
from smedje.errors import Conflict
from smedje.store.paging import insert_if_new
from smedje.store.tables import api_keys, hubs, projects


def insert_hub(tx: Connection, hub: Hub) -> None:
    """Raises Conflict when the name is taken."""
    if not insert_if_new(tx, hubs, asdict(hub)):
        raise Conflict(f"There is already a hub called {hub.name}.", code="hub_exists", param="name")


def list_hubs(tx: Connection) -> list[Hub]:
    """All hubs, oldest first."""
    return [_hub(row) for row in tx.execute(select(hubs).order_by(hubs.c.seq))]


def insert_project(tx: Connection, project: Project) -> None:
    """Raises Conflict when the hub has a project of this name."""
    if not insert_if_new(tx, projects, asdict(project)):
        raise Conflict(f"The hub already has a project called {project.name}.", code="project_exists", param="name")


def get_project(tx: Connection, project_id: str) -> Project | None:
    """The project with this id."""
    row = tx.execute(select(projects).where(projects.c.id == project_id)).first()
    return None if row is None else _project(row)


def find_project(tx: Connection, hub_name: str, name: str) -> Project | None:
    """The project of this name in the hub of that name."""
    query = select(projects).join(hubs, hubs.c.id == projects.c.hub_id)
    row = tx.execute(query.where(hubs.c.name == hub_name, projects.c.name == name)).first()
    return None if row is None else _project(row)


def list_projects(tx: Connection, *, hub_id: str | None = None) -> list[Project]:
    """All projects, or one hub's, oldest first."""
    query = select(projects).order_by(projects.c.seq)
    return [_project(row) for row in tx.execute(query if hub_id is None else query.where(projects.c.hub_id == hub_id))]


def insert_key(tx: Connection, key: ApiKey, sha256: str) -> None:
    """Record a key. sha256: hex digest of its secret. Raises Conflict when that secret is known already."""
    if not insert_if_new(tx, api_keys, {**asdict(key), "sha256": sha256}):
        raise Conflict("This API key exists already.", code="key_exists")


def find_key(tx: Connection, sha256: str) -> ApiKey | None:
    """The key whose secret has this digest; revoked and expired ones too."""
    row = tx.execute(select(api_keys).where(api_keys.c.sha256 == sha256)).first()
    return None if row is None else _key(row)


def list_keys(tx: Connection, project_id: str) -> list[ApiKey]:
    """A project's keys, newest first; revoked and expired ones too."""
    query = select(api_keys).where(api_keys.c.project_id == project_id).order_by(api_keys.c.seq.desc())
    return [_key(row) for row in tx.execute(query)]


def revoke_key(tx: Connection, project_id: str, key_id: str, now: int) -> bool:
    """End a key; one that was revoked before keeps its time. Returns whether the project has such a key."""
    ours = (api_keys.c.project_id == project_id, api_keys.c.id == key_id)
    tx.execute(update(api_keys).where(*ours, api_keys.c.revoked_at.is_(None)).values(revoked_at=now))
    return tx.execute(select(api_keys.c.seq).where(*ours)).first() is not None


def _hub(row: Row[Any]) -> Hub:
    return Hub(
        id=row.id, name=row.name, display_name=row.display_name, location=row.location, created_at=row.created_at
    )


def _project(row: Row[Any]) -> Project:
    return Project(id=row.id, hub_id=row.hub_id, name=row.name, description=row.description, created_at=row.created_at)


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        role=Role(row.role),
        prefix=row.prefix,
        last_four=row.last_four,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
