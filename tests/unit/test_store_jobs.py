"""Queries for jobs, events and checkpoints, on both databases."""

from dataclasses import replace

import pytest
from tests.store_rows import add_job, add_project, make_checkpoint, make_event, make_job

from smedje.domain.jobs import JobError, JobStatus, advance
from smedje.errors import Conflict, NotFound
from smedje.store import jobs
from smedje.store.database import Database


def test_a_job_comes_back_whole(database: Database) -> None:
    """Every field survives, with the kinds of numbers and the nesting that it had."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        job = make_job(
            project,
            metadata={"team": "støtte", "": "empty key"},
            resolved={"n_epochs": 3, "learning_rate": 1e-4, "nested": {"list": [1, 2.5, None, "x"]}},
            trained_tokens=2**40,
            result_files=("file-a", "file-b"),
            error=JobError(code="c", message="m", param="p"),
            estimated_finish=5,
        )
        jobs.insert_job(tx, job)
        assert jobs.get_job(tx, project.id, job.id) == job
        assert jobs.get_job(tx, project.id, job.id, lock=True) == job
        assert jobs.get_any_job(tx, job.id) == job
        assert jobs.get_job(tx, foreign.id, job.id) is None
        assert jobs.get_job(tx, project.id, "ftjob-absent") is None
        with pytest.raises(NotFound):
            jobs.get_any_job(tx, "ftjob-absent")


def test_a_job_is_saved_only_from_the_status_it_had(database: Database) -> None:
    """A change that rests on an old status is refused and changes nothing."""
    with database.transaction() as tx:
        project = add_project(tx)
        job = add_job(tx, project)
        running = advance(job, JobStatus.RUNNING, now=200)
        jobs.save_job(tx, running, was=JobStatus.QUEUED)
        assert jobs.get_job(tx, project.id, job.id) == running
        with pytest.raises(Conflict) as caught:
            jobs.save_job(tx, advance(job, JobStatus.CANCELLED, now=300), was=JobStatus.QUEUED)
        assert caught.value.code == "job_state_conflict"
        assert jobs.get_job(tx, project.id, job.id) == running
        with pytest.raises(NotFound):
            jobs.save_job(tx, replace(job, id="ftjob-absent"), was=JobStatus.QUEUED)
        with pytest.raises(NotFound):
            jobs.save_job(tx, replace(running, project_id="proj_absent"), was=JobStatus.RUNNING)


def test_jobs_page_newest_first(database: Database) -> None:
    """Following the cursor gives each of a project's jobs once, in a stable order within a second."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        for number in range(7):
            add_job(tx, project, number)
        add_job(tx, foreign, 100)
        seen: list[str] = []
        while found := jobs.list_jobs(tx, project.id, after=seen[-1] if seen else None, limit=3):
            seen += [job.id for job in found]
        assert seen == [f"ftjob-{number}" for number in range(6, -1, -1)]
        with pytest.raises(NotFound):
            jobs.list_jobs(tx, project.id, after="ftjob-100", limit=3)


AWKWARD = ["a.b", 'q"uote', "$[0]", "it's", "back\\slash", "%", "ключ", "🛠", "", "$.a"]


@pytest.mark.parametrize("key", AWKWARD)
def test_metadata_is_matched_exactly(database: Database, key: str) -> None:
    """A filter finds the jobs that carry the very pair, whatever characters it has, and all pairs must match."""
    with database.transaction() as tx:
        project = add_project(tx)
        add_job(tx, project, 1, metadata={key: 'va"l', "other": "x"})
        add_job(tx, project, 2, metadata={key: "VAL"})
        add_job(tx, project, 3)
        add_job(tx, project, 4, metadata={"val": key, "nested": '{"a": 1}'})

        def found(**wanted: dict[str, str]) -> list[str]:
            return [job.id for job in jobs.list_jobs(tx, project.id, limit=10, metadata=wanted["pairs"])]

        assert found(pairs={key: 'va"l'}) == ["ftjob-1"]
        assert found(pairs={key: 'va"l', "other": "x"}) == ["ftjob-1"]
        assert found(pairs={key: 'va"l', "other": "y"}) == []
        assert found(pairs={"absent": "x"}) == []
        assert found(pairs={"nested": '{"a": 1}'}) == ["ftjob-4"]


