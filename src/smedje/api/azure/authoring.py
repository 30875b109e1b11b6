"""Files and fine-tuning jobs under Azure's classic paths (`/openai/files`, `/openai/fine_tuning/jobs`).

Knows Azure's statuses, fields and defaults; what they do is the same as under OpenAI's paths.
"""

import re
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from smedje.api.auth import CanReadFiles, CanReadJobs, CanReadModels, CanWriteFiles, CanWriteJobs
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
from smedje.api.paging import Page, page
from smedje.api.state import Using
from smedje.api.uploads import MULTIPART_SCHEMA, receive_file
from smedje.domain.files import File
from smedje.domain.jobs import FineTuningJob, JobEvent, JobStatus
from smedje.errors import InvalidRequest
from smedje.services import admission, catalog, files, finetuning
from smedje.services.job_request import HYPERPARAMETERS, JobDraft

FILES = "/openai/files"
JOBS = "/openai/fine_tuning/jobs"
# Azure has one word for all that comes before the first step.
PENDING = frozenset({JobStatus.VALIDATING_FILES, JobStatus.QUEUED})
AUTO_NUMBER = -1
SUFFIX = re.compile(r"[A-Za-z0-9_-]{1,40}\Z")

router = APIRouter(tags=["azure"])


class AzureFile(BaseModel):
    """Azure's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    updated_at: int
    filename: str
    purpose: str
    status: str
    status_details: str | None


class AzureJob(BaseModel):
    """Azure's job object: null where OpenAI sends empty lists, -1 where OpenAI sends "auto"."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str
    created_at: int
    finished_at: int | None
    fine_tuned_model: str | None
    training_file: str
    validation_file: str | None
    result_files: list[str] | None
    status: str
    trained_tokens: int | None
    estimated_finish: int | None
    error: dict[str, Any] | None
    hyperparameters: dict[str, float]
    seed: int
    suffix: str | None
    organization_id: None = None
    integrations: None = None


class AzureModel(BaseModel):
    """Azure's model object."""

    id: str
    object: Literal["model"] = "model"
    created_at: int
    status: Literal["succeeded"] = "succeeded"
    model: str | None
    fine_tune: str | None
    capabilities: dict[str, bool]
    lifecycle_status: Literal["generally-available"] = "generally-available"


class AzureModelList(BaseModel):
    """Azure's list of models."""

    object: Literal["list"] = "list"
    data: list[AzureModel]


@router.post(FILES, status_code=201, openapi_extra=MULTIPART_SCHEMA)
async def create_file(caller: CanWriteFiles, request: Request, response: Response) -> AzureFile:
    """Upload a file."""
    made = _file(await receive_file(request, caller.project))
    response.headers["location"] = f"{FILES}/{made.id}"
    return made


@router.get(FILES)
def list_files(caller: CanReadFiles, ctx: Using, purpose: str | None = None) -> Page[AzureFile]:
    """The project's files, newest first; never paged."""
    found = files.list_files(ctx, caller.project, purpose=purpose, after=None, limit=10_000, order="desc")
    return page(found, len(found), _file, lambda file: file.id)


@router.get(FILES + "/{file_id}")
def get_file(caller: CanReadFiles, ctx: Using, file_id: str) -> AzureFile:
    """One file."""
    return _file(files.get_file(ctx, caller.project, file_id))


@router.delete(FILES + "/{file_id}", status_code=204)
def delete_file(caller: CanWriteFiles, ctx: Using, file_id: str) -> None:
    """Forget a file."""
    files.delete_file(ctx, caller.project, file_id)


@router.get(FILES + "/{file_id}/content", response_class=StreamingResponse)
def get_content(caller: CanReadFiles, ctx: Using, file_id: str) -> StreamingResponse:
    """The exact bytes that were uploaded."""
    file, pieces = files.read_file(ctx, caller.project, file_id)
    headers = {"content-length": str(file.bytes), "content-disposition": "attachment"}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)


@router.post(JOBS, status_code=201)
def create_job(caller: CanWriteJobs, ctx: Using, response: Response, body: FineTuningJobBody) -> AzureJob:
    """Create a job."""
    made = _job(admission.create_job(ctx, caller.project, _draft(body)))
    response.headers["location"] = f"{JOBS}/{made.id}"
    return made


@router.get(JOBS)
def list_jobs(caller: CanReadJobs, ctx: Using, after: str | None = None, limit: Limit = 20) -> Page[AzureJob]:
    """The project's jobs, newest first."""
    found = finetuning.list_jobs(ctx, caller.project, after=after, limit=limit + 1, metadata=None)
    return page(found, limit, _job, lambda job: job.id)


@router.get(JOBS + "/{job_id}")
def get_job(caller: CanReadJobs, ctx: Using, job_id: str) -> AzureJob:
    """One job."""
    return _job(finetuning.get_job(ctx, caller.project, job_id))


