"""Domain values for tests of the store, and the few rows that others rest on."""

from typing import Any

from sqlalchemy import Connection

from smedje.domain.files import File, FilePurpose, FileStatus
from smedje.domain.jobs import Checkpoint, FineTuningJob, JobEvent, JobRequest, JobStatus
from smedje.domain.projects import Hub, Project
from smedje.domain.runs import Run, RunState
from smedje.store.jobs import insert_job
from smedje.store.projects import insert_hub, insert_project


def add_project(tx: Connection, name: str = "default") -> Project:
    """A project in a hub of its own."""
    hub = Hub(id=f"hub_{name}", name=name, display_name=name.title(), location="local", created_at=1)
    project = Project(id=f"proj_{name}", hub_id=hub.id, name=name, description="", created_at=1)
    insert_hub(tx, hub)
    insert_project(tx, project)
    return project


def make_job(project: Project, number: int = 1, **changes: Any) -> FineTuningJob:
    """A job that has just been asked for."""
    request = JobRequest(
        model="phi-3-tiny-random",
        base_model="phi-3-tiny-random",
        training_file="file-1",
        hyperparameters={"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5},
        options={"lora": {"rank": 8}},
        metadata=changes.pop("metadata", None),
    )
    facts: dict[str, Any] = {"status": JobStatus.QUEUED, "created_at": 100, "request": request}
    return FineTuningJob(id=f"ftjob-{number}", project_id=project.id, **{**facts, **changes})


def add_job(tx: Connection, project: Project, number: int = 1, **changes: Any) -> FineTuningJob:
    """The same, recorded."""
    job = make_job(project, number, **changes)
    insert_job(tx, job)
    return job


def make_event(job: FineTuningJob, number: int, **changes: Any) -> JobEvent:
    """A line of a job's story."""
    facts: dict[str, Any] = {"created_at": 100, "level": "info", "message": f"event {number}"}
    return JobEvent(id=f"ftevent-{number}", job_id=job.id, **{**facts, **changes})


def make_checkpoint(job: FineTuningJob, step: int) -> Checkpoint:
    """A checkpoint of a job."""
    return Checkpoint(
        id=f"ftckpt_{job.id}_{step}",
        project_id=job.project_id,
        job_id=job.id,
        step=step,
        model_name=f"ft:base:{job.project_id}::{job.id[-1] * 8}:ckpt-step-{step}",
        key=f"runs/r/checkpoints/{step}",
        metrics={"train_loss": 1.25},
        created_at=100 + step,
    )


def make_run(job: FineTuningJob, attempt: int = 1, state: RunState = RunState.STARTING) -> Run:
    """An attempt to execute a job."""
    return Run(
        id=f"run-{job.id}-{attempt}",
        job_id=job.id,
        attempt=attempt,
        state=state,
        executor="local",
        handle={"memory_bytes": 5},
        started_at=100,
    )


def make_file(project: Project, number: int, **changes: Any) -> File:
    """An uploaded file."""
    facts: dict[str, Any] = {"purpose": FilePurpose.FINE_TUNE, "sha256": f"{number:064x}", "bytes": 2**40}
    return File(
        id=f"file-{number}",
        project_id=project.id,
        filename="support æøå 🛠.jsonl",
        status=FileStatus.PROCESSED,
        created_at=100,
        **{**facts, **changes},
    )
