"""Fine-tuning jobs on the wire, as far as OpenAI's and Azure's routes agree: creation, events and checkpoints."""

from typing import Annotated, Any, ClassVar, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from smedje.api.bodies import Body
from smedje.domain.jobs import Checkpoint, JobEvent
from smedje.errors import InvalidRequest, UnsupportedField
from smedje.services.job_request import METHOD_NAMES, JobDraft

METHOD_BLOCKS = ("supervised", "dpo", "classification", "reinforcement")
AUTO = "auto"

Limit = Annotated[int, Query(ge=1, le=100)]


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
    integrations: list[dict[str, Any]] | None = None
    smedje: dict[str, Any] | None = None


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
        integrations=body.integrations,
        legacy_form=body.method is None and body.hyperparameters is not None,
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
