"""Leases: one supervisor a job, takeover when it is silent, and no write by one that was replaced."""

import multiprocessing
import random
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from sqlalchemy import event
from tests.databases import Postgres
from tests.store_rows import add_job, add_project

from smedje.domain.ids import EVENT, new_id
from smedje.domain.jobs import TERMINAL, JobEvent, JobStatus, advance
from smedje.errors import Conflict
from smedje.store import jobs, leases
from smedje.store.database import Database
from smedje.store.leases import Lease

SUPERVISED = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.RUNNING)


def claim(database: Database, owner: str, now: float) -> dict[str, int]:
    """What an owner holds after a claim: job id -> fence."""
    with database.transaction() as tx:
        held = leases.claim_jobs(tx, owner=owner, now=now, lease_seconds=8, statuses=SUPERVISED)
    return {lease.job.id: lease.fence for lease in held}


def add_jobs(database: Database, count: int, **changes: JobStatus) -> str:
    """That many jobs; returns their project's id."""
    with database.transaction() as tx:
        project = add_project(tx)
        for number in range(count):
            add_job(tx, project, number, **changes)
    return project.id


def test_a_job_has_one_supervisor(database: Database) -> None:
    """The first to claim holds it; another gets nothing while the lease lasts; claiming again keeps the fence."""
    add_jobs(database, 2)
    assert claim(database, "a", 100.0) == {"ftjob-0": 1, "ftjob-1": 1}
    assert claim(database, "b", 107.9) == {}
    assert claim(database, "a", 107.9) == {"ftjob-0": 1, "ftjob-1": 1}
    assert claim(database, "b", 115.8) == {}


def test_only_the_wanted_statuses_are_claimed(database: Database) -> None:
    """Paused and ended jobs need no supervisor."""
    with database.transaction() as tx:
        project = add_project(tx)
        for number, status in enumerate(JobStatus):
            add_job(tx, project, number, status=status)
    wanted = {f"ftjob-{n}" for n, status in enumerate(JobStatus) if status in SUPERVISED}
    assert claim(database, "a", 100.0).keys() == wanted


def test_a_silent_supervisor_is_replaced(database: Database) -> None:
    """After the lease ends another takes over with a higher fence, and the first gets nothing until that one ends."""
    add_jobs(database, 1)
    assert claim(database, "a", 100.0) == {"ftjob-0": 1}
    assert claim(database, "b", 108.0) == {"ftjob-0": 2}
    assert claim(database, "a", 109.0) == {}
    assert claim(database, "a", 116.0) == {"ftjob-0": 3}


def test_a_late_write_changes_nothing(database: Database) -> None:
    """A supervisor that was frozen past its lease and thaws is told `lease_lost`, by every way of writing."""
    project_id = add_jobs(database, 1, status=JobStatus.RUNNING)
    with database.transaction() as tx:
        [old] = leases.claim_jobs(tx, owner="a", now=100, lease_seconds=8, statuses=SUPERVISED)
    claim(database, "b", 200.0)
    done = advance(old.job, JobStatus.SUCCEEDED, now=201)

    def save() -> None:
        with database.transaction() as tx:
            jobs.insert_events(tx, [JobEvent(id="e", job_id=done.id, created_at=1, level="info", message="late")])
            jobs.save_job(tx, done, was=JobStatus.RUNNING, fence=old.fence)

    def require() -> None:
        with database.transaction() as tx:
            leases.require_lease(tx, done.id, fence=old.fence)

    for write in (save, require):
        with pytest.raises(Conflict) as caught:
            write()
        assert caught.value.code == "lease_lost"
    with database.transaction() as tx:
        assert jobs.get_job(tx, project_id, done.id) == old.job
        assert jobs.list_events(tx, done.id, limit=9) == []
        leases.require_lease(tx, done.id, fence=old.fence + 1)
        jobs.save_job(tx, done, was=JobStatus.RUNNING, fence=old.fence + 1)


def test_a_claim_in_progress_is_respected(postgres: Postgres) -> None:
    """On PostgreSQL, where claims overlap, one skips the jobs that another is claiming instead of waiting for them or
    taking them over a moment later."""
    url = postgres.create(migrated=True)
    first, second = Database(url), Database(url + "&options=-c%20lock_timeout%3D100ms")
    add_jobs(first, 2)
    with ThreadPoolExecutor(1) as pool, first.transaction() as tx:
        [held, _] = leases.claim_jobs(tx, owner="a", now=100, lease_seconds=8, statuses=SUPERVISED)
        assert pool.submit(claim, second, "b", 100.0).result(60) == {}
        assert held.fence == 1
    assert claim(second, "b", 100.0) == {}
    assert claim(first, "a", 100.0) == {"ftjob-0": 1, "ftjob-1": 1}
    first.close()
    second.close()
    postgres.drop(url)


def test_leases_are_renewed_and_given_back(database: Database) -> None:
    """Renewing prolongs what is still ours and names it; giving back lets anybody claim at once, with a new fence."""
    add_jobs(database, 3)
    claim(database, "a", 100.0)
    with database.transaction() as tx:
        assert leases.renew(tx, "a", ["ftjob-0", "ftjob-1", "absent"], 150.0) == {"ftjob-0", "ftjob-1"}
        assert leases.renew(tx, "b", ["ftjob-0"], 999.0) == set()
        leases.release(tx, "ftjob-1", "b")
    assert claim(database, "b", 120.0) == {"ftjob-2": 2}
    with database.transaction() as tx:
        leases.release(tx, "ftjob-1", "a")
    assert claim(database, "b", 121.0) == {"ftjob-1": 2, "ftjob-2": 2}
    with database.transaction() as tx:
        leases.release_all(tx, owner="b")
    assert claim(database, "c", 122.0) == {"ftjob-1": 3, "ftjob-2": 3}


