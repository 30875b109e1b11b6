"""Queries for runs: the attempts to execute a job."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from smedje.domain.runs import Run, RunState
from smedje.errors import NotFound
from smedje.store.tables import jobs, runs

ACTIVE = (RunState.STARTING.value, RunState.RUNNING.value)


def insert_run(tx: Connection, run: Run) -> None:
    """Record a new run. The database refuses a second run with the same attempt (Conflict when it commits or here)."""
    project = select(jobs.c.project_id).where(jobs.c.id == run.job_id).scalar_subquery()
    tx.execute(insert(runs).values(**_values(run), project_id=project))


def get_run(tx: Connection, run_id: str) -> Run | None:
    """The run with this id."""
    row = tx.execute(select(runs).where(runs.c.id == run_id)).first()
    return None if row is None else _run(row)


def latest_run(tx: Connection, job_id: str) -> Run | None:
    """The job's last attempt."""
    row = tx.execute(select(runs).where(runs.c.job_id == job_id).order_by(runs.c.attempt.desc()).limit(1)).first()
    return None if row is None else _run(row)


def list_runs(tx: Connection, job_id: str) -> list[Run]:
    """The job's attempts, first one first."""
    return [_run(row) for row in tx.execute(select(runs).where(runs.c.job_id == job_id).order_by(runs.c.attempt))]


def list_active_runs(tx: Connection) -> list[Run]:
    """Runs of all projects that are starting or running, oldest first."""
    return [_run(row) for row in tx.execute(select(runs).where(runs.c.state.in_(ACTIVE)).order_by(runs.c.seq))]


def save_run(tx: Connection, run: Run) -> None:
    """Replace what may change: state, handle, cursor, end. Raises NotFound when there is no such run."""
    changes = {name: value for name, value in _values(run).items() if name not in ("id", "job_id", "attempt")}
    if tx.execute(update(runs).where(runs.c.id == run.id).values(**changes)).rowcount == 0:
        raise NotFound(f"There is no run {run.id}.", code="run_not_found")


def _values(run: Run) -> dict[str, Any]:
    return {**asdict(run), "state": run.state.value, "handle": dict(run.handle)}


def _run(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        job_id=row.job_id,
        attempt=row.attempt,
        state=RunState(row.state),
        executor=row.executor,
        handle=row.handle,
        started_at=row.started_at,
        events_cursor=row.events_cursor,
        ended_at=row.ended_at,
    )