def test_an_empty_filter_means_no_metadata(database: Database) -> None:
    """OpenAI's metadata=null: only jobs without any; no filter means all jobs."""
    with database.transaction() as tx:
        project = add_project(tx)
        add_job(tx, project, 1, metadata={"a": "b"})
        add_job(tx, project, 2)
        add_job(tx, project, 3, metadata={})
        assert [job.id for job in jobs.list_jobs(tx, project.id, limit=9, metadata={})] == ["ftjob-3", "ftjob-2"]
        assert len(jobs.list_jobs(tx, project.id, limit=9)) == 3


def test_events_tell_the_story_newest_first(database: Database) -> None:
    """Events come back whole, in the reverse of the order of insertion, page by page, and only their job's."""
    with database.transaction() as tx:
        project = add_project(tx)
        job, other = add_job(tx, project, 1), add_job(tx, project, 2)
        events = [make_event(job, number, data={"loss": 1.5, "n": [1]}) for number in range(5)]
        jobs.insert_events(tx, events)
        jobs.insert_events(tx, [make_event(other, 100)])
        assert jobs.list_events(tx, job.id, limit=3) == events[:1:-1]
        assert jobs.list_events(tx, job.id, after=events[2].id, limit=3) == [events[1], events[0]]
        with pytest.raises(NotFound):
            jobs.list_events(tx, job.id, after="ftevent-100", limit=3)


def test_a_step_is_told_once(database: Database) -> None:
    """A step that a resumed run repeats is recorded once; plain events have no such limit; order is by step."""
    with database.transaction() as tx:
        job = add_job(tx, add_project(tx))
        for number, step in enumerate([2, 1, 2, 3]):
            event = make_event(job, number, type="metrics", data={"step": step})
            assert jobs.insert_step_event(tx, event, step) == (number != 2)
        jobs.insert_events(tx, [make_event(job, 10), make_event(job, 11)])
        assert [event.data for event in jobs.list_step_events(tx, job.id)] == [{"step": n} for n in (1, 2, 3)]
        assert len(jobs.list_events(tx, job.id, limit=99)) == 5


def test_words_that_programs_wrote_can_always_be_kept(database: Database) -> None:
    """A message or error with NUL or half a surrogate, as a library may raise, cannot stop the bookkeeping."""
    with database.transaction() as tx:
        project = add_project(tx)
        job = add_job(tx, project)
        jobs.insert_events(tx, [make_event(job, 1, message="bad \0 byte \ud800 æ", data={"loss": float("nan")})])
        failed = advance(job, JobStatus.FAILED, now=5, error=JobError(code="c", message="x\0\udfffy"))
        jobs.save_job(tx, failed, was=JobStatus.QUEUED)
        event = jobs.list_events(tx, job.id, limit=1)[0]
        assert event.message == "bad  byte ? æ"
        assert event.data == {"loss": None}
        kept = jobs.get_job(tx, project.id, job.id)
        assert kept is not None
        assert kept.error == JobError(code="c", message="x?y")


def test_a_checkpoint_is_recorded_once(database: Database) -> None:
    """A step's checkpoint that is reported again is left as it was; it is found by name in its project alone."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        job = add_job(tx, project)
        first, second = make_checkpoint(job, 5), make_checkpoint(job, 10)
        assert jobs.insert_checkpoint(tx, first)
        assert jobs.insert_checkpoint(tx, second)
        assert not jobs.insert_checkpoint(tx, replace(first, id="ftckpt_again", key="elsewhere"))
        assert jobs.list_checkpoints(tx, project.id, job.id, limit=9) == [second, first]
        assert jobs.list_checkpoints(tx, project.id, job.id, after=second.id, limit=9) == [first]
        assert jobs.list_checkpoints(tx, foreign.id, job.id, limit=9) == []
        assert jobs.find_checkpoint(tx, project.id, first.model_name) == first
        assert jobs.find_checkpoint(tx, foreign.id, first.model_name) is None