@router.post(JOBS + "/{job_id}/cancel")
def cancel_job(caller: CanWriteJobs, ctx: Using, job_id: str) -> AzureJob:
    """Cancel a job that has not ended."""
    return _job(finetuning.cancel_job(ctx, caller.project, job_id))


@router.post(JOBS + "/{job_id}/pause")
def pause_job(caller: CanWriteJobs, ctx: Using, job_id: str) -> AzureJob:
    """Pause a running job."""
    return _job(finetuning.pause_job(ctx, caller.project, job_id))


@router.post(JOBS + "/{job_id}/resume")
def resume_job(caller: CanWriteJobs, ctx: Using, job_id: str) -> AzureJob:
    """Queue a paused job again."""
    return _job(finetuning.resume_job(ctx, caller.project, job_id))


# Azure's documents show POST for these two beside GET.
@router.post(JOBS + "/{job_id}/events")
@router.get(JOBS + "/{job_id}/events")
def list_events(
    caller: CanReadJobs, ctx: Using, job_id: str, after: str | None = None, limit: Limit = 20
) -> Page[JobEventObject]:
    """The job's events, newest first."""
    found = finetuning.list_events(ctx, caller.project, job_id, after=after, limit=limit + 1)
    return page(found, limit, _event, lambda event: event.id)


@router.post(JOBS + "/{job_id}/checkpoints")
@router.get(JOBS + "/{job_id}/checkpoints")
def list_checkpoints(
    caller: CanReadJobs, ctx: Using, job_id: str, after: str | None = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """The job's checkpoints, newest first."""
    found = finetuning.list_checkpoints(ctx, caller.project, job_id, after=after, limit=limit + 1)
    return page(found, limit, to_checkpoint, lambda checkpoint: checkpoint.id)


@router.get("/openai/models")
def list_models(caller: CanReadModels, ctx: Using) -> AzureModelList:
    """Every model that a job or a deployment may name."""
    return AzureModelList(data=[_model(entry) for entry in catalog.list_models(ctx, caller.project)])


@router.get("/openai/models/{model}")
def get_model(caller: CanReadModels, ctx: Using, model: str) -> AzureModel:
    """One model."""
    return _model(catalog.get_model(ctx, caller.project, model))


def _file(file: File) -> AzureFile:
    return AzureFile(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        updated_at=file.created_at,
        filename=file.filename,
        purpose=file.purpose.value,
        # Azure's files are uploaded first and checked later; ours are checked when they arrive.
        status="pending" if file.status.value == "uploaded" else file.status.value,
        status_details=file.status_details,
    )


def _draft(body: FineTuningJobBody) -> JobDraft:
    if body.suffix is not None and not SUFFIX.match(body.suffix):
        raise InvalidRequest(
            f"suffix is {body.suffix[:60]!r}. Use 1 to 40 letters, digits, '-' or '_'.",
            code="invalid_value",
            param="suffix",
        )
    draft = to_draft(body)
    numbers = {name: AUTO if value == AUTO_NUMBER else value for name, value in draft.hyperparameters.items()}
    return replace(draft, hyperparameters=numbers)


def _job(job: FineTuningJob) -> AzureJob:
    request, error, known = job.request, job.error, {**job.request.hyperparameters, **(job.resolved or {})}
    numbers = {name: known.get(name, AUTO) for name in HYPERPARAMETERS}
    return AzureJob(
        id=job.id,
        model=request.model,
        created_at=job.created_at,
        finished_at=job.finished_at,
        fine_tuned_model=job.fine_tuned_model,
        training_file=request.training_file,
        validation_file=request.validation_file,
        result_files=list(job.result_files) or None,
        status="pending" if job.status in PENDING else job.status.value,
        trained_tokens=job.trained_tokens,
        estimated_finish=job.estimated_finish,
        error=None if error is None else {"code": error.code, "message": error.message},
        hyperparameters={
            name: (1.0 if name == "learning_rate_multiplier" else AUTO_NUMBER) if value == AUTO else value
            for name, value in numbers.items()
        },
        seed=request.seed,
        suffix=request.suffix,
    )


def _event(event: JobEvent) -> JobEventObject:
    made = to_event(event)
    return made.model_copy(update={"level": "warning"}) if made.level == "warn" else made


def _model(entry: catalog.ModelEntry) -> AzureModel:
    tuned = entry.fine_tuned
    abilities = {"fine_tune": True, "inference": True, "chat_completion": True, "completion": True, "embeddings": False}
    return AzureModel(
        id=entry.name,
        created_at=entry.created_at,
        model=None if tuned is None else tuned.base_model,
        fine_tune=None if tuned is None else tuned.job_id,
        capabilities=abilities,
    )