def test_an_idle_pass_writes_nothing(database: Database) -> None:
    """Claiming again in the first half of a lease changes no row, so idle supervision costs no disk writes."""
    add_jobs(database, 1)
    claim(database, "a", 100.0)
    changed: list[int] = []
    event.listen(
        database._engine,  # the engine's own event is the one place where a statement's effect is seen
        "after_cursor_execute",
        lambda c, cursor, sql, p, x, m: changed.append(cursor.rowcount) if "UPDATE jobs" in sql else None,
    )
    claim(database, "a", 103.0)
    claim(database, "a", 105.0)
    assert changed == [0, 1]


def claim_all(url: str, owner: str, start: Event, results: "multiprocessing.Queue[Any]") -> None:
    """What a scheduler does, as fast as it can: claim, then finish each job under its fence."""
    database = Database(url)
    start.wait()
    for turn in range(25):
        with database.transaction() as tx:
            held = leases.claim_jobs(tx, owner=owner, now=100.0 + turn, lease_seconds=500, statuses=SUPERVISED)
        for lease in held:
            with database.transaction() as tx:
                done = advance(lease.job, JobStatus.CANCELLED, now=200)
                jobs.save_job(tx, done, was=lease.job.status, fence=lease.fence)
            results.put((lease.job.id, lease.fence, owner))
    results.put(None)
    database.close()


def test_schedulers_in_several_processes_share_without_overlap(database: Database, database_url: str) -> None:
    """Processes that claim at the same moment each get different jobs; together they get all, each once."""
    add_jobs(database, 60)
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Event(), spawn.Queue()
    workers = [spawn.Process(target=claim_all, args=(database_url, f"s{n}", start, results)) for n in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    found, ended = [], 0
    while ended < len(workers):
        one = results.get(timeout=120)
        ended += one is None
        found += [one] if one is not None else []
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(job for job, _, _ in found) == sorted(f"ftjob-{n}" for n in range(60))
    assert {fence for _, fence, _ in found} == {1}


def finish(database: Database, lease: Lease, status: JobStatus, fence: int | None) -> bool:
    """Try to end a job, telling so in the same transaction; whether this was the one that ended it."""
    try:
        with database.transaction() as tx:
            job = jobs.get_job(tx, lease.job.project_id, lease.job.id, lock=fence is None)
            assert job is not None
            known = lease.job if fence is not None else job
            jobs.save_job(tx, advance(known, status, now=300), was=known.status, fence=fence)
            story = JobEvent(id=new_id(EVENT), job_id=job.id, created_at=300, level="info", message=status.value)
            jobs.insert_events(tx, [story])
    except Conflict:
        return False
    return True


def test_a_job_ends_exactly_once(database: Database) -> None:
    """A caller cancels, a supervisor succeeds, a replaced one fails, all at once: one end, one event."""
    count = 25
    project_id = add_jobs(database, count, status=JobStatus.RUNNING)
    with database.transaction() as tx:
        old = leases.claim_jobs(tx, owner="a", now=100, lease_seconds=8, statuses=SUPERVISED)
    with database.transaction() as tx:
        new = leases.claim_jobs(tx, owner="b", now=200, lease_seconds=8, statuses=SUPERVISED)
    attempts: list[tuple[Lease, JobStatus, int | None]]
    attempts = [(lease, JobStatus.SUCCEEDED, lease.fence) for lease in new]
    attempts += [(lease, JobStatus.FAILED, lease.fence) for lease in old]
    attempts += [(lease, JobStatus.CANCELLED, None) for lease in new for _ in range(2)]
    random.Random(5).shuffle(attempts)
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda a: finish(database, *a), attempts))
    assert sum(ended) == count
    with database.transaction() as tx:
        for lease in new:
            job = jobs.get_job(tx, project_id, lease.job.id)
            assert job is not None
            told = [event.message for event in jobs.list_events(tx, job.id, limit=9)]
            assert job.status in TERMINAL
            assert job.status is not JobStatus.FAILED
            assert told == [job.status.value]


@pytest.mark.parametrize("seed", range(3))
def test_supervision_under_any_schedule(database: Database, seed: int) -> None:
    """Schedulers that claim, work, freeze and thaw in any order: fences only grow, every step of a job is written by
    its present holder, and no step is lost or written twice."""
    chance = random.Random(seed)
    add_jobs(database, 4, status=JobStatus.RUNNING)
    clock, known = 100.0, {owner: dict[str, Lease]() for owner in "abc"}
    written = {f"ftjob-{n}": list[tuple[int, int]]() for n in range(4)}
    for _ in range(150):
        clock += chance.choice([0.1, 1.0, 4.0, 9.0])
        owner = chance.choice("abc")
        if chance.random() < 0.6:
            with database.transaction() as tx:
                held = leases.claim_jobs(tx, owner=owner, now=clock, lease_seconds=8, statuses=SUPERVISED)
            known[owner] = {lease.job.id: lease for lease in held}
            continue
        # A thawed scheduler writes by what it knew, however long ago that was.
        for lease in list(known[owner].values()):
            try:
                with database.transaction() as tx:
                    leases.require_lease(tx, lease.job.id, fence=lease.fence)
                    step = len(written[lease.job.id])
                    story = JobEvent(id=new_id(EVENT), job_id=lease.job.id, created_at=0, level="info", message="")
                    assert jobs.insert_step_event(tx, story, step)
                written[lease.job.id].append((lease.fence, step))
            except Conflict:
                del known[owner][lease.job.id]
    assert any(written.values())
    for steps in written.values():
        assert steps == sorted(steps)
