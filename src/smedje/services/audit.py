"""The audit log: one entry for each change, written in the change's own transaction, and a check of the whole chain.

Knows ids and small facts; refuses to know names, prompts or anything else that a person wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from smedje.domain.audit import FIRST, AuditEntry
from smedje.domain.ids import AUDIT, new_id
from smedje.domain.projects import Permission, Principal
from smedje.services.context import Context
from smedje.store import audit as store


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check of the chain found. entries: how many are sound, from the first on. broken_at: the first bad one.

    head: the newest hash. Keep it elsewhere: a chain that was rewritten from end to end shows only against that.
    """

    entries: int
    head: str
    broken_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was changed, and where it belongs."""

    id: str
    hub_id: str | None = None
    project_id: str | None = None


def record(
    ctx: Context, tx: Connection, action: str, subject: Subject, details: Mapping[str, str | int | None] | None = None
) -> None:
    """Append an entry. Call it last in a transaction: from here on, other changes wait for this one to end."""
    store.lock_chain(tx)
    store.append(
        tx,
        AuditEntry(
            id=new_id(AUDIT),
            at=ctx.seconds(),
            action=action,
            object_id=subject.id,
            hub_id=subject.hub_id,
            project_id=subject.project_id,
            key_id=ctx.actor.key_id,
            member_id=ctx.actor.member_id,
            address=ctx.actor.address,
            request_id=ctx.actor.request_id,
            details=json.dumps(dict(details or {}), sort_keys=True),
            previous=store.last_hash(tx),
        ),
    )


def record_in(ctx: Context, tx: Connection, action: str, project_id: str, object_id: str) -> None:
    """Append an entry on something that belongs to a project."""
    record(ctx, tx, action, Subject(id=object_id, project_id=project_id))


def list_entries(ctx: Context, caller: Principal, *, after: str | None, limit: int) -> list[AuditEntry]:
    """At most `limit` entries of the caller's project, newest first; with them those on the hub or the server itself,
    for callers who may read the log there. Raises NotFound for an unknown `after`."""
    hub_id = caller.project.hub_id
    scope = store.AuditScope(
        project_id=caller.project.id,
        hub_id=hub_id if caller.may_in(Permission.AUDIT_READ, hub_id) else None,
        server=caller.may_in(Permission.AUDIT_READ, None),
    )
    with ctx.database.transaction() as tx:
        return store.list_entries(tx, scope, after=after, limit=limit)


def verify(ctx: Context) -> Verdict:
    """Follow the whole chain of all projects."""
    previous, count = FIRST, 0
    with ctx.database.transaction() as tx:
        for entry, kept in store.chain(tx):
            if entry.previous != previous or entry.hash != kept:
                return Verdict(entries=count, head=previous, broken_at=entry.id)
            previous, count = kept, count + 1
    return Verdict(entries=count, head=previous)
