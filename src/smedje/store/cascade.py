"""Queries for what hangs on what: jobs on files and models, checkpoints and runs on jobs; and for taking it away."""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, delete, select

from smedje.domain.deployments import Deployment
from smedje.domain.jobs import Checkpoint, FineTuningJob
from smedje.store import deployments as deployment_rows
from smedje.store.jobs import to_checkpoint, to_job
from smedje.store.tables import (
    checkpoints,
    files,
    fine_tuned_models,
    job_events,
    jobs,
    reservations,
    runs,
)


def jobs_of(tx: Connection, project_id: str) -> list[FineTuningJob]:
    """All of a project's jobs, oldest first."""
    rows = tx.execute(select(jobs).where(jobs.c.project_id == project_id).order_by(jobs.c.seq))
    return [to_job(row) for row in rows]


def checkpoints_of(tx: Connection, project_id: str) -> list[Checkpoint]:
    """All of a project's checkpoints, oldest first."""
    rows = tx.execute(select(checkpoints).where(checkpoints.c.project_id == project_id).order_by(checkpoints.c.seq))
    return [to_checkpoint(row) for row in rows]


def runs_of(tx: Connection, job_id: str) -> list[str]:
    """Ids of a job's runs."""
    return list(tx.scalars(select(runs.c.id).where(runs.c.job_id == job_id)))


def deployments_on(tx: Connection, project_id: str, keys: Collection[str]) -> list[Deployment]:
    """The project's deployments that answer with one of these adapters, also as a canary."""

    def answers(one: Deployment) -> bool:
        return one.adapter_key in keys or (one.canary is not None and one.canary.served.adapter_key in keys)

    return [one for one in deployment_rows.list_deployments(tx, project_id) if answers(one)]


def model_keys(tx: Connection, project_id: str) -> dict[str, str]:
    """Where each fine-tuned model's adapter lies: prefix -> the model's name."""
    rows = tx.execute(
        select(fine_tuned_models.c.checkpoint_key, fine_tuned_models.c.id).where(
            fine_tuned_models.c.project_id == project_id
        )
    )
    return {row.checkpoint_key: row.id for row in rows}


def delete_checkpoint(tx: Connection, project_id: str, key: str) -> None:
    """Forget the checkpoint whose files lie under this prefix."""
    tx.execute(delete(checkpoints).where(checkpoints.c.project_id == project_id, checkpoints.c.key == key))


def delete_events(tx: Connection, project_id: str, job_id: str) -> int:
    """Forget a job's story; how many lines it had."""
    ours = (job_events.c.project_id == project_id, job_events.c.job_id == job_id)
    return tx.execute(delete(job_events).where(*ours)).rowcount


def jobs_with_events(tx: Connection, project_id: str) -> set[str]:
    """Ids of the project's jobs that have any line of a story left."""
    return set(tx.scalars(select(job_events.c.job_id).where(job_events.c.project_id == project_id).distinct()))


def delete_job(tx: Connection, project_id: str, job_id: str) -> None:
    """Forget a job and everything that is its own. Its usage stays."""
    for table in (job_events, checkpoints, fine_tuned_models, runs, reservations):
        tx.execute(delete(table).where(table.c.project_id == project_id, table.c.job_id == job_id))
    tx.execute(delete(jobs).where(jobs.c.project_id == project_id, jobs.c.id == job_id))


def known_files(tx: Connection) -> tuple[set[str], set[str]]:
    """Ids and digests of all projects' files."""
    rows = tx.execute(select(files.c.id, files.c.sha256)).all()
    return {row.id for row in rows}, {row.sha256 for row in rows}


def known_runs(tx: Connection) -> dict[str, str]:
    """All runs with their job's status."""
    rows = tx.execute(select(runs.c.id, jobs.c.status).join(jobs, jobs.c.id == runs.c.job_id))
    return {row.id: row.status for row in rows}


def known_adapters(tx: Connection) -> set[str]:
    """The prefixes of all checkpoints and models."""
    return {
        *tx.scalars(select(checkpoints.c.key)),
        *tx.scalars(select(fine_tuned_models.c.checkpoint_key)),
    }


def expired_files(tx: Connection, *, now: int) -> Sequence[tuple[str, str]]:
    """Project and id of each file whose time is over."""
    return [
        (row[0], row[1]) for row in tx.execute(select(files.c.project_id, files.c.id).where(files.c.expires_at <= now))
    ]
