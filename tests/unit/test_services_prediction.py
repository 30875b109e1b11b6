"""Predictions: error bars that finished jobs narrow, proposals that fit, and predicted against actual."""

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from tests.api_server import TINY, chat_lines, install_tiny_model, make_context

from smedje.domain.ids import USAGE, new_id
from smedje.domain.jobs import FineTuningJob, JobStatus
from smedje.domain.projects import Project
from smedje.domain.runs import Outcome, Run, RunResult, RunState
from smedje.domain.usage import UsageRecord
from smedje.objects.run_folder import RunFolder
from smedje.services import estimate, finetuning, projects
from smedje.services import files as file_service
from smedje.services.catalog import resolve_origin
from smedje.services.comparison import compare, comparison_event
from smedje.services.context import Context
from smedje.services.job_request import JobDraft
from smedje.services.prediction import job_memory, predicted_memory, propose
from smedje.services.preflight import Checked, check_job, no_disk
from smedje.services.training_spec import build_spec, with_longest_streams
from smedje.store import jobs as job_rows
from smedje.store import runs as run_rows
from smedje.store import usage as usage_rows


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """A fresh state folder with the tiny base model."""
    return replace(make_context(tmp_path), now=lambda: 1_000_000.0)


@pytest.fixture
def project(ctx: Context) -> Project:
    """The first project."""
    made = projects.ensure_defaults(ctx, None, "local")
    return made.project


@pytest.fixture
def job(ctx: Context, project: Project) -> FineTuningJob:
    """A created job on the tiny base model."""
    taking = file_service.Upload(ctx)
    taking.write(chat_lines(40))
    file = taking.finish(project, file_service.FileForm(filename="t.jsonl", purpose="fine-tune"))
    return finetuning.create_job(ctx, project, JobDraft(model=TINY, training_file=file.id))


def finish(ctx: Context, job: FineTuningJob, number: int, seconds: int) -> None:
    """A finished job of 1000 tokens with its usage."""
    done = replace(
        job,
        id=f"ftjob-{number}",
        status=JobStatus.SUCCEEDED,
        started_at=900_000,
        finished_at=900_000 + seconds,
        trained_tokens=1000,
    )
    record = UsageRecord(
        id=new_id(USAGE),
        project_id=job.project_id,
        key_id=None,
        kind="training",
        model=TINY,
        trained_tokens=1000,
        seconds=float(seconds),
        created_at=900_100,
    )
    with ctx.database.transaction() as tx:
        job_rows.insert_job(tx, done)
        usage_rows.insert_usage(tx, record)


