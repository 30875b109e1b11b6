"""What a job would take, before it is created. Counts are exact, because the job would count the same way.

The prediction itself is made in `prediction`; what came of it is told by `comparison`.
"""

from smedje.domain.ids import JOB, new_id
from smedje.domain.jobs import FineTuningJob, JobStatus
from smedje.domain.projects import Project
from smedje.objects.machine import usable_cores
from smedje.services.catalog import resolve_origin
from smedje.services.context import Context
from smedje.services.finetuning import check_draft
from smedje.services.job_request import JobDraft
from smedje.services.prediction import START_SECONDS, Estimate, predict
from smedje.services.preflight import count_files, held_out_rows
from smedje.services.training_spec import build_spec

__all__ = ["START_SECONDS", "Estimate", "estimate"]


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
    spec = build_spec(ctx, job, origin, threads=usable_cores(), earlier_runs=())
    counted = count_files(ctx, job)
    return predict(ctx, project.id, spec, counted["training_file"].rows, held_out=held_out_rows(counted))
