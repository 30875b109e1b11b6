"""The estimate on the wire: the body of a job's creation, answered with what the job would take."""

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from smedje.api.auth import CanReadJobs
from smedje.api.openai.fine_tuning import FineTuningJobBody, to_draft
from smedje.api.state import Using
from smedje.domain.prices import UNIT
from smedje.services import estimate as service
from smedje.services.admission import training_cost
from smedje.services.costs import current_prices

router = APIRouter(prefix="/api/fine_tuning", tags=["fine-tuning"])


class EstimateObject(BaseModel):
    """Counts are exact; `seconds` is a guess with an error bar, and `basis` says what it rests on."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    rows: int
    validation_rows: int
    trained_tokens: int
    labelled_tokens: int
    n_epochs: int
    batch_size: int
    learning_rate: float
    steps: int
    seconds: float
    seconds_low: float
    seconds_high: float
    tokens_per_second: float
    memory_bytes: int
    disk_bytes: int
    fits: bool
    basis: str
    proposal: str | None
    price: float
    currency: str


@router.post("/estimate")
def estimate_job(caller: CanReadJobs, ctx: Using, body: FineTuningJobBody) -> EstimateObject:
    """What this job would take. Creates nothing."""
    found = service.estimate(ctx, caller.project, to_draft(body))
    cost = training_cost(ctx, tokens=found.trained_tokens, seconds=found.seconds)
    return EstimateObject(**asdict(found), price=cost / UNIT, currency=current_prices(ctx).currency)


class ComparisonObject(BaseModel):
    """What was predicted for a job and what it took; null where it is not known (yet)."""

    object: Literal["fine_tuning.job.comparison"] = "fine_tuning.job.comparison"
    job_id: str
    predicted: dict[str, Any] | None
    trained_tokens: int | None
    seconds: float | None
    memory_bytes: int | None


@router.get("/jobs/{job_id}/comparison")
def compare_job(caller: CanReadJobs, ctx: Using, job_id: str) -> ComparisonObject:
    """The prediction that was made when the job was checked, beside the tokens, seconds and memory that it took."""
    return ComparisonObject(**asdict(service.compare(ctx, caller.project, job_id)))
