"""Fine-tuning jobs: the request, the state, and the one function that moves it.

State machine: validating_files -> queued -> running -> succeeded | failed | cancelled, with paused between
running and queued. Exactly one terminal event exists because `advance` refuses to leave a terminal state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from smedje.errors import Conflict


class JobStatus(StrEnum):
    """OpenAI's statuses; `paused` is used by its API though missing from its published enum."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({JobStatus.PAUSED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed, in OpenAI's three fields."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What was asked for, as given.

    model: the name in the request (a base model, a fine-tuned model or a checkpoint). base_model: what it resolves to.
    hyperparameters: n_epochs, batch_size, learning_rate_multiplier; a number or "auto".
    options: the `smedje` request field (knobs beyond OpenAI's), validated and complete with defaults left out.
    legacy_form: the caller used the top-level `hyperparameters` instead of `method`. integrations: in OpenAI's form.
    """

    model: str
    base_model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int = 0
    method: str = "supervised"
    hyperparameters: Mapping[str, float | int | str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    legacy_form: bool = False
    integrations: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class FineTuningJob:
    """A request to produce a fine-tuned model, and how far it has come.

    resolved: the numbers that "auto" became, once the run has begun. trained_tokens: all tokens of the rows that were
    trained on, once for each time (OpenAI's billable tokens).
    result_files: ids of files with purpose fine-tune-results. key_id: the key that made it. Times are Unix seconds.
    """

    id: str
    project_id: str
    request: JobRequest
    status: JobStatus
    created_at: int
    resolved: Mapping[str, Any] | None = None
    started_at: int | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    fine_tuned_model: str | None = None
    result_files: tuple[str, ...] = ()
    error: JobError | None = None
    key_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One line of a job's story. type `metrics` carries numbers in `data`."""

    id: str
    job_id: str
    created_at: int
    level: str
    message: str
    type: str = "message"
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights a run saved at the end of an epoch. `key` is the object-storage prefix that holds its files, `bytes`
    what they take there."""

    id: str
    project_id: str
    job_id: str
    step: int
    model_name: str
    key: str
    metrics: Mapping[str, float]
    created_at: int
    bytes: int = 0


def advance(job: FineTuningJob, status: JobStatus, *, now: int, error: JobError | None = None) -> FineTuningJob:
    """The job in its next state. `now` is Unix seconds.

    Raises Conflict when the state machine has no such move, so a job ends exactly once.
    """
    if status not in MOVES[job.status]:
        raise Conflict(
            f"Job {job.id} is {job.status.value}; it cannot become {status.value}.",
            code="job_state_conflict",
            param="fine_tuning_job_id",
        )
    return replace(
        job,
        status=status,
        started_at=job.started_at or (now if status is JobStatus.RUNNING else None),
        finished_at=now if status in TERMINAL else None,
        estimated_finish=job.estimated_finish if status is JobStatus.RUNNING else None,
        error=error if status is JobStatus.FAILED else None,
    )
