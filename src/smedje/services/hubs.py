"""Hubs and projects: making, describing, archiving and deleting them, and who may.

A place that the caller has no role in does not exist for the caller. What is deleted keeps its row, because usage and
the audit log refer to it; its name is free again.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from smedje.domain.ids import HUB, PROJECT, new_id
from smedje.domain.projects import Hub, Permission, Principal, Project
from smedje.errors import Conflict, InvalidRequest, NotFound
from smedje.services.access import demand
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.locations import check_name
from smedje.services.projects import DEFAULT
from smedje.store import projects as store

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?\Z")
LONGEST_TEXT, LONGEST_TAG, MOST_TAGS = 1024, 256, 50


@dataclass(frozen=True, kw_only=True)
class HubForm:
    """What a caller says about a hub. None leaves a field as it is, or at its default in a new hub."""

    display_name: str | None = None
    description: str | None = None
    subscription: str | None = None
    resource_group: str | None = None
    ai_services: str | None = None
    search: str | None = None
    tags: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class ProjectForm:
    """What a caller says about a project. None leaves a field as it is, or at its default in a new project."""

    display_name: str | None = None
    description: str | None = None
    tags: Mapping[str, str] | None = None


def create_hub(ctx: Context, caller: Principal, *, name: str, location: str | None, form: HubForm) -> Hub:
    """A new hub, at this server's own location unless another is named. Needs hubs.write for the whole server.

    Raises InvalidRequest, and Conflict for a name in use.
    """
    demand(caller, Permission.HUBS_WRITE)
    location = ctx.location if location is None else check_name(ctx, location)
    hub = Hub(id=new_id(HUB), name=_name(name, "hub"), display_name=name, location=location, created_at=ctx.seconds())
    hub = replace(hub, **_given(form))
    with ctx.database.transaction() as tx:
        store.insert_hub(tx, hub)
        record(ctx, tx, "hub.created", Subject(id=hub.id, hub_id=hub.id))
    return hub


def list_hubs(ctx: Context, caller: Principal) -> list[Hub]:
    """The hubs in which the caller has any role, oldest first."""
    with ctx.database.transaction() as tx:
        return [hub for hub in store.list_hubs(tx) if caller.knows_hub(hub.id)]


def get_hub(ctx: Context, caller: Principal, name_or_id: str) -> Hub:
    """Raises NotFound for a hub that is not there or in which the caller has no role."""
    with ctx.database.transaction() as tx:
        return _hub(tx, caller, name_or_id)


def update_hub(ctx: Context, caller: Principal, name_or_id: str, form: HubForm, *, archived: bool | None = None) -> Hub:
    """The hub with what the form says. archived: whether new projects are refused. Needs hubs.write there."""
    with ctx.database.transaction() as tx:
        hub = _hub(tx, caller, name_or_id)
        demand(caller, Permission.HUBS_WRITE, hub_id=hub.id)
        changed = replace(hub, **_given(form), archived_at=_archived(hub.archived_at, archived, ctx.seconds()))
        store.save_hub(tx, changed)
        record(ctx, tx, "hub.updated", Subject(id=hub.id, hub_id=hub.id))
    return changed


def delete_hub(ctx: Context, caller: Principal, name_or_id: str) -> Hub:
    """Delete an empty hub. Raises Conflict naming the projects that are in it, and for the default hub."""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        hub = _hub(tx, caller, name_or_id)
        demand(caller, Permission.HUBS_WRITE, hub_id=hub.id)
        _refuse_default(hub.name, "hub")
        inside = [project.name for project in store.list_projects(tx, hub_id=hub.id)]
        if inside:
            raise Conflict(
                f"The hub {hub.name} holds {_counted(len(inside), 'project')}: {', '.join(inside[:10])}. "
                "Delete those first.",
                code="hub_not_empty",
            )
        store.save_hub(tx, replace(hub, name=_buried(hub.name, hub.id), deleted_at=now))
        record(ctx, tx, "hub.deleted", Subject(id=hub.id, hub_id=hub.id))
    return hub


def create_project(ctx: Context, caller: Principal, *, hub: str | None, name: str, form: ProjectForm) -> Project:
    """A new project in a hub (None: the caller's own). Needs projects.create there.

    Raises InvalidRequest for a bad name, NotFound for an unknown hub, Conflict for a name in use or an archived hub.
    """
    with ctx.database.transaction() as tx:
        place = _hub(tx, caller, caller.project.hub_id if hub is None else hub)
        demand(caller, Permission.PROJECTS_CREATE, hub_id=place.id)
        if place.archived_at is not None:
            raise Conflict(f"The hub {place.name} is archived and takes no new projects.", code="hub_archived")
        project = Project(
            id=new_id(PROJECT),
            hub_id=place.id,
            name=_name(name, "project"),
            description="",
            display_name=name,
            created_at=ctx.seconds(),
        )
        project = replace(project, **_given(form))
        store.insert_project(tx, project)
        record(ctx, tx, "project.created", Subject(id=project.id, hub_id=place.id, project_id=project.id))
    return project


def list_projects(ctx: Context, caller: Principal, *, hub: str | None = None) -> list[Project]:
    """The projects that the caller may read, of one hub or of all, oldest first."""
    with ctx.database.transaction() as tx:
        hub_id = None if hub is None else _hub(tx, caller, hub).id
        found = store.list_projects(tx, hub_id=hub_id)
    return [one for one in found if caller.may_in(Permission.PROJECT_READ, one.hub_id, one.id)]


def get_project(ctx: Context, caller: Principal, project_id: str) -> Project:
    """Raises NotFound for a project that is not there or that the caller may not read."""
    with ctx.database.transaction() as tx:
        return _project(tx, caller, project_id)


def update_project(
    ctx: Context, caller: Principal, project_id: str, form: ProjectForm, *, archived: bool | None = None
) -> Project:
    """The project with what the form says. archived: whether it is read-only. Needs project.write there."""
    with ctx.database.transaction() as tx:
        project = _project(tx, caller, project_id)
        demand(caller, Permission.PROJECT_WRITE, hub_id=project.hub_id, project_id=project.id)
        changed = replace(project, **_given(form), archived_at=_archived(project.archived_at, archived, ctx.seconds()))
        store.save_project(tx, changed)
        record(ctx, tx, "project.updated", Subject(id=project.id, hub_id=project.hub_id, project_id=project.id))
    return changed


def delete_project(ctx: Context, caller: Principal, project_id: str) -> Project:
    """Delete a project and end its keys. Raises Conflict saying what is in it, and for the default project."""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        project = _project(tx, caller, project_id)
        demand(caller, Permission.PROJECT_WRITE, hub_id=project.hub_id, project_id=project.id)
        _refuse_default(project.name, "project")
        store.lock_project(tx, project.id)
        inside = store.contents(tx, project.id)
        if inside:
            listed = ", ".join(f"{count} {words}" for words, count in inside.items())
            raise Conflict(
                f"The project {project.name} still holds {listed}. Delete those first, or archive the project.",
                code="project_not_empty",
            )
        store.save_project(tx, replace(project, name=_buried(project.name, project.id), deleted_at=now))
        store.revoke_keys(tx, project.id, now)
        record(ctx, tx, "project.deleted", Subject(id=project.id, hub_id=project.hub_id, project_id=project.id))
    return project


def clean_text(text: str, param: str) -> str:
    """A text to show: at most 1024 characters. Raises InvalidRequest for control characters."""
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None)
    if bad is not None or len(text) > LONGEST_TEXT:
        raise InvalidRequest(
            f"{param} takes at most {LONGEST_TEXT} characters and no control characters.",
            code="invalid_value",
            param=param,
        )
    return text


def _given(form: HubForm | ProjectForm) -> dict[str, Any]:
    """The fields that a form sets, checked."""
    found: dict[str, Any] = {}
    for param, value in vars(form).items():
        if isinstance(value, str):
            found[param] = clean_text(value, param)
        elif value is not None:
            found[param] = _tags(value)
    return found


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > MOST_TAGS or any(max(len(key), len(value)) > LONGEST_TAG for key, value in tags.items()):
        raise InvalidRequest(
            f"tags takes at most {MOST_TAGS} pairs of at most {LONGEST_TAG} characters each.",
            code="invalid_value",
            param="tags",
        )
    return {clean_text(key, "tags"): clean_text(value, "tags") for key, value in tags.items()}


def _hub(tx: Connection, caller: Principal, name_or_id: str) -> Hub:
    hub = store.find_hub(tx, name_or_id)
    if hub is None or not caller.knows_hub(hub.id):
        raise NotFound(f"There is no hub {name_or_id[:100]!r}.", code="hub_not_found", param="hub")
    return hub


def _project(tx: Connection, caller: Principal, project_id: str) -> Project:
    found = store.get_project(tx, project_id)
    known = found is not None and caller.may_in(Permission.PROJECT_READ, found.hub_id, found.id)
    if found is None or found.deleted_at is not None or not known:
        raise NotFound(f"There is no project {project_id[:100]!r}.", code="project_not_found", param="project")
    return found


def _name(name: str, what: str) -> str:
    if not NAME.match(name):
        raise InvalidRequest(
            f"{name[:100]!r} cannot name a {what}. Use 1 to 64 letters, digits, '_' or '-', beginning and ending with "
            "a letter or digit.",
            code="invalid_name",
            param="name",
        )
    return name


def _archived(before: int | None, wanted: bool | None, now: int) -> int | None:
    if wanted is None:
        return before
    return (before or now) if wanted else None


def _refuse_default(name: str, what: str) -> None:
    if name == DEFAULT:
        raise Conflict(f"The default {what} is made anew at every start, so it stays.", code="default_stays")


def _buried(name: str, id: str) -> str:
    # A space is in no living name, so the name is free for another.
    return f"{name} {id}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
