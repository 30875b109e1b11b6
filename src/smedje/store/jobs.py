"""Queries for fine-tuning jobs, their events and their checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Text, cast, exists, func, insert, or_, select, update

from smedje.domain.jobs import Checkpoint, FineTuningJob, JobError, JobEvent, JobRequest, JobStatus
from smedje.errors import Conflict, NotFound
from smedje.store.paging import Listing, insert_if_new, page, plain
from smedje.store.tables import checkpoints, job_events, jobs


def insert_job(tx: Connection, job: FineTuningJob) -> None:
    """Record a new job."""
    request = asdict(job.request)
    metadata = request.pop("metadata")
    facts = {"id": job.id, "project_id": job.project_id, "request": request, "metadata": metadata}
    tx.execute(insert(jobs).values(**facts, created_at=job.created_at, key_id=job.key_id, **_changing(job)))


def get_job(tx: Connection, project_id: str, job_id: str, *, lock: bool = False) -> FineTuningJob | None:
    """The project's job with this id. lock: nobody else may change it before this transaction ends."""
    query = select(jobs).where(jobs.c.project_id == project_id, jobs.c.id == job_id)
    row = tx.execute(query.with_for_update() if lock else query).first()
    return None if row is None else to_job(row)


def get_any_job(tx: Connection, job_id: str) -> FineTuningJob:
    """The job with this id, whichever project's: for supervision, never for a caller. Raises NotFound."""
    row = tx.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise _no_job(job_id)
    return to_job(row)


def list_jobs(
    tx: Connection,
    project_id: str,
    *,
    after: str | None = None,
    limit: int,
    metadata: Mapping[str, str] | None = None,
) -> list[FineTuningJob]:
    """At most `limit` jobs, newest first. Raises NotFound for an unknown `after`.

    metadata: only jobs that carry all these pairs; an empty mapping means only jobs without metadata.
    """
    filters = [] if metadata is None else _metadata_filters(tx, metadata)
    listing = Listing(table=jobs, scope=[jobs.c.project_id == project_id], filters=filters)
    return [to_job(row) for row in page(tx, listing, after=after, limit=limit)]


def save_job(tx: Connection, job: FineTuningJob, *, was: JobStatus, fence: int | None = None) -> None:
    """Replace what may change, provided that the job's status is still `was` and the lease still counts `fence`.

    Raises Conflict: `lease_lost` when another scheduler supervises the job now, `job_state_conflict` when the status
    moved on; NotFound when there is no such job. Nothing is changed then.
    """
    same = [jobs.c.project_id == job.project_id, jobs.c.id == job.id]
    expected = [jobs.c.status == was.value, *([] if fence is None else [jobs.c.fence == fence])]
    if tx.execute(update(jobs).where(*same, *expected).values(**_changing(job))).rowcount == 1:
        return
    row = tx.execute(select(jobs.c.status, jobs.c.fence).where(*same)).first()
    if row is None:
        raise _no_job(job.id)
    if fence is not None and row.fence != fence:
        raise lease_lost(job.id)
    raise Conflict(
        f"Job {job.id} is {row.status} now, no longer {was.value}.",
        code="job_state_conflict",
        param="fine_tuning_job_id",
    )


def insert_events(tx: Connection, events: Sequence[JobEvent]) -> None:
    """Append to jobs' stories, in order."""
    for event in events:
        tx.execute(insert(job_events).values(**_event_values(event), step=None))


def insert_step_event(tx: Connection, event: JobEvent, step: int) -> bool:
    """Append the metrics of one step unless that step was recorded before; returns whether it was appended."""
    return insert_if_new(tx, job_events, {**_event_values(event), "step": step})


def list_events(tx: Connection, job_id: str, *, after: str | None = None, limit: int) -> list[JobEvent]:
    """At most `limit` events, newest first. Raises NotFound for an `after` that is no event of this job."""
    listing = Listing(table=job_events, scope=[job_events.c.job_id == job_id])
    return [_event(row) for row in page(tx, listing, after=after, limit=limit)]


def list_step_events(tx: Connection, job_id: str) -> list[JobEvent]:
    """The metrics of all steps, by step."""
    query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.step.is_not(None))
    return [_event(row) for row in tx.execute(query.order_by(job_events.c.step))]