def test_the_error_bar_is_as_wide_as_finished_jobs_differ(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """A factor of two without jobs, a half more or less with few, then what the jobs show."""
    draft = JobDraft(model=TINY, training_file=job.request.training_file)
    guess = estimate.estimate(ctx, project, draft)
    assert guess.seconds_high == pytest.approx(guess.seconds * 2, abs=0.2)
    finish(ctx, job, 1, 100)
    first = estimate.estimate(ctx, project, draft)
    assert first.seconds_high == pytest.approx(first.seconds * 1.5, rel=0.01)
    for number, seconds in ((2, 90), (3, 110)):
        finish(ctx, job, number, seconds)
    learnt = estimate.estimate(ctx, project, draft)
    # A thousand tokens take 100 s here after a start of 5 s, and the jobs took 90 to 110 s in all.
    assert learnt.seconds_low == pytest.approx(learnt.seconds * 90 / 105, rel=0.01)
    assert learnt.seconds_high == pytest.approx(learnt.seconds * 110 / 105, rel=0.01)
    assert learnt.proposal is None


def test_a_proposal_fits_and_spares_the_longest_example(ctx: Context, job: FineTuningJob, project: Project) -> None:
    """The nearest halving that fits is proposed with its need; nothing when even the least does not fit."""
    spec = build_spec(ctx, job, resolve_origin(ctx, project.id, TINY), threads=1, earlier_runs=())
    room = predicted_memory(
        structs.replace(spec, data=structs.replace(spec.data, max_tokens=512), micro_batch_tokens=512)
    )
    found = propose(ctx, spec, memory_bytes=room)
    assert found is not None
    assert "micro_batch_tokens 512" in found
    assert propose(ctx, spec, longest=600, memory_bytes=room) is None
    assert propose(ctx, spec, memory_bytes=1) is None


def test_lora_is_proposed_where_a_full_tuning_does_not_fit(ctx: Context, job: FineTuningJob, project: Project) -> None:
    """When no shorter example helps, the same job with an adapter is what fits."""
    spec = build_spec(ctx, job, resolve_origin(ctx, project.id, TINY), threads=1, earlier_runs=())
    full = structs.replace(spec, lora=structs.replace(spec.lora, full=True))
    found = propose(ctx, full, longest=100_000, memory_bytes=predicted_memory(spec))
    assert found is not None
    assert "smedje.tuning lora" in found


def test_an_installed_model_that_fits_is_proposed(ctx: Context, job: FineTuningJob, project: Project) -> None:
    """When no limit helps, the largest installed base model of the catalog that fits is named."""
    install_tiny_model(ctx.home, "smollm2-135m-instruct")
    spec = build_spec(ctx, job, resolve_origin(ctx, project.id, TINY), threads=1, earlier_runs=())
    found = propose(ctx, spec, longest=100_000, memory_bytes=2**40)
    assert found is not None
    assert "smollm2-135m-instruct" in found


def test_streams_are_as_long_as_memory_allows(ctx: Context, job: FineTuningJob, project: Project) -> None:
    """A job that does not say gets the longest streams that fit; one that says gets what it says."""
    spec = build_spec(ctx, job, resolve_origin(ctx, project.id, TINY), threads=2, earlier_runs=())
    assert spec.micro_batch_tokens == 8192
    spec = structs.replace(spec, data=structs.replace(spec.data, max_tokens=512))
    for tokens in (8192, 4096, 2048):
        room = predicted_memory(structs.replace(spec, micro_batch_tokens=tokens))
        assert with_longest_streams(spec, room).micro_batch_tokens == tokens
        assert with_longest_streams(spec, room - 1).micro_batch_tokens == max(2048, tokens // 2)
    said = replace(job, request=replace(job.request, options={**job.request.options, "micro_batch_tokens": 512}))
    asked = build_spec(ctx, said, resolve_origin(ctx, project.id, TINY), threads=2, earlier_runs=())
    assert asked.micro_batch_tokens == 512


def test_a_checked_job_waits_for_what_its_rows_need(ctx: Context, job: FineTuningJob, project: Project) -> None:
    """Once the rows are counted, room is kept for what they need and no longer for the longest that were allowed."""
    spec = build_spec(ctx, job, resolve_origin(ctx, project.id, TINY), threads=2, earlier_runs=())
    assert job_memory(ctx, job.id, spec) == predicted_memory(spec)
    assert isinstance(check_job(ctx, job, resolve_origin(ctx, project.id, TINY)), Checked)
    guess = compare(ctx, job).predicted
    assert guess is not None
    assert job_memory(ctx, job.id, spec) == guess["memory_bytes"] < predicted_memory(spec)


def test_predicted_stands_beside_actual(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """The check keeps its prediction; after the run its seconds and peak memory are read beside it."""
    assert compare(ctx, job).predicted is None
    assert isinstance(check_job(ctx, job, resolve_origin(ctx, project.id, TINY)), Checked)
    before = compare(ctx, job)
    assert before.predicted is not None
    assert before.predicted["steps"] > 0
    assert (before.seconds, before.memory_bytes) == (None, None)
    with ctx.database.transaction() as tx:
        run_rows.insert_run(
            tx,
            Run(
                id="run-1", job_id=job.id, attempt=1, state=RunState.FINISHED, executor="local", handle={}, started_at=1
            ),
        )
    data = {"seconds": 10.34, "start_seconds": 2.0, "peak_memory_bytes": 5}
    result = RunResult(outcome=Outcome.SUCCEEDED, data=data)
    RunFolder(ctx.objects, "run-1").write_result(result)
    after = compare(ctx, job)
    assert (after.seconds, after.memory_bytes) == (12.3, 5)
    assert after.within is False
    guess = before.predicted["seconds"]
    assert after.summary.startswith(f"Predicted {guess:.0f} s (")
    assert after.time_ratio == pytest.approx(12.3 / guess, abs=1e-3)
    told = comparison_event(ctx, job, result)
    assert told is not None
    assert told.data is not None
    assert told.data["seconds"] == 12.3


def test_checkpoints_that_would_fill_the_disk_are_refused(ctx: Context, project: Project, job: FineTuningJob) -> None:
    """A byte too little is refused with both numbers and what to change; fewer checkpoints need less."""
    draft = JobDraft(model=TINY, training_file=job.request.training_file, seed=3, hyperparameters={"n_epochs": 6})
    guess = estimate.estimate(ctx, project, draft)
    assert no_disk(guess, guess.disk_bytes) is None
    refused = no_disk(guess, guess.disk_bytes - 1)
    assert refused is not None
    assert (refused.code, refused.param) == ("insufficient_disk", "smedje.checkpoint_every_epochs")
    fewer = estimate.estimate(ctx, project, replace(draft, options={"checkpoint_every_epochs": 3}))
    assert fewer.disk_bytes < guess.disk_bytes
