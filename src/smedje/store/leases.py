"""Leases: which scheduler supervises a job, until when, and proof of it.

A lease has an owner, an end and a fence, which counts the changes of owner. Every write that rests on a lease carries
its fence, so a scheduler that was frozen past its lease and thaws changes nothing. Clocks: all schedulers of one
database are handed `now` by their own machine; a lease should be much longer than their clocks differ.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, case, or_, select, update

from smedje.domain.jobs import FineTuningJob, JobStatus
from smedje.store.jobs import lease_lost, to_job
from smedje.store.tables import hubs, jobs, projects


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A job as it was when it was claimed, and the fence that writes must carry."""

    job: FineTuningJob
    fence: int


def claim_jobs(
    tx: Connection,
    *,
    owner: str,
    now: float,
    lease_seconds: float,
    statuses: Collection[JobStatus],
    location: str | None = None,
) -> list[Lease]:
    """All jobs in `statuses` that this owner supervises from now until `now + lease_seconds`, oldest first.

    Taken are those that nobody holds or whose lease has ended; the fence counts up. Kept are those already ours; their
    fence stays. Ours are written again only in the second half of their lease, so an idle pass writes nothing.
    location: only jobs of hubs that are there; None for all.
    """
    wanted: ColumnElement[bool] = jobs.c.status.in_([status.value for status in statuses])
    if location is not None:
        here = select(projects.c.id).join(hubs, hubs.c.id == projects.c.hub_id).where(hubs.c.location == location)
        wanted = and_(wanted, jobs.c.project_id.in_(here))
    ours = jobs.c.owner == owner
    free: ColumnElement[bool] = or_(jobs.c.owner.is_(None), and_(jobs.c.owner != owner, jobs.c.lease_until <= now))
    stale = and_(ours, jobs.c.lease_until <= now + lease_seconds / 2)
    # Rows that another scheduler is claiming at this moment are theirs; waiting for them would only slow both.
    due = select(jobs.c.id).where(wanted, or_(free, stale)).with_for_update(skip_locked=True).cte("due")
    tx.execute(
        update(jobs)
        .where(jobs.c.id.in_(select(due.c.id)))
        .values(fence=case((ours, jobs.c.fence), else_=jobs.c.fence + 1), owner=owner, lease_until=now + lease_seconds)
    )
    held = tx.execute(select(jobs).where(wanted, ours, jobs.c.lease_until > now).order_by(jobs.c.seq))
    return [Lease(job=to_job(row), fence=row.fence) for row in held]


def renew(tx: Connection, owner: str, job_ids: Collection[str], lease_until: float) -> set[str]:
    """Prolong leases; returns the ids that are still this owner's. The others belong to somebody else now."""
    mine = and_(jobs.c.owner == owner, jobs.c.id.in_(list(job_ids)))
    done = tx.execute(update(jobs).where(mine).values(lease_until=lease_until).returning(jobs.c.id))
    return {row.id for row in done}


def release(tx: Connection, job_id: str, owner: str) -> None:
    """Give a job back for anybody to claim; does nothing when it is no longer this owner's."""
    mine = and_(jobs.c.id == job_id, jobs.c.owner == owner)
    tx.execute(update(jobs).where(mine).values(owner=None, lease_until=None))


def release_all(tx: Connection, *, owner: str) -> None:
    """Give back every job of this owner, as when a server stops."""
    tx.execute(update(jobs).where(jobs.c.owner == owner).values(owner=None, lease_until=None))


def require_lease(tx: Connection, job_id: str, *, fence: int) -> None:
    """Make sure that the lease still counts `fence`, and that it does until this transaction ends.

    For writes that rest on a lease without saving the job itself. Raises Conflict (`lease_lost`).
    """
    held = select(jobs.c.seq).where(jobs.c.id == job_id, jobs.c.fence == fence).with_for_update()
    if tx.execute(held).first() is None:
        raise lease_lost(job_id)
