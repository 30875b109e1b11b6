"""Fine-tuning jobs: creating one, looking at it, and asking it to stop, pause or go on.

Knows ownership, files and models; the run itself belongs to the scheduler, which finds the state that is left here.
"""

import secrets
from collections.abc import Callable, Mapping

from sqlalchemy import Connection

from smedje.data.forms import METHODS, NAMES, form_of
from smedje.domain.catalog import TrainingLimits
from smedje.domain.files import File, FilePurpose, FileStatus
from smedje.domain.ids import JOB, new_id
from smedje.domain.jobs import Checkpoint, FineTuningJob, JobEvent, JobRequest, JobStatus, advance
from smedje.domain.projects import Project
from smedje.domain.quotas import Limit
from smedje.errors import Conflict, InvalidData, InvalidRequest, NotFound
from smedje.modeling.catalog import base_defaults
from smedje.services import files as file_service
from smedje.services import quotas
from smedje.services.audit import record_in
from smedje.services.catalog import resolve_origin, training_limits
from smedje.services.classifiers import labels_of
from smedje.services.context import Context
from smedje.services.integrations import check_integrations
from smedje.services.job_ends import moved
from smedje.services.job_request import (
    LARGEST_SEED,
    JobDraft,
    check_hyperparameters,
    check_metadata,
    check_method,
    check_method_options,
    check_options,
    check_seed,
    check_suffix,
)
from smedje.services.locations import check_location
from smedje.services.run_events import job_event
from smedje.services.whole_models import tuned_in_full
from smedje.store import jobs as store

FEWEST_EXAMPLES = 10
EVENTS_LOOKED_AT = 20


def create_job(
    ctx: Context, project: Project, draft: JobDraft, *, holding: quotas.Holding | None = None
) -> FineTuningJob:
    """A new job in `validating_files`, with its first event.

    Raises InvalidRequest, UnsupportedField or InvalidData naming the field at fault; nothing is stored then.
    """
    request = check_draft(ctx, project, draft)
    now = ctx.seconds()
    job = FineTuningJob(
        id=new_id(JOB),
        project_id=project.id,
        request=request,
        status=JobStatus.VALIDATING_FILES,
        created_at=now,
        key_id=ctx.actor.key_id,
    )
    with ctx.database.transaction() as tx:
        quotas.check_room(ctx, tx, project.id, Limit.ACTIVE_JOBS)
        quotas.check_room(ctx, tx, project.id, Limit.FINE_TUNED_MODELS)
        store.insert_job(tx, job)
        store.insert_events(tx, [job_event(job.id, now=now, message=f"Created fine-tuning job: {job.id}")])
        if holding is not None:
            quotas.reserve_for_job(ctx, tx, project.id, job.id, holding)
        record_in(ctx, tx, "job.created", project.id, job.id)
    ctx.wake.set()
    return job


def check_draft(ctx: Context, project: Project, draft: JobDraft) -> JobRequest:
    """The request, checked and complete: what `create_job` stores and `estimate` predicts."""
    check_method(draft.method)
    suffix = check_suffix(draft.suffix)
    check_seed(draft.seed)
    check_metadata(draft.metadata)
    try:
        origin = resolve_origin(ctx, project.id, draft.model)
    except NotFound as problem:
        # The address exists, a field of the body is wrong: 400, where the same problem in a path is 404.
        raise InvalidRequest(problem.message, code=problem.code, param="model") from None
    if tuned_in_full(ctx, origin.adapter_key) and draft.options.get("tuning") != "full":
        raise InvalidRequest(
            f"All weights of {draft.model} were tuned; a job goes on with it with smedje.tuning full. An adapter on it "
            "is not offered: export it as merged and install that as a base model.",
            code="wrong_model_kind",
            param="model",
        )
    if draft.method != "classification" and labels_of(ctx, origin.adapter_key):
        raise InvalidRequest(
            f"{draft.model} is a classifier; the method {draft.method} cannot go on with it. Use classification, or "
            "start from a chat model.",
            code="wrong_model_kind",
            param="model",
        )
    check_location(ctx, project, origin.base_model, draft.method)
    limits: TrainingLimits = training_limits(origin.base_model)
    where = "hyperparameters" if draft.legacy_form else f"method.{draft.method}.hyperparameters"
    hyperparameters = check_hyperparameters(draft.hyperparameters, limits, where, method=draft.method)
    options = check_options(draft.options, hyperparameters, limits, base_defaults(origin.base_model))
    check_method_options(options, method=draft.method, validation_file=draft.validation_file is not None)
    for param, file_id in (("training_file", draft.training_file), ("validation_file", draft.validation_file)):
        if file_id is not None:
            _check_form(ctx, _check_file(ctx, project, file_id, param), param, method=draft.method)
    return JobRequest(
        model=draft.model,
        base_model=origin.base_model,
        training_file=draft.training_file,
        validation_file=draft.validation_file,
        suffix=suffix,
        seed=draw_seed() if draft.seed is None else draft.seed,
        method=draft.method,
        hyperparameters=hyperparameters,
        options=options,
        metadata=None if draft.metadata is None else dict(draft.metadata),
        legacy_form=draft.legacy_form,
        integrations=check_integrations(draft.integrations),
    )


def draw_seed() -> int:
    """A seed for a job that was given none."""
    return secrets.randbelow(LARGEST_SEED + 1)


def get_job(ctx: Context, project: Project, job_id: str) -> FineTuningJob:
    """Raises NotFound when this project has no such job."""
    with ctx.database.transaction() as tx:
        job = store.get_job(tx, project.id, job_id)
    if job is None:
        raise _no_job(job_id)
    return job


