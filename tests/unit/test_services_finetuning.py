"""Fine-tuning jobs as rows: creation, state changes, ownership, continuation, on both databases."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.api_server import TINY, chat_lines, install_tiny_model
from tests.store_rows import add_project, make_checkpoint

from smedje.domain.catalog import FineTunedModel
from smedje.domain.ids import EVENT, new_id
from smedje.domain.jobs import FineTuningJob, JobEvent, JobStatus, advance
from smedje.domain.projects import Project
from smedje.domain.usage import UsageRecord
from smedje.errors import Conflict, InvalidData, InvalidRequest, NotFound
from smedje.objects.store import open_objects
from smedje.services import catalog, deployments, estimate, finetuning, removal
from smedje.services import files as file_service
from smedje.services.context import Context
from smedje.services.job_request import JobDraft
from smedje.services.training_spec import Origin
from smedje.store import catalog as model_rows
from smedje.store import jobs as rows
from smedje.store import usage as usage_rows
from smedje.store.database import Database


@pytest.fixture
def ctx(database: Database, tmp_path: Path) -> Context:
    """A context with the tiny base model installed."""
    install_tiny_model(tmp_path)
    objects = open_objects((tmp_path / "objects").as_uri())
    return Context(database=database, objects=objects, home=tmp_path, now=lambda: 1000.5)


@pytest.fixture
def project(ctx: Context) -> Project:
    """A project."""
    with ctx.database.transaction() as tx:
        return add_project(tx)


def upload(ctx: Context, project: Project, content: bytes) -> str:
    """Id of a file with this content."""
    taking = file_service.Upload(ctx)
    taking.write(content)
    return taking.finish(project, file_service.FileForm(filename="t.jsonl", purpose="fine-tune")).id


@pytest.fixture
def job(ctx: Context, project: Project) -> FineTuningJob:
    """A fresh job."""
    file = upload(ctx, project, chat_lines(12))
    return finetuning.create_job(ctx, project, JobDraft(model=TINY, training_file=file, suffix="mine"))


def move(ctx: Context, job: FineTuningJob, *statuses: JobStatus) -> FineTuningJob:
    """The job after these moves, as the scheduler makes them."""
    for status in statuses:
        with ctx.database.transaction() as tx:
            moved = advance(job, status, now=1001)
            rows.save_job(tx, moved, was=job.status)
        job = moved
    return job


def say_step(ctx: Context, job: FineTuningJob, step: int) -> None:
    """The event of one optimizer step."""
    event = JobEvent(
        id=new_id(EVENT),
        job_id=job.id,
        created_at=1002,
        level="info",
        message="Step",
        type="metrics",
        data={"step": step},
    )
    with ctx.database.transaction() as tx:
        rows.insert_step_event(tx, event, step)


def messages(ctx: Context, project: Project, job: FineTuningJob) -> list[str]:
    """The job's story, oldest first."""
    return [event.message for event in finetuning.list_events(ctx, project, job.id, after=None, limit=50)][::-1]


