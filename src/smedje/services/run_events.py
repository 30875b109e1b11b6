"""From what a worker says to rows: events, checkpoints, the model, the results file. Each thing exactly once.

Events are taken in together with the cursor that remembers them, in one transaction. A step that two attempts both
report (the second repeats it after a resume) is one row, because step rows are unique per job and step.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from smedje.domain.catalog import FineTunedModel, fine_tuned_name
from smedje.domain.files import File, FilePurpose, FileStatus, content_key
from smedje.domain.ids import CHECKPOINT, EVENT, FILE, new_id
from smedje.domain.jobs import Checkpoint, FineTuningJob, JobEvent
from smedje.domain.runs import Run, RunEvent, RunResult
from smedje.objects.run_folder import RunFolder
from smedje.services import job_ends
from smedje.services.context import Context
from smedje.store import catalog as model_rows
from smedje.store import files as file_rows
from smedje.store import jobs as job_rows
from smedje.store import runs as run_rows
from smedje.store import usage as usage_rows

COLUMNS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
# Columns that only some methods have; a results file has those that were measured.
MORE_COLUMNS = tuple(
    f"{part}_{figure}"
    for part in ("train", "valid", "full_valid")
    for figure in ("reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward", "accuracy", "macro_f1")
)
# How the step went: the same in every method.
PACE_COLUMNS = (
    "learning_rate",
    "grad_norm",
    "labelled_tokens",
    "tokens_per_second",
    "labelled_tokens_per_second",
    "computed_tokens_per_second",
    "memory_bytes",
    "epoch",
    "eta_seconds",
)


def job_event(job_id: str, *, now: int, message: str, level: str = "info") -> JobEvent:
    """A plain line of a job's story."""
    return JobEvent(id=new_id(EVENT), job_id=job_id, created_at=now, level=level, message=message)


def model_name(job: FineTuningJob, project_name: str, *, step: int | None = None) -> str:
    """The name of the job's fine-tuned model, or of one of its checkpoints."""
    return fine_tuned_name(job.request.base_model, project_name, job.request.suffix, job.id, step=step)


def take_in(
    ctx: Context, tx: Connection, job: FineTuningJob, run: Run, *, project_name: str
) -> tuple[FineTuningJob, Run]:
    """Record what the run said since last time; returns job and run as changed (the caller saves the job)."""
    events, cursor = RunFolder(ctx.objects, run.id).read_events(run.events_cursor)
    for event in events:
        job = _take_one(ctx, tx, job, event, project_name=project_name)
    if events:
        run = replace(run, events_cursor=cursor)
        run_rows.save_run(tx, run)
    return job, run


def _take_one(ctx: Context, tx: Connection, job: FineTuningJob, event: RunEvent, *, project_name: str) -> FineTuningJob:
    at, data = int(event.at), dict(event.data)
    row = JobEvent(id=new_id(EVENT), job_id=job.id, created_at=at, level=event.level, message=event.message, data=data)
    match event.kind:
        case "step" | "validation":
            job_rows.insert_step_event(tx, replace(row, type="metrics"), data["step"])
            if "eta_seconds" in data:
                job = replace(job, estimated_finish=int(at + data["eta_seconds"]))
        case "checkpoint":
            size = sum(found.size for found in ctx.objects.list(data["key"]))
            _insert_checkpoint(tx, job, {**data, "bytes": size}, at, project_name=project_name)
        case "resolved":
            job_rows.insert_events(tx, [row])
            job = replace(job, resolved=data)
        case _:
            job_rows.insert_events(tx, [row])
    return job


def _insert_checkpoint(tx: Connection, job: FineTuningJob, data: dict[str, Any], at: int, *, project_name: str) -> None:
    job_rows.insert_checkpoint(
        tx,
        Checkpoint(
            id=new_id(CHECKPOINT),
            project_id=job.project_id,
            job_id=job.id,
            step=data["step"],
            model_name=model_name(job, project_name, step=data["step"]),
            key=data["key"],
            metrics={name: data["metrics"][name] for name in (*COLUMNS[1:], *MORE_COLUMNS) if name in data["metrics"]},
            created_at=at,
            bytes=data["bytes"],
        ),
    )


def model_checkpoint(tx: Connection, job: FineTuningJob, result: RunResult, *, project_name: str) -> Checkpoint:
    """The checkpoint that becomes the fine-tuned model: the last one, or the best where the job asked for that."""
    step = int(result.data.get("model_step", result.step))
    found = job_rows.find_checkpoint(tx, job.project_id, model_name(job, project_name, step=step))
    assert found is not None, "a run that succeeded has a checkpoint at its last step, and at its best"
    return found


def record_success(
    ctx: Context, tx: Connection, job: FineTuningJob, result: RunResult, *, project_name: str
) -> FineTuningJob:
    """The fine-tuned model, its results file, its usage and its closing events; the caller moves the job's status.

    Bytes are put before the rows that name them, so that no row ever points at nothing.
    """
    now = ctx.seconds()
    name = model_name(job, project_name)
    checkpoint = model_checkpoint(tx, job, result, project_name=project_name)
    model_rows.insert_model(
        tx,
        FineTunedModel(
            id=name,
            project_id=job.project_id,
            base_model=job.request.base_model,
            job_id=job.id,
            suffix=job.request.suffix or "",
            checkpoint_key=checkpoint.key,
            step=checkpoint.step,
            created_at=now,
        ),
    )
    results = _results_file(ctx, tx, job)
    trained = int(result.data.get("trained_tokens", 0))
    seconds = job_ends.trained(ctx, tx, job)[1]
    usage_rows.insert_usage_once(tx, job_ends.usage_of(job, "training", tokens=trained, seconds=seconds, now=now))
    job_rows.insert_events(
        tx,
        [
            job_event(job.id, now=now, message=f"Completed results file: {results.id}"),
            job_event(job.id, now=now, message=f"New fine-tuned model created: {name}"),
            job_event(job.id, now=now, message="The job has successfully completed"),
        ],
    )
    return replace(job, fine_tuned_model=name, result_files=(results.id,), trained_tokens=trained)


def _results_file(ctx: Context, tx: Connection, job: FineTuningJob) -> File:
    """One CSV row a step in OpenAI's columns, kept as a file of the project."""
    content = results_csv(job_rows.list_step_events(tx, job.id))
    digest = hashlib.sha256(content).hexdigest()
    ctx.objects.put(content_key(digest), content)
    file = File(
        id=new_id(FILE),
        project_id=job.project_id,
        filename="step_metrics.csv",
        purpose=FilePurpose.FINE_TUNE_RESULTS,
        bytes=len(content),
        sha256=digest,
        status=FileStatus.PROCESSED,
        created_at=ctx.seconds(),
    )
    file_rows.insert_file(tx, file)
    return file


def results_csv(events: Sequence[JobEvent]) -> bytes:
    """The step events of one job, oldest first, as CSV; an empty cell where a figure was not due at that step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [event.data or {} for event in events]
    columns = [*COLUMNS, *(name for name in (*MORE_COLUMNS, *PACE_COLUMNS) if any(name in row for row in rows))]
    writer.writerow(columns)
    for row in rows:
        writer.writerow([row.get(column, "") for column in columns])
    return text.getvalue().encode()
