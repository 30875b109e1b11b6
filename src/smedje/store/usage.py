"""Queries for metered usage: facts are appended, sums are read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, func, insert, select

from smedje.domain.usage import UsageRecord
from smedje.store.paging import insert_if_new
from smedje.store.tables import usage

DAY = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class UsageTotal:
    """Sums over all records of one kind and model."""

    kind: str
    model: str
    records: int
    prompt_tokens: int
    completion_tokens: int
    trained_tokens: int
    seconds: float


def insert_usage(tx: Connection, record: UsageRecord) -> None:
    """Append one fact."""
    tx.execute(insert(usage).values(**asdict(record)))


def insert_usage_once(tx: Connection, record: UsageRecord) -> bool:
    """Append a fact unless one with its id is there; whether it was appended."""
    return insert_if_new(tx, usage, asdict(record))


def sum_usage(tx: Connection, project_id: str, since: int, until: int) -> list[UsageTotal]:
    """A project's usage from `since` up to but not including `until` (Unix seconds), by kind and model."""
    sums = [func.sum(usage.c[name]) for name in ("prompt_tokens", "completion_tokens", "trained_tokens", "seconds")]
    query = select(usage.c.kind, usage.c.model, func.count(), *sums)
    rows = tx.execute(
        query.where(usage.c.project_id == project_id, usage.c.created_at >= since, usage.c.created_at < until)
        .group_by(usage.c.kind, usage.c.model)
        .order_by(usage.c.kind, usage.c.model)
    )
    return [
        UsageTotal(
            kind=kind,
            model=model,
            records=records,
            prompt_tokens=int(prompt),
            completion_tokens=int(completion),
            trained_tokens=int(trained),
            seconds=float(seconds),
        )
        for kind, model, records, prompt, completion, trained, seconds in rows
    ]


@dataclass(frozen=True, kw_only=True)
class UsageSlice:
    """Sums of one bucket of time, project, key, kind and model. day: the bucket's first second."""

    day: int
    project_id: str
    key_id: str | None
    records: int
    total: UsageRecord


def slice_usage(
    tx: Connection, project_ids: Sequence[str], since: int, until: int, *, width: int = DAY
) -> list[UsageSlice]:
    """Usage from `since` up to but not including `until`, oldest first, in the finest parts that are told.

    width: of a bucket of time, in seconds.
    """
    day = (usage.c.created_at - usage.c.created_at % width).label("day")
    parts = (day, usage.c.project_id, usage.c.key_id, usage.c.kind, usage.c.model)
    sums = [
        func.sum(usage.c[name]).label(name)
        for name in ("prompt_tokens", "completion_tokens", "trained_tokens", "seconds", "byte_seconds")
    ]
    query = (
        select(*parts, func.count().label("records"), *sums)
        .where(usage.c.project_id.in_(project_ids), usage.c.created_at >= since, usage.c.created_at < until)
        .group_by(*parts)
        .order_by(*parts)
    )
    return [
        UsageSlice(
            day=int(row.day),
            project_id=row.project_id,
            key_id=row.key_id,
            records=row.records,
            total=UsageRecord(
                id="",
                project_id=row.project_id,
                key_id=row.key_id,
                kind=row.kind,
                model=row.model,
                prompt_tokens=int(row.prompt_tokens),
                completion_tokens=int(row.completion_tokens),
                trained_tokens=int(row.trained_tokens),
                seconds=float(row.seconds),
                byte_seconds=int(row.byte_seconds),
            ),
        )
        for row in tx.execute(query)
    ]
