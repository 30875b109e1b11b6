"""What a job would take, before it is created, and how the guess compared with the job afterwards.

Counts are exact, because the job would count the same way. The prediction itself is made in `prediction`.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from smedje.domain.ids import JOB, new_id
from smedje.domain.jobs import FineTuningJob, JobStatus
from smedje.domain.projects import Project
from smedje.errors import NotFound
from smedje.objects.run_folder import RunFolder
from smedje.services.catalog import resolve_origin
from smedje.services.context import Context
from smedje.services.finetuning import check_draft, get_job
from smedje.services.job_request import JobDraft
from smedje.services.prediction import START_SECONDS, Estimate, predict, prediction_key
from smedje.services.preflight import count_files, held_out_rows
from smedje.services.training_spec import build_spec
from smedje.store import runs as run_rows

__all__ = ["START_SECONDS", "Comparison", "Estimate", "compare", "estimate"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was predicted for a job when it was checked, and what it then took; null where it is not known (yet).

    seconds: of the worker, all attempts of the job that ended with a result. memory_bytes: its peak.
    """

    job_id: str
    predicted: dict[str, Any] | None
    trained_tokens: int | None
    seconds: float | None
    memory_bytes: int | None


def compare(ctx: Context, project: Project, job_id: str) -> Comparison:
    """Predicted against actual. Raises NotFound for a job that is not this project's."""
    job = get_job(ctx, project, job_id)
    try:
        predicted = msgspec.json.decode(ctx.objects.get(prediction_key(job.id)), type=dict[str, Any])
    except NotFound:
        predicted = None
    with ctx.database.transaction() as tx:
        runs = run_rows.list_runs(tx, job.id)
    results = [RunFolder(ctx.objects, run.id).read_result() for run in runs]
    told = [result.data for result in results if result is not None and result.data]
    return Comparison(
        job_id=job.id,
        predicted=predicted,
        trained_tokens=job.trained_tokens,
        seconds=round(sum(float(one.get("seconds", 0)) for one in told), 1) if told else None,
        memory_bytes=max((int(one.get("peak_memory_bytes", 0)) for one in told), default=None),
    )


def estimate(ctx: Context, project: Project, draft: JobDraft) -> Estimate:
    """The prediction for a job that `create_job` would accept.

    Raises what `create_job` raises, and InvalidData when examples are too long for the base model or its template
    refuses them.
    """
    request = check_draft(ctx, project, draft)
    origin = resolve_origin(ctx, project.id, request.model)
    now = ctx.seconds()
    # Never stored: the spec of a job is made from a job.
    job = FineTuningJob(
        id=new_id(JOB), project_id=project.id, request=request, status=JobStatus.VALIDATING_FILES, created_at=now
    )
    spec = build_spec(ctx, job, origin, threads=1, earlier_runs=())
    counted = count_files(ctx, job)
    return predict(ctx, project.id, spec, counted["training_file"].rows, held_out=held_out_rows(counted))
