"""Queries for the audit log: entries are appended one after another, and read; there is nothing else."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, or_, select, text

from smedje.domain.audit import FIRST, AuditEntry, AuditFilter
from smedje.store.paging import Listing, page
from smedje.store.tables import audit

# Any number that nothing else in the same PostgreSQL database uses for advisory locks.
CHAIN_LOCK = 0x536D6564_6175
NAMES = tuple(one.name for one in fields(AuditEntry))


def lock_chain(tx: Connection) -> None:
    """Wait until no other transaction appends. SQLite has one writer at a time anyway."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CHAIN_LOCK})


def last_hash(tx: Connection) -> str:
    """The newest entry's hash, or the one before the first."""
    return tx.scalar(select(audit.c.hash).order_by(audit.c.seq.desc()).limit(1)) or FIRST


def append(tx: Connection, entry: AuditEntry) -> None:
    """Write an entry after the newest one."""
    tx.execute(audit.insert().values(**asdict(entry), hash=entry.hash))


@dataclass(frozen=True, kw_only=True)
class AuditScope:
    """Whose entries: a project's, those on a hub itself (hub_id), and those on the server itself."""

    project_id: str
    hub_id: str | None = None
    server: bool = False


def list_entries(tx: Connection, scope: AuditScope, *, after: str | None, limit: int) -> list[AuditEntry]:
    """At most `limit` entries, newest first. Raises NotFound for an unknown `after`."""
    above = audit.c.project_id.is_(None)
    wanted = [audit.c.project_id == scope.project_id]
    if scope.server:
        wanted.append(above)
    elif scope.hub_id is not None:
        wanted.append(and_(above, audit.c.hub_id == scope.hub_id))
    listing = Listing(table=audit, scope=[or_(*wanted)])
    return [_entry(row) for row in page(tx, listing, after=after, limit=limit)]


def search(tx: Connection, wanted: AuditFilter, *, cursor: str | None, newer: bool, limit: int) -> list[AuditEntry]:
    """At most `limit` entries, newest first: those before the entry `cursor`, or (newer) those after it.

    Raises NotFound for a cursor outside of what the asker may see.
    """
    scope = []
    if wanted.project_ids is not None:
        above = and_(audit.c.project_id.is_(None), audit.c.hub_id.in_(wanted.hub_ids or ()))
        scope.append(or_(audit.c.project_id.in_(wanted.project_ids), above))
    listing = Listing(table=audit, scope=scope, filters=list(_conditions(wanted)))
    rows = page(tx, listing, after=cursor, limit=limit, order="asc" if newer else "desc")
    found = [_entry(row) for row in rows]
    return found[::-1] if newer else found


def _conditions(wanted: AuditFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.wanted_projects is not None:
        yield audit.c.project_id.in_(wanted.wanted_projects)
    if wanted.actions is not None:
        yield audit.c.action.in_(wanted.actions)
    if wanted.actors is not None:
        yield or_(audit.c.key_id.in_(wanted.actors), audit.c.member_id.in_(wanted.actors))
    if wanted.object_ids is not None:
        yield audit.c.object_id.in_(wanted.object_ids)
    if wanted.since is not None:
        yield audit.c.at >= wanted.since
    if wanted.until is not None:
        yield audit.c.at <= wanted.until


def chain(tx: Connection) -> Iterator[tuple[AuditEntry, str]]:
    """Every entry with the hash kept beside it, oldest first."""
    for row in tx.execute(select(audit).order_by(audit.c.seq)):
        yield _entry(row), row.hash


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(**{name: getattr(row, name) for name in NAMES})
