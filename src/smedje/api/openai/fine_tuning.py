"""Fine-tuning jobs on the wire: creation, lists, state changes, events and checkpoints, in OpenAI's shapes."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from smedje.api.auth import CanReadJobs, CanWriteJobs
from smedje.api.job_wire import (
    AUTO,
    CheckpointObject,
    FineTuningJobBody,
    JobEventObject,
    Limit,
    to_checkpoint,
    to_draft,
    to_event,
)
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.jobs import FineTuningJob
from smedje.errors import InvalidRequest
from smedje.services import admission
from smedje.services import finetuning as service
from smedje.services.job_request import HYPERPARAMETERS

PAGE_QUERY = frozenset({"after", "limit"})
router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])


class JobErrorObject(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class HyperparametersObject(BaseModel):
    """The request's numbers; "auto" until the run has resolved it."""

    n_epochs: int | str
    batch_size: int | str
    learning_rate_multiplier: float | str


class SupervisedObject(BaseModel):
    """The block of the supervised method, and of classification."""

    hyperparameters: HyperparametersObject


class PreferenceHyperparametersObject(HyperparametersObject):
    """The same numbers, and the strength of preference training."""

    beta: float | str


class PreferenceObject(BaseModel):
    """The block of the dpo method."""

    hyperparameters: PreferenceHyperparametersObject


class MethodObject(BaseModel):
    """How the job trains; the block that has the type's name is there."""

    type: Literal["supervised", "dpo", "classification"]
    supervised: SupervisedObject | None = None
    dpo: PreferenceObject | None = None
    classification: SupervisedObject | None = None

    @model_serializer(mode="wrap")
    def _without_the_other(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class FineTuningJobObject(BaseModel):
    """OpenAI's job object. `smedje`: the request's further knobs and, once known, every resolved number."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobErrorObject | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: HyperparametersObject
    integrations: list[Any]
    metadata: dict[str, str] | None
    method: MethodObject
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    user_provided_suffix: str | None
    validation_file: str | None
    smedje: dict[str, Any]


def to_object(job: FineTuningJob) -> FineTuningJobObject:
    """The wire form of a job."""
    request = job.request
    numbers = HyperparametersObject(**{name: _number(job, name) for name in HYPERPARAMETERS})
    error = job.error
    return FineTuningJobObject(
        id=job.id,
        created_at=job.created_at,
        error=None if error is None else JobErrorObject(code=error.code, message=error.message, param=error.param),
        estimated_finish=job.estimated_finish,
        fine_tuned_model=job.fine_tuned_model,
        finished_at=job.finished_at,
        hyperparameters=numbers,
        integrations=[dict(one) for one in request.integrations],
        metadata=None if request.metadata is None else dict(request.metadata),
        method=_method_object(job, numbers),
        model=request.model,
        organization_id=job.project_id,
        result_files=list(job.result_files),
        seed=request.seed,
        status=job.status.value,
        trained_tokens=job.trained_tokens,
        training_file=request.training_file,
        user_provided_suffix=request.suffix,
        validation_file=request.validation_file,
        smedje={**request.options, "resolved": None if job.resolved is None else dict(job.resolved)},
    )


@router.post("")
def create_job(caller: CanWriteJobs, ctx: Using, body: FineTuningJobBody) -> FineTuningJobObject:
    """Create a job. It is checked further, queued and run in the background."""
    return to_object(admission.create_job(ctx, caller.project, to_draft(body)))


@router.get("")
def list_jobs(
    caller: CanReadJobs, ctx: Using, request: Request, after: str | None = None, limit: Limit = 20
) -> Page[FineTuningJobObject]:
    """The project's jobs, newest first; `metadata[key]=value` keeps those that carry the pair."""
    refuse_unknown_query(request, PAGE_QUERY, prefix="metadata")
    found = service.list_jobs(ctx, caller.project, after=after, limit=limit + 1, metadata=_metadata_filter(request))
    return page(found, limit, to_object, lambda job: job.id)


@router.get("/{job_id}")
def get_job(caller: CanReadJobs, ctx: Using, job_id: str) -> FineTuningJobObject:
    """One job."""
    return to_object(service.get_job(ctx, caller.project, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(caller: CanWriteJobs, ctx: Using, job_id: str) -> FineTuningJobObject:
    """Cancel a job that has not ended."""
    return to_object(service.cancel_job(ctx, caller.project, job_id))


@router.post("/{job_id}/pause")
def pause_job(caller: CanWriteJobs, ctx: Using, job_id: str) -> FineTuningJobObject:
    """Pause a running job that has done at least one step; its run saves its state and ends."""
    return to_object(service.pause_job(ctx, caller.project, job_id))


@router.post("/{job_id}/resume")
def resume_job(caller: CanWriteJobs, ctx: Using, job_id: str) -> FineTuningJobObject:
    """Queue a paused job again."""
    return to_object(service.resume_job(ctx, caller.project, job_id))


@router.get("/{job_id}/events")
def list_events(
    caller: CanReadJobs, ctx: Using, request: Request, job_id: str, after: str | None = None, limit: Limit = 20
) -> Page[JobEventObject]:
    """The job's events, newest first."""
    refuse_unknown_query(request, PAGE_QUERY)
    found = service.list_events(ctx, caller.project, job_id, after=after, limit=limit + 1)
    return page(found, limit, to_event, lambda event: event.id)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    caller: CanReadJobs, ctx: Using, request: Request, job_id: str, after: str | None = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """The job's checkpoints, newest first."""
    refuse_unknown_query(request, PAGE_QUERY)
    found = service.list_checkpoints(ctx, caller.project, job_id, after=after, limit=limit + 1)
    return page(found, limit, to_checkpoint, lambda checkpoint: checkpoint.id)


def _method_object(job: FineTuningJob, numbers: HyperparametersObject) -> MethodObject:
    if job.request.method == "dpo":
        full = PreferenceHyperparametersObject(**numbers.model_dump(), beta=_number(job, "beta"))
        return MethodObject(type="dpo", dpo=PreferenceObject(hyperparameters=full))
    if job.request.method == "classification":
        return MethodObject(type="classification", classification=SupervisedObject(hyperparameters=numbers))
    return MethodObject(type="supervised", supervised=SupervisedObject(hyperparameters=numbers))


def _number(job: FineTuningJob, name: str) -> Any:
    resolved = job.resolved or {}
    return resolved[name] if name in resolved else job.request.hyperparameters.get(name, AUTO)


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """The pairs that jobs must carry; an empty mapping (`metadata=null`) means jobs without any."""
    found = {}
    for name, value in request.query_params.items():
        if name == "metadata" and value == "null":
            return {}
        if name.startswith("metadata"):
            if not (name.startswith("metadata[") and name.endswith("]")):
                raise InvalidRequest(
                    f"{name[:80]!r} should look like metadata[key].", code="invalid_value", param="metadata"
                )
            found[name[len("metadata[") : -1]] = value
    return found or None
