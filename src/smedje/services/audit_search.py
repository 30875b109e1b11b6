"""The audit log across projects: every entry that the caller may see, narrowed, with who acted and where by name."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from smedje.domain.audit import AuditEntry, AuditFilter
from smedje.domain.projects import Member, Permission, Principal, Project
from smedje.services.context import Context
from smedje.store import audit as store
from smedje.store import members as member_rows
from smedje.store import projects as project_rows


@dataclass(frozen=True, kw_only=True)
class NamedEntry:
    """An entry, the member who acted (or who failed to sign in), and the project."""

    entry: AuditEntry
    member: Member | None
    project: Project | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a page of the log begins: after the entry `cursor`, towards older ones or (newer) newer ones."""

    cursor: str | None
    newer: bool
    limit: int


def search(
    ctx: Context, caller: Principal, wanted: AuditFilter, place: Place, *, emails: Collection[str] | None = None
) -> list[NamedEntry]:
    """At most `limit` entries, newest first, of all places in which the caller may read the log.

    emails: addresses of members of whom one must have acted. Raises NotFound for an unknown cursor.
    """
    with ctx.database.transaction() as tx:
        if emails is not None:
            known = [member_rows.find_member(tx, email.lower()) for email in emails if "@" in email]
            people = {member.id for member in known if member is not None}
            actors = people if wanted.actors is None else people & set(wanted.actors)
            wanted = replace(wanted, actors=actors)
        if not caller.may_in(Permission.AUDIT_READ, None):
            projects, hubs = _seen(tx, caller)
            wanted = replace(wanted, project_ids=projects, hub_ids=hubs)
        found = store.search(tx, wanted, cursor=place.cursor, newer=place.newer, limit=place.limit)
        return [_named(tx, entry) for entry in found]


def _seen(tx: Connection, caller: Principal) -> tuple[list[str], list[str]]:
    """The projects and hubs in which the caller may read the log."""
    projects = [
        project.id
        for project in project_rows.list_projects(tx)
        if caller.may_in(Permission.AUDIT_READ, project.hub_id, project.id)
    ]
    return projects, [hub.id for hub in project_rows.list_hubs(tx) if caller.may_in(Permission.AUDIT_READ, hub.id)]


def _named(tx: Connection, entry: AuditEntry) -> NamedEntry:
    failed = entry.action == "sign_in.failed" and entry.object_id
    member_id = entry.member_id or (entry.object_id if failed else None)
    return NamedEntry(
        entry=entry,
        member=None if member_id is None else member_rows.find_member(tx, member_id),
        project=None if entry.project_id is None else project_rows.get_project(tx, entry.project_id),
    )
