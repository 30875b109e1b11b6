"""Queries for quotas, for what counts against them, and for what is reserved."""

from collections.abc import Mapping
from dataclasses import asdict

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, or_, select, update

from smedje.domain.jobs import TERMINAL
from smedje.domain.quotas import Limit, Quota, Reservation
from smedje.store.tables import checkpoints, deployments, files, fine_tuned_models, jobs, quotas, reservations, usage


def list_quotas(tx: Connection, project_id: str) -> list[Quota]:
    """A project's limits and those of its deployments."""
    rows = tx.execute(select(quotas).where(quotas.c.project_id == project_id).order_by(quotas.c.seq))
    return [
        Quota(
            project_id=row.project_id,
            deployment=row.deployment,
            name=Limit(row.name),
            value=row.value,
            updated_at=row.updated_at,
            warn_percent=row.warn_percent,
            warned_at=row.warned_at,
        )
        for row in rows
    ]


def put_quota(tx: Connection, quota: Quota) -> None:
    """Set a limit in the stead of the one before."""
    drop_quota(tx, quota)
    tx.execute(quotas.insert().values(**asdict(quota)))


def mark_warned(tx: Connection, quota: Quota, at: int | None) -> None:
    """Remember when it was last written down that a limit is near; None: it is not any more."""
    same = (
        quotas.c.project_id == quota.project_id,
        quotas.c.deployment == quota.deployment,
        quotas.c.name == quota.name.value,
    )
    tx.execute(update(quotas).where(*same).values(warned_at=at))


def drop_quota(tx: Connection, quota: Quota) -> None:
    """Take a limit away; its value does not matter."""
    same = (
        quotas.c.project_id == quota.project_id,
        quotas.c.deployment == quota.deployment,
        quotas.c.name == quota.name.value,
    )
    tx.execute(delete(quotas).where(*same))


def drop_quotas(tx: Connection, project_id: str, *, deployment: str) -> None:
    """Take all limits of a deployment away."""
    tx.execute(delete(quotas).where(quotas.c.project_id == project_id, quotas.c.deployment == deployment))


def used(tx: Connection, project_id: str, *, since: int, now: int) -> Mapping[Limit, int]:
    """What counts against each limit that rows tell of, money apart; `since`: the month's beginning."""
    unfinished = _count(tx, jobs, and_(jobs.c.project_id == project_id, _unfinished()))
    stored = [
        int(tx.scalar(select(func.coalesce(func.sum(table.c.bytes), 0)).where(table.c.project_id == project_id)) or 0)
        for table in (files, checkpoints)
    ]
    return {
        Limit.ACTIVE_JOBS: unfinished,
        # Each unfinished job will be a model, so it takes a place already.
        Limit.FINE_TUNED_MODELS: _count(tx, fine_tuned_models, fine_tuned_models.c.project_id == project_id)
        + unfinished,
        Limit.DEPLOYMENTS: _count(tx, deployments, deployments.c.project_id == project_id),
        Limit.STORED_BYTES: sum(stored),
        Limit.TRAINING_TOKENS_PER_MONTH: trained(tx, project_id, since=since) + reserved(tx, project_id, now=now)[0],
    }


def trained(tx: Connection, project_id: str, *, since: int) -> int:
    """Training tokens used since a time."""
    total = func.coalesce(func.sum(usage.c.trained_tokens), 0)
    return int(tx.scalar(select(total).where(usage.c.project_id == project_id, usage.c.created_at >= since)) or 0)


def reservation_of_job(tx: Connection, job_id: str) -> tuple[int, int] | None:
    """Training tokens and money that were set aside for a job."""
    row = tx.execute(select(reservations.c.tokens, reservations.c.money).where(reservations.c.job_id == job_id)).first()
    return None if row is None else (int(row.tokens), int(row.money))


def reserved(tx: Connection, project_id: str, *, now: int) -> tuple[int, int]:
    """Training tokens and money that are reserved: by unfinished jobs, and by requests that have not expired."""
    running = select(jobs.c.id).where(jobs.c.project_id == project_id, _unfinished())
    live = or_(reservations.c.job_id.in_(running), reservations.c.expires_at > now)
    sums = [func.coalesce(func.sum(reservations.c[name]), 0) for name in ("tokens", "money")]
    tokens, money = tx.execute(select(*sums).where(reservations.c.project_id == project_id, live)).one()
    return int(tokens), int(money)


def insert_reservation(tx: Connection, reservation: Reservation) -> None:
    """Set something aside."""
    tx.execute(reservations.insert().values(**asdict(reservation)))


def delete_reservation(tx: Connection, reservation_id: str) -> bool:
    """Give back what was set aside; False when that has happened before."""
    return tx.execute(delete(reservations).where(reservations.c.id == reservation_id)).rowcount > 0


def delete_expired(tx: Connection, project_id: str, *, now: int) -> None:
    """Forget the reservations of requests that never came to an end."""
    old = (reservations.c.project_id == project_id, reservations.c.expires_at <= now)
    tx.execute(delete(reservations).where(*old))


def _unfinished() -> ColumnElement[bool]:
    return jobs.c.status.not_in([status.value for status in TERMINAL])


def _count(tx: Connection, table: Table, condition: ColumnElement[bool]) -> int:
    return tx.scalar(select(func.count()).select_from(table).where(condition)) or 0