def insert_checkpoint(tx: Connection, checkpoint: Checkpoint) -> bool:
    """Record a checkpoint unless its job has one at that step; returns whether it was recorded."""
    return insert_if_new(tx, checkpoints, asdict(checkpoint))


def list_checkpoints(
    tx: Connection, project_id: str, job_id: str, *, after: str | None = None, limit: int
) -> list[Checkpoint]:
    """At most `limit` of a job's checkpoints, newest first. Raises NotFound for an unknown `after`."""
    ours = [checkpoints.c.project_id == project_id, checkpoints.c.job_id == job_id]
    listing = Listing(table=checkpoints, scope=ours)
    return [to_checkpoint(row) for row in page(tx, listing, after=after, limit=limit)]


def find_checkpoint(tx: Connection, project_id: str, model_name: str) -> Checkpoint | None:
    """The project's checkpoint of this name."""
    named = (checkpoints.c.project_id == project_id, checkpoints.c.model_name == model_name)
    row = tx.execute(select(checkpoints).where(*named)).first()
    return None if row is None else to_checkpoint(row)


def count_by_status(tx: Connection) -> dict[str, int]:
    """How many jobs of all projects there are in each state that any is in."""
    rows = tx.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    return {row[0]: row[1] for row in rows}


def lease_lost(job_id: str) -> Conflict:
    """The error for a write by a scheduler that no longer supervises the job."""
    return Conflict(f"Another scheduler supervises job {job_id} now; nothing was changed.", code="lease_lost")


def to_job(row: Row[Any]) -> FineTuningJob:
    """A row of the table `jobs` as a job."""
    # JSON has no tuples; a job that comes back equals the one that was kept.
    integrations = tuple(row.request.get("integrations", ()))
    return FineTuningJob(
        id=row.id,
        project_id=row.project_id,
        request=JobRequest(**{**row.request, "integrations": integrations, "metadata": row.metadata}),
        status=JobStatus(row.status),
        created_at=row.created_at,
        resolved=row.resolved,
        started_at=row.started_at,
        finished_at=row.finished_at,
        estimated_finish=row.estimated_finish,
        trained_tokens=row.trained_tokens,
        fine_tuned_model=row.fine_tuned_model,
        result_files=tuple(row.result_files),
        error=None if row.error is None else JobError(**row.error),
        key_id=row.key_id,
    )


def _changing(job: FineTuningJob) -> dict[str, Any]:
    error = None
    if job.error is not None:
        error = asdict(job.error) | {"message": plain(job.error.message)}
    return {
        "status": job.status.value,
        "resolved": None if job.resolved is None else dict(job.resolved),
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "estimated_finish": job.estimated_finish,
        "trained_tokens": job.trained_tokens,
        "fine_tuned_model": job.fine_tuned_model,
        "result_files": list(job.result_files),
        "error": error,
    }


def _metadata_filters(tx: Connection, wanted: Mapping[str, str]) -> list[ColumnElement[bool]]:
    if not wanted:
        return [or_(jobs.c.metadata.is_(None), cast(jobs.c.metadata, Text) == "{}")]
    # Keys are compared as values, never put into a path expression, so any key means itself.
    each = func.json_each_text if tx.dialect.name == "postgresql" else func.json_each
    filters: list[ColumnElement[bool]] = []
    for key, value in wanted.items():
        pairs = each(jobs.c.metadata).table_valued("key", "value")
        filters.append(exists(select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value)))
    return filters


def _event_values(event: JobEvent) -> dict[str, Any]:
    project = select(jobs.c.project_id).where(jobs.c.id == event.job_id).scalar_subquery()
    data = None if event.data is None else dict(event.data)
    return {**asdict(event), "message": plain(event.message), "data": data, "project_id": project}


def _event(row: Row[Any]) -> JobEvent:
    return JobEvent(
        id=row.id,
        job_id=row.job_id,
        created_at=row.created_at,
        level=row.level,
        message=row.message,
        type=row.type,
        data=row.data,
    )


def to_checkpoint(row: Row[Any]) -> Checkpoint:
    """A row of the table `checkpoints` as a checkpoint."""
    return Checkpoint(
        id=row.id,
        project_id=row.project_id,
        job_id=row.job_id,
        step=row.step,
        model_name=row.model_name,
        key=row.key,
        metrics=row.metrics,
        created_at=row.created_at,
        bytes=row.bytes,
    )


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no fine-tuning job {job_id[:100]!r}.", code="job_not_found", param="fine_tuning_job_id")
