"""The estimate on the wire: the body of a job's creation, answered with what the job would take."""

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from smedje.api.auth import CanReadJobs
from smedje.api.openai.fine_tuning import FineTuningJobBody, to_draft
from smedje.api.state import Using
from smedje.services import estimate as service

router = APIRouter(prefix="/api/fine_tuning", tags=["fine-tuning"])


class EstimateObject(BaseModel):
    """Counts are exact; `seconds` is a guess, and `basis` says what it rests on."""

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
    tokens_per_second: float
    memory_bytes: int
    disk_bytes: int
    fits: bool
    basis: str


@router.post("/estimate")
def estimate_job(caller: CanReadJobs, ctx: Using, body: FineTuningJobBody) -> EstimateObject:
    """What this job would take. Creates nothing."""
    return EstimateObject(**asdict(service.estimate(ctx, caller.project, to_draft(body))))
