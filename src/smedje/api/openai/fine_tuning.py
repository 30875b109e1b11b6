"""Fine-tuning jobs on the wire: creation, lists, state changes, events and checkpoints, in OpenAI's shapes."""

from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from smedje.api.auth import CanReadJobs, CanWriteJobs
from smedje.api.bodies import Body
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.jobs import Checkpoint, FineTuningJob, JobEvent
from smedje.errors import InvalidRequest, UnsupportedField
from smedje.services import admission
from smedje.services import finetuning as service
from smedje.services.job_request import HYPERPARAMETERS, METHOD_NAMES, JobDraft

PAGE_QUERY = frozenset({"after", "limit"})
METHOD_BLOCKS = ("supervised", "dpo", "classification", "reinforcement")
AUTO = "auto"

Limit = Annotated[int, Query(ge=1, le=100)]

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])


class FineTuningJobBody(Body):
    """The body of a job's creation. `smedje`: knobs beyond OpenAI's, see docs/api.md."""

    wire_name: ClassVar[str] = "job"

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(min_length=1, max_length=256)]
    validation_file: Annotated[str | None, Field(max_length=256)] = None
    suffix: str | None = None
    seed: int | None = None
    hyperparameters: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    smedje: dict[str, Any] | None = None


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


class JobEventObject(BaseModel):
    """OpenAI's event object."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """OpenAI's checkpoint object. metrics: those of its step that were measured."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


def to_draft(body: FineTuningJobBody) -> JobDraft:
    """The request behind a body. Raises InvalidRequest for a malformed `method`, or hyperparameters given twice."""
    method, hyperparameters = _method(body)
    return JobDraft(
        model=body.model,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        seed=body.seed,
        method=method,
        hyperparameters=hyperparameters,
        options=body.smedje or {},
        metadata=body.metadata,
        legacy_form=body.method is None and body.hyperparameters is not None,
    )


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
        integrations=[],
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


def to_event(event: JobEvent) -> JobEventObject:
    """The wire form of an event."""
    return JobEventObject(
        id=event.id,
        created_at=event.created_at,
        level=event.level,
        message=event.message,
        type=event.type,
        data=None if event.data is None else dict(event.data),
    )


def to_checkpoint(checkpoint: Checkpoint) -> CheckpointObject:
    """The wire form of a checkpoint."""
    return CheckpointObject(
        id=checkpoint.id,
        created_at=checkpoint.created_at,
        fine_tuned_model_checkpoint=checkpoint.model_name,
        fine_tuning_job_id=checkpoint.job_id,
        metrics={"step": checkpoint.step, **checkpoint.metrics},
        step_number=checkpoint.step,
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


def _method(body: FineTuningJobBody) -> tuple[str, dict[str, Any]]:
    """The method's name and its hyperparameters, from either form."""
    if body.method is None:
        return "supervised", body.hyperparameters or {}
    if body.hyperparameters:
        raise InvalidRequest(
            "hyperparameters was given beside method. Put them into method only.",
            code="conflicting_fields",
            param="hyperparameters",
        )
    method = body.method
    kind = method.get("type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"method.type is required; use {METHOD_NAMES}.", code="missing_field", param="method.type")
    for name in method.keys() - {"type", *METHOD_BLOCKS}:
        raise InvalidRequest(
            f"The field 'method.{name[:60]}' is not known here.", code="unknown_field", param=f"method.{name[:60]}"
        )
    block = method.get(kind) or {}
    for name in METHOD_BLOCKS:
        if name != kind and method.get(name):
            raise InvalidRequest(
                f"method.{name} was given for a job of type {kind[:60]!r}.",
                code="conflicting_fields",
                param=f"method.{name}",
            )
    if not isinstance(block, dict) or not isinstance(block.get("hyperparameters") or {}, dict):
        raise InvalidRequest(
            f"method.{kind} must be an object with hyperparameters.", code="invalid_value", param="method"
        )
    if kind != "reinforcement":
        for name in block.keys() - {"hyperparameters"}:
            raise UnsupportedField(
                f"method.{kind[:60]}.{name[:60]} is not offered. Leave it out.", param=f"method.{kind[:60]}.{name[:60]}"
            )
    return kind, block.get("hyperparameters") or {}
