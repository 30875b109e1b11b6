"""May this caller do this there? The one place that says no, and its words.

Knows callers, places and permissions; knows nothing of what is asked for.
"""

from smedje.domain.projects import Permission, Principal, Project, holders
from smedje.errors import Conflict, PermissionDenied

READING = ".read"


def demand(
    caller: Principal, permission: Permission, *, hub_id: str | None = None, project_id: str | None = None
) -> None:
    """Raises PermissionDenied unless the caller holds the permission there; with neither id, for the whole server."""
    if caller.may_in(permission, hub_id, project_id):
        return
    place = "in this project" if project_id else "in this hub" if hub_id else "for the whole server"
    raise refusal(permission, caller.role_names(hub_id, project_id), place, narrowed=caller.narrowed is not None)


def demand_here(caller: Principal, permission: Permission) -> None:
    """Raises PermissionDenied unless the caller holds the permission in the project it acts in, and Conflict when that
    project is archived and the permission is more than reading or letting it live again."""
    demand(caller, permission, hub_id=caller.project.hub_id, project_id=caller.project.id)
    if caller.project.archived_at is not None:
        refuse_archived(caller.project, permission)


def refuse_archived(project: Project, permission: Permission) -> None:
    """Raises Conflict for a change of what an archived project holds."""
    if project.archived_at is None or permission.value.endswith(READING) or permission is Permission.PROJECT_WRITE:
        return
    raise Conflict(
        f"The project {project.name} is archived, so nothing in it changes. Restore it with PATCH "
        f'/api/projects/{project.id} {{"archived": false}}.',
        code="project_archived",
    )


def refusal(permission: Permission, roles: str, place: str, *, narrowed: bool) -> PermissionDenied:
    """The error for a missing permission: which one, which roles are held, which have it, whom to ask."""
    also = " The key may also have been given only some of its role's permissions." if narrowed else ""
    return PermissionDenied(
        f"This needs the permission {permission.value} {place}. The role here: {roles}. It is part of "
        f"{holders(permission)}.{also} Ask an owner."
    )