def test_a_new_job_waits_for_validation(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """It is stored as asked for, with a drawn seed and OpenAI's first event."""
    assert job.status is JobStatus.VALIDATING_FILES
    assert 0 <= job.request.seed <= 2_147_483_647
    assert (job.request.base_model, job.request.suffix, job.created_at) == (TINY, "mine", 1000)
    assert finetuning.get_job(ctx, project, job.id) == job
    assert messages(ctx, project, job) == [f"Created fine-tuning job: {job.id}"]


def test_a_running_job_pauses_after_its_first_step_and_goes_on(
    ctx: Context, project: Project, job: FineTuningJob
) -> None:
    """Pause needs a running job with a step behind it; resume needs a paused one and queues it."""
    with pytest.raises(Conflict):
        finetuning.pause_job(ctx, project, job.id)
    job = move(ctx, job, JobStatus.QUEUED, JobStatus.RUNNING)
    say_step(ctx, job, 0)  # the measurement before training
    with pytest.raises(Conflict, match="has not done a step"):
        finetuning.pause_job(ctx, project, job.id)
    with pytest.raises(Conflict, match="only a paused job"):
        finetuning.resume_job(ctx, project, job.id)
    say_step(ctx, job, 1)
    assert finetuning.pause_job(ctx, project, job.id).status is JobStatus.PAUSED
    with pytest.raises(Conflict):
        finetuning.pause_job(ctx, project, job.id)
    assert finetuning.resume_job(ctx, project, job.id).status is JobStatus.QUEUED
    assert messages(ctx, project, job)[-2:] == ["The job has been paused", "The job has been resumed"]


@pytest.mark.parametrize(
    "before",
    [
        (),
        (JobStatus.QUEUED,),
        (JobStatus.QUEUED, JobStatus.RUNNING),
        (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED),
    ],
    ids=["validating", "queued", "running", "paused"],
)
def test_a_job_is_cancelled_once_from_any_living_state(
    ctx: Context, project: Project, job: FineTuningJob, before: tuple[JobStatus, ...]
) -> None:
    """Cancel ends the job at that moment; a second time, or on a finished job, it is a conflict and changes nothing."""
    move(ctx, job, *before)
    done = finetuning.cancel_job(ctx, project, job.id)
    assert (done.status, done.finished_at, done.error) == (JobStatus.CANCELLED, 1000, None)
    for verb in (finetuning.cancel_job, finetuning.pause_job, finetuning.resume_job):
        with pytest.raises(Conflict):
            verb(ctx, project, job.id)
    assert messages(ctx, project, job).count("The job has been cancelled") == 1
    assert finetuning.get_job(ctx, project, job.id) == done


def test_a_foreign_job_is_not_found(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """Another project can neither see nor move it, nor use its file."""
    with ctx.database.transaction() as tx:
        other = add_project(tx, "other")
    for verb in (finetuning.get_job, finetuning.cancel_job, finetuning.pause_job, finetuning.resume_job):
        with pytest.raises(NotFound):
            verb(ctx, other, job.id)
    with pytest.raises(InvalidRequest, match="file not found"):
        finetuning.create_job(ctx, other, JobDraft(model=TINY, training_file=job.request.training_file))


def test_bad_data_is_refused_with_its_problems(ctx: Context, project: Project) -> None:
    """The error carries the first problems as data, for clients that show them."""
    file = upload(ctx, project, chat_lines(10) + b"{}\n")
    with pytest.raises(InvalidData) as refused:
        finetuning.create_job(ctx, project, JobDraft(model=TINY, training_file=file))
    assert refused.value.problems[0]["line"] == 11
    assert refused.value.param == "training_file"


def test_a_job_goes_on_from_a_tuned_model_or_a_checkpoint(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """`model` may name either; the base model behind it is what the job runs on, and its name roots in that base."""
    tuned = FineTunedModel(
        id=f"ft:{TINY}:default:mine:AbCd1234",
        project_id=project.id,
        base_model=TINY,
        job_id=job.id,
        suffix="mine",
        checkpoint_key="runs/r/checkpoints/5",
        step=5,
        created_at=1,
    )
    checkpoint = replace(make_checkpoint(job, 3), model_name=tuned.id + ":ckpt-step-3", key="runs/r/checkpoints/3")
    with ctx.database.transaction() as tx:
        model_rows.insert_model(tx, tuned)
        rows.insert_checkpoint(tx, checkpoint)
    for name, key in ((tuned.id, tuned.checkpoint_key), (checkpoint.model_name, checkpoint.key)):
        draft = JobDraft(model=name, training_file=job.request.training_file)
        made = finetuning.create_job(ctx, project, draft)
        assert (made.request.model, made.request.base_model) == (name, TINY)
        assert catalog.resolve_origin(ctx, project.id, name) == Origin(base_model=TINY, adapter_key=key)
        deployed = deployments.create_deployment(ctx, project, name=f"d{len(name)}", model=name)
        found = catalog.resolve(ctx, project.id, deployed.name)
        assert (found.model, found.adapter_key, found.deployment) == (name, key, deployed.name)
    with pytest.raises(Conflict, match="deployed as"):
        removal.delete_model(ctx, project, tuned.id)
    assert [entry.name for entry in catalog.list_models(ctx, project)] == [TINY, tuned.id]


def test_deployments_are_no_place_to_train_from(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """A job starts from a model, not from a name that may point elsewhere tomorrow."""
    deployments.create_deployment(ctx, project, name="live", model=TINY)
    with pytest.raises(InvalidRequest, match="no model 'live'"):
        finetuning.create_job(ctx, project, JobDraft(model="live", training_file=job.request.training_file))


def test_an_estimate_learns_from_finished_jobs(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """Seconds follow the project's own pace on the base model once a job has finished there, and say so."""
    draft = JobDraft(model=TINY, training_file=job.request.training_file, seed=3)
    guess = estimate.estimate(ctx, project, draft)
    assert "arithmetic" in guess.basis
    record = UsageRecord(
        id="use-1",
        project_id=project.id,
        key_id=None,
        kind="training",
        model=TINY,
        trained_tokens=1000,
        seconds=500.0,
        created_at=900,
    )
    with ctx.database.transaction() as tx:
        usage_rows.insert_usage(tx, record)
        usage_rows.insert_usage(tx, replace(record, id="use-2", model="another", seconds=10.0**9))
        usage_rows.insert_usage(tx, replace(record, id="use-3", kind="inference", seconds=10.0**9))
    learnt = estimate.estimate(ctx, project, draft)
    assert learnt.seconds == pytest.approx(estimate.START_SECONDS + learnt.trained_tokens * 0.5, abs=0.1)
    assert learnt.basis == f"the job on {TINY} that finished in this project in the last 30 days"
    assert learnt.seconds_low < learnt.seconds < learnt.seconds_high
    timed = ("seconds", "seconds_low", "seconds_high", "tokens_per_second", "basis")
    assert replace(learnt, **{name: getattr(guess, name) for name in timed}) == guess
