"""Queries for metered usage: facts are appended, sums are read."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, func, insert, select

from smedje.domain.usage import UsageRecord
from smedje.store.tables import usage


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
