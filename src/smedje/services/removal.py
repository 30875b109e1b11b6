"""Removing models, checkpoints and other things with their bytes: what would go, what stands in the way, and doing it.

Rows go first, in one transaction; bytes follow. A server that dies in between leaves bytes that no row names, and the
sweep finds those. Knows what hangs on what; knows nothing of why something is removed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from smedje.domain.jobs import TERMINAL, FineTuningJob
from smedje.domain.projects import Project
from smedje.errors import Conflict, InvalidRequest, NotFound
from smedje.services.audit import Subject, record
from smedje.services.catalog import get_model
from smedje.services.context import Context
from smedje.store import cascade
from smedje.store import catalog as model_rows
from smedje.store import jobs as job_rows

CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that goes. kind: file, checkpoint, model, events or job. prefixes: where its bytes are."""

    kind: str
    id: str
    bytes: int
    created_at: int
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelRemoval:
    """What deleting a model or checkpoint takes away, and which deployments and unfinished jobs stand in the way."""

    name: str
    job_id: str
    key: str
    bytes: int
    objects: int
    deployments: tuple[str, ...]
    jobs: tuple[str, ...]


def plan_model(ctx: Context, project: Project, name: str) -> ModelRemoval:
    """What deleting this model or checkpoint would do. Raises NotFound, and InvalidRequest for a base model."""
    _refuse_base(ctx, project, name)
    with ctx.database.transaction() as tx:
        return _planned(ctx, tx, project, name)


def delete_model(ctx: Context, project: Project, name: str) -> ModelRemoval:
    """Delete a fine-tuned model, or a checkpoint that is no model, and free its bytes; the job stays.

    Raises as `plan_model`, and Conflict naming the deployments and unfinished jobs that use it.
    """
    _refuse_base(ctx, project, name)
    with ctx.database.transaction() as tx:
        plan = _planned(ctx, tx, project, name)
        _refuse_used(plan)
        model_rows.delete_model(tx, project.id, name)
        cascade.delete_checkpoint(tx, project.id, plan.key)
        subject = Subject(id=plan.job_id, project_id=project.id)
        record(ctx, tx, "model.deleted", subject, {"bytes": plan.bytes})
    purge(ctx, [plan.key])
    return plan


def purge(ctx: Context, prefixes: Iterable[str]) -> None:
    """Remove every object under these prefixes, and their copies in this machine's cache."""
    cache = ctx.home / CACHE
    for prefix in prefixes:
        for found in ctx.objects.list(prefix):
            ctx.objects.forget(found.key, cache)
            ctx.objects.delete(found.key)
        ctx.objects.forget(prefix, cache)
        ctx.objects.delete(prefix)


def in_use(tx: Connection, project_id: str, jobs: Iterable[FineTuningJob]) -> tuple[set[str], set[str]]:
    """Files and models' names that unfinished jobs need."""
    files: set[str] = set()
    names: set[str] = set()
    for job in jobs:
        if job.status not in TERMINAL:
            files |= {job.request.training_file, job.request.validation_file or ""}
            names.add(job.request.model)
    return files, names


def _planned(ctx: Context, tx: Connection, project: Project, name: str) -> ModelRemoval:
    model = model_rows.get_model(tx, project.id, name)
    checkpoint = job_rows.find_checkpoint(tx, project.id, name) if model is None else None
    if model is not None:
        key, job_id = model.checkpoint_key, model.job_id
    elif checkpoint is not None:
        key, job_id = checkpoint.key, checkpoint.job_id
        _refuse_model(cascade.model_keys(tx, project.id), key, name)
    else:
        raise NotFound(f"There is no model {name[:100]!r} in this project.", code="model_not_found", param="model")
    names = {name, *(one.model_name for one in cascade.checkpoints_of(tx, project.id) if one.key == key)}
    waiting = [
        job.id for job in cascade.jobs_of(tx, project.id) if job.request.model in names and job.status not in TERMINAL
    ]
    found = ctx.objects.list(key)
    return ModelRemoval(
        name=name,
        job_id=job_id,
        key=key,
        bytes=sum(one.size for one in found),
        objects=len(found),
        deployments=tuple(sorted(one.name for one in cascade.deployments_on(tx, project.id, {key}))),
        jobs=tuple(waiting),
    )


def _refuse_base(ctx: Context, project: Project, name: str) -> None:
    if not name.startswith("ft:"):
        get_model(ctx, project, name)
        raise InvalidRequest(
            f"{name} is a base model, shared by all projects; only fine-tuned models and checkpoints are deleted here. "
            "Remove a base model from the machine with: smedje models remove NAME",
            code="model_not_deletable",
            param="model",
        )


def _refuse_model(models: Mapping[str, str], key: str, name: str) -> None:
    if key in models:
        raise Conflict(
            f"{name} is what the model {models[key]} answers with. Delete that model; this goes with it.",
            code="model_not_deletable",
            param="model",
        )


def _refuse_used(plan: ModelRemoval) -> None:
    if plan.deployments:
        which = "that deployment" if len(plan.deployments) == 1 else "those"
        raise Conflict(
            f"{plan.name} is deployed as {', '.join(plan.deployments)}. Delete {which} first.",
            code="model_deployed",
            param="model",
        )
    if plan.jobs:
        raise Conflict(
            f"{plan.name} is what {', '.join(plan.jobs)} goes on from. Wait for it to end, or cancel it.",
            code="model_in_use",
            param="model",
        )