def list_jobs(
    ctx: Context, project: Project, *, after: str | None, limit: int, metadata: Mapping[str, str] | None = None
) -> list[FineTuningJob]:
    """At most `limit` jobs, newest first. Raises NotFound for an unknown `after`."""
    with ctx.database.transaction() as tx:
        return list(store.list_jobs(tx, project.id, after=after, limit=limit, metadata=metadata))


def list_events(ctx: Context, project: Project, job_id: str, *, after: str | None, limit: int) -> list[JobEvent]:
    """At most `limit` events, newest first. Raises NotFound for an unknown job."""
    get_job(ctx, project, job_id)
    with ctx.database.transaction() as tx:
        return list(store.list_events(tx, job_id, after=after, limit=limit))


def list_checkpoints(ctx: Context, project: Project, job_id: str, *, after: str | None, limit: int) -> list[Checkpoint]:
    """At most `limit` checkpoints, newest first. Raises NotFound for an unknown job."""
    get_job(ctx, project, job_id)
    with ctx.database.transaction() as tx:
        return list(store.list_checkpoints(tx, project.id, job_id, after=after, limit=limit))


def cancel_job(ctx: Context, project: Project, job_id: str) -> FineTuningJob:
    """The job, cancelled; the scheduler stops its run. Raises NotFound, and Conflict for a job that has ended."""
    return _move(ctx, project, job_id, JobStatus.CANCELLED, "The job has been cancelled")


def pause_job(ctx: Context, project: Project, job_id: str) -> FineTuningJob:
    """The job, paused; its run saves its state and ends. Raises Conflict unless it is running and has done a step."""
    return _move(ctx, project, job_id, JobStatus.PAUSED, "The job has been paused", check=_has_done_a_step)


def resume_job(ctx: Context, project: Project, job_id: str) -> FineTuningJob:
    """The job, queued again; it goes on from its saved state. Raises Conflict unless it is paused."""
    return _move(ctx, project, job_id, JobStatus.QUEUED, "The job has been resumed", check=_is_paused)


def _move(
    ctx: Context,
    project: Project,
    job_id: str,
    status: JobStatus,
    message: str,
    check: Callable[[Connection, FineTuningJob], None] | None = None,
) -> FineTuningJob:
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        job = store.get_job(tx, project.id, job_id, lock=True)
        if job is None:
            raise _no_job(job_id)
        if check is not None:
            check(tx, job)
        changed = advance(job, status, now=now)
        store.save_job(tx, changed, was=job.status)
        store.insert_events(tx, [job_event(job.id, now=now, message=message)])
        moved(ctx, tx, changed, action="job.resumed" if status is JobStatus.QUEUED else None)
    ctx.wake.set()
    return changed


def _has_done_a_step(tx: Connection, job: FineTuningJob) -> None:
    if job.status is not JobStatus.RUNNING:
        return
    # A running job's newest events are its steps, so the first few tell.
    events = store.list_events(tx, job.id, limit=EVENTS_LOOKED_AT)
    if not any(event.type == "metrics" and (event.data or {}).get("step", 0) > 0 for event in events):
        raise Conflict(
            f"Job {job.id} has not done a step yet, so there is nothing to save. Pause it after its first step.",
            code="job_state_conflict",
            param="fine_tuning_job_id",
        )


def _is_paused(tx: Connection, job: FineTuningJob) -> None:
    if job.status is not JobStatus.PAUSED:
        raise Conflict(
            f"Job {job.id} is {job.status.value}; only a paused job can be resumed.",
            code="job_state_conflict",
            param="fine_tuning_job_id",
        )


def _check_form(ctx: Context, file: File, param: str, *, method: str) -> None:
    """Raises InvalidRequest when the file's rows are for another method."""
    form, wanted = form_of(file_service.local_bytes(ctx, file)), METHODS[method]
    if form != wanted:
        raise InvalidRequest(
            f"{param}: {file.id} holds {NAMES[form]}; the method {method} needs {NAMES[wanted]}.",
            code="wrong_data_form",
            param=param,
        )


def _check_file(ctx: Context, project: Project, file_id: str, param: str) -> File:
    try:
        file = file_service.get_file(ctx, project, file_id)
    except NotFound:
        raise InvalidRequest(
            f"{param}: file not found: {file_id[:100]}. Upload it first and use the id in the answer.",
            code="file_not_found",
            param=param,
        ) from None
    if file.purpose is not FilePurpose.FINE_TUNE:
        raise InvalidRequest(
            f"{param}: {file.id} has the purpose {file.purpose.value}; upload it with the purpose fine-tune.",
            code="invalid_file_purpose",
            param=param,
        )
    if param == "training_file" and file.examples is not None and file.examples < FEWEST_EXAMPLES:
        raise InvalidRequest(
            f"Training file has {file.examples} example(s), but must have at least {FEWEST_EXAMPLES} examples",
            code="invalid_n_examples",
            param=param,
        )
    if file.status is not FileStatus.PROCESSED:
        raise _bad_data(ctx, file, param)
    return file


def _bad_data(ctx: Context, file: File, param: str) -> InvalidData:
    problems = file_service.stored_problems(ctx, file)
    return InvalidData(
        f"{param}: {file.id} has problems. {file.status_details or ''} See GET /api/files/{file.id}/report.",
        param=param,
        problems=problems,
    )


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"Could not find fine tune: {job_id[:100]}", code="fine_tune_not_found", param="fine_tuning_job_id")
