"""What follows when a job moves on by itself or ends: the audit entry, the event for webhooks, and its usage.

Everything happens in the transaction that moves the job, so each exactly once. What is metered is what was trained:
of a cancelled job up to that point, of a failed one too, which is then not charged.
"""

from sqlalchemy import Connection

from smedje.domain.ids import JOB, USAGE
from smedje.domain.jobs import FineTuningJob, JobStatus
from smedje.domain.prices import FREE
from smedje.domain.usage import UsageRecord
from smedje.domain.webhooks import EventType
from smedje.objects.run_folder import RunFolder
from smedje.services.audit import record_in
from smedje.services.context import Context
from smedje.services.deliveries import announce
from smedje.store import jobs as job_rows
from smedje.store import runs as run_rows
from smedje.store import usage as usage_rows

EVENTS = {
    JobStatus.SUCCEEDED: EventType.JOB_SUCCEEDED,
    JobStatus.FAILED: EventType.JOB_FAILED,
    JobStatus.CANCELLED: EventType.JOB_CANCELLED,
}


def moved(ctx: Context, tx: Connection, job: FineTuningJob, *, action: str | None = None) -> None:
    """Write down that a job came into its status, and tell whom it concerns. Last in the transaction that moved it.

    action: the audit entry's, where the status's own name would not do.
    """
    if job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
        meter(ctx, tx, job)
    if job.status in EVENTS:
        announce(ctx, tx, EVENTS[job.status], job.project_id, job.id)
    record_in(ctx, tx, action or f"job.{job.status.value}", job.project_id, job.id)


def meter(ctx: Context, tx: Connection, job: FineTuningJob) -> None:
    """Write down what a job that did not succeed has trained, once; nothing for one that never took a step."""
    if any(run.state.value in run_rows.ACTIVE for run in run_rows.list_runs(tx, job.id)) and (
        job.status is JobStatus.CANCELLED
    ):
        # Its worker has yet to say its last word; the scheduler asks again when it has.
        return
    tokens, seconds = trained(ctx, tx, job)
    if tokens or seconds:
        kind = FREE if job.status is JobStatus.FAILED else "training"
        usage_rows.insert_usage_once(tx, usage_of(job, kind, tokens=tokens, seconds=seconds, now=ctx.seconds()))


def trained(ctx: Context, tx: Connection, job: FineTuningJob) -> tuple[int, float]:
    """Tokens and seconds of all the job's runs so far.

    Of the results, of which each counts the tokens before it, or of the steps that were heard of, if that is more: a
    worker that was killed leaves no result.
    """
    results = [RunFolder(ctx.objects, run.id).read_result() for run in run_rows.list_runs(tx, job.id)]
    said = [result.data for result in results if result is not None]
    steps = [event.data or {} for event in job_rows.list_step_events(tx, job.id)]
    pace = [(int(step.get("tokens", 0)), float(step.get("tokens_per_second", 0))) for step in steps]
    tokens = max([sum(count for count, _ in pace), *(int(data.get("trained_tokens", 0)) for data in said)])
    seconds = sum(float(data.get("seconds", 0.0)) for data in said)
    return tokens, max(seconds, sum(count / speed for count, speed in pace if speed > 0))


def usage_of(job: FineTuningJob, kind: str, *, tokens: int, seconds: float, now: int) -> UsageRecord:
    """A job's one usage record; its id follows from the job's, so that a second one cannot be written."""
    return UsageRecord(
        id=USAGE + job.id.removeprefix(JOB),
        project_id=job.project_id,
        key_id=job.key_id,
        kind=kind,
        model=job.request.base_model,
        trained_tokens=tokens,
        seconds=seconds,
        created_at=now,
    )
