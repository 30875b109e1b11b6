"""The estimate on the wire: the body of a job's creation, answered with what it takes; and what came of a guess."""

from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter

from smedje.api.auth import CanReadJobs
from smedje.api.job_wire import FineTuningJobBody, to_draft
from smedje.api.state import Using
from smedje.services import admission, comparison
from smedje.services.finetuning import get_job

router = APIRouter(prefix="/api/fine_tuning", tags=["fine-tuning"])


@dataclass(frozen=True, kw_only=True)
class EstimateObject(admission.Offer):
    """Counts are exact; `seconds` is a guess with an error bar, and `basis` says what it rests on."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"


@dataclass(frozen=True, kw_only=True)
class ComparisonObject(comparison.Comparison):
    """What was predicted for a job and what it took; null where it is not known (yet)."""

    object: Literal["fine_tuning.job.comparison"] = "fine_tuning.job.comparison"


@router.post("/estimate")
def estimate_job(caller: CanReadJobs, ctx: Using, body: FineTuningJobBody) -> EstimateObject:
    """What this job would take, cost and meet of quotas. Creates nothing."""
    return EstimateObject(**vars(admission.offer(ctx, caller.project, to_draft(body))))


@router.get("/jobs/{job_id}/comparison")
def compare_job(caller: CanReadJobs, ctx: Using, job_id: str) -> ComparisonObject:
    """The prediction that was made when the job was checked, beside the tokens, seconds and memory that it took."""
    return ComparisonObject(**vars(comparison.compare(ctx, get_job(ctx, caller.project, job_id))))
