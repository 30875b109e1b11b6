"""Queries for retention, erasures, locations, and until when storage was metered."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from smedje.domain.upkeep import Erasure, ErasureState, Kept, RetentionRule
from smedje.store.paging import Listing, insert_if_new, page
from smedje.store.tables import checkpoints, erasures, files, locations, projects, retention, storage_meters


def list_rules(tx: Connection, project_id: str | None = None) -> list[RetentionRule]:
    """A project's rules, or every project's."""
    query = select(retention).order_by(retention.c.seq)
    rows = tx.execute(query if project_id is None else query.where(retention.c.project_id == project_id))
    return [
        RetentionRule(project_id=row.project_id, kind=Kept(row.kind), days=row.days, updated_at=row.updated_at)
        for row in rows
    ]


def put_rule(tx: Connection, rule: RetentionRule) -> None:
    """Set a rule in the stead of the one before; no days: take it away."""
    tx.execute(delete(retention).where(retention.c.project_id == rule.project_id, retention.c.kind == rule.kind.value))
    if rule.days:
        tx.execute(insert(retention).values(**asdict(rule)))


def insert_erasure(tx: Connection, erasure: Erasure) -> None:
    """Record an erasure whose rows are gone and whose bytes are going."""
    tx.execute(insert(erasures).values(**{**asdict(erasure), "leftovers": list(erasure.leftovers)}))


def finish_erasure(tx: Connection, erasure_id: str, *, now: int) -> None:
    """Note that no bytes are left either."""
    values = {"state": ErasureState.DONE.value, "leftovers": [], "ended_at": now}
    tx.execute(update(erasures).where(erasures.c.id == erasure_id).values(**values))


def get_erasure(tx: Connection, project_id: str, erasure_id: str) -> Erasure | None:
    """The project's erasure with this id."""
    row = tx.execute(select(erasures).where(erasures.c.project_id == project_id, erasures.c.id == erasure_id)).first()
    return None if row is None else _erasure(row)


def list_erasures(tx: Connection, project_id: str, *, after: str | None, limit: int) -> list[Erasure]:
    """At most `limit` erasures, newest first. Raises NotFound for an unknown `after`."""
    listing = Listing(table=erasures, scope=[erasures.c.project_id == project_id])
    return [_erasure(row) for row in page(tx, listing, after=after, limit=limit)]


def unfinished_erasures(tx: Connection) -> list[Erasure]:
    """Erasures of all projects whose bytes are still going."""
    return [_erasure(row) for row in tx.execute(select(erasures).where(erasures.c.state != ErasureState.DONE.value))]


def put_location(tx: Connection, name: str, about: Mapping[str, Any], *, now: int) -> None:
    """A compute target says what it can do."""
    values = {"about": dict(about), "seen_at": now}
    if not insert_if_new(tx, locations, {"name": name, **values}):
        tx.execute(update(locations).where(locations.c.name == name).values(**values))


def list_locations(tx: Connection) -> Sequence[tuple[str, Mapping[str, Any], int]]:
    """Name, abilities and last sign of life of every compute target."""
    return [(row.name, row.about, row.seen_at) for row in tx.execute(select(locations).order_by(locations.c.name))]


def stored_bytes(tx: Connection) -> dict[str, int]:
    """What each living project's files and checkpoints take."""
    found: dict[str, int] = {}
    for table in (files, checkpoints):
        sums = select(table.c.project_id, func.sum(table.c.bytes)).group_by(table.c.project_id)
        for project_id, size in tx.execute(sums):
            found[project_id] = found.get(project_id, 0) + int(size)
    living = set(tx.scalars(select(projects.c.id).where(projects.c.deleted_at.is_(None))))
    return {project_id: size for project_id, size in found.items() if project_id in living}


def metered_until(tx: Connection) -> dict[str, int]:
    """Until when each project's stored bytes have become usage; nobody else meters before this transaction ends."""
    rows = tx.execute(select(storage_meters).with_for_update())
    return {row.project_id: row.metered_until for row in rows}


def set_metered(tx: Connection, project_id: str, until: int) -> None:
    """Move a project's mark."""
    if not insert_if_new(tx, storage_meters, {"project_id": project_id, "metered_until": until}):
        tx.execute(update(storage_meters).where(storage_meters.c.project_id == project_id).values(metered_until=until))


def _erasure(row: Row[Any]) -> Erasure:
    values = row._asdict()
    del values["seq"]
    return Erasure(**{**values, "state": ErasureState(row.state), "leftovers": tuple(row.leftovers)})
