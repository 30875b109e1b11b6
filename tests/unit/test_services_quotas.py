"""Quotas: rates that are exact under load, a ledger that is never negative and never over, and what refusals say."""

import itertools
import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.store_rows import add_job, add_project

from smedje.domain.ids import USAGE, new_id
from smedje.domain.jobs import JobStatus
from smedje.domain.prices import BUILT_IN, millionths
from smedje.domain.projects import Principal, Project, Role
from smedje.domain.quotas import Limit
from smedje.domain.usage import UsageRecord
from smedje.errors import LimitExceeded
from smedje.objects.store import open_objects
from smedje.services import quotas
from smedje.services.admission import Admission, Admitted, ChatWork
from smedje.services.context import Context
from smedje.services.rates import Full, RateMeter
from smedje.store import usage as usage_rows
from smedje.store.database import Database
from smedje.store.jobs import save_job

SEQUENCES = int(os.environ.get("SMEDJE_QUOTA_SEQUENCES", "500"))
START = 1_800_000_000


def owner(project: Project) -> Principal:
    """A caller who may do all in the project."""
    return Principal(key_id="key_1", role=Role.OWNER, project=project)


@pytest.fixture
def ctx(database: Database, tmp_path: Path) -> Context:
    """A context whose clock stands."""
    return Context(database=database, objects=open_objects("memory:///"), home=tmp_path, now=lambda: float(START))


@pytest.fixture
def project(ctx: Context) -> Project:
    """An empty project."""
    with ctx.database.transaction() as tx:
        return add_project(tx)


def test_a_thousand_at_once_under_a_hundred_a_minute() -> None:
    """Of 1,000 concurrent requests exactly 100 are admitted; a minute later another 100."""
    clock = [0.0]
    meter = RateMeter(now=lambda: clock[0])
    start = threading.Barrier(20)
    admitted: list[int] = []

    def ask() -> None:
        start.wait()
        admitted.append(sum(isinstance(meter.admit({"p": (1, 100)}), list) for _ in range(50)))

    for minute in (0.0, 60.0):
        clock[0] = minute
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(admitted) == 100
        admitted.clear()
    clock[0] = 119.5
    full = meter.admit({"p": (1, 100)})
    assert isinstance(full, Full)
    assert (full.used, full.wait) == (100, 0.5)


def test_no_minute_ever_holds_more_than_the_limit() -> None:
    """Over a random hour, no window of 60 seconds, wherever it begins, has more than the limit."""
    clock, seed = [0.0], 7
    chance, meter, taken = random.Random(seed), RateMeter(now=lambda: clock[0]), []
    for _ in range(3000):
        clock[0] += chance.expovariate(1.0)
        if isinstance(meter.admit({"p": (1, 30)}), list):
            taken.append(clock[0])
    assert max(sum(at <= other < at + 60 for other in taken) for at in taken) == 30


def test_tokens_are_corrected_to_what_was_used(ctx: Context, project: Project) -> None:
    """A request takes its longest answer beforehand; what it did not use is free again at once."""
    quotas.put_quota(ctx, owner(project), name=Limit.TOKENS_PER_MINUTE, value=100)
    admission = Admission(ctx)
    work = ChatWork(project_id=project.id, deployment=None, base_model="m", prompt_tokens=10, completion_tokens=80)
    first = admission.admit(work)
    with pytest.raises(LimitExceeded) as refused:
        admission.admit(work)
    assert (refused.value.code, refused.value.retry_after) == ("rate_limit_exceeded", 60)
    assert "90 of them are used, 10 are left" in refused.value.message
    with ctx.database.transaction() as tx:
        admission.settle(tx, first, None)
    assert admission.admit(work).tokens


def test_a_deployment_has_rates_of_its_own(ctx: Context, project: Project) -> None:
    """A limit on one deployment stops that one alone; the project's counts both."""
    with ctx.database.transaction() as tx:
        tx.exec_driver_sql(
            "INSERT INTO deployments (id, project_id, name, model, base_model, status, created_at) "
            f"VALUES ('dep-1', '{project.id}', 'small', 'm', 'm', 'ready', 1)"
        )
    quotas.put_quota(ctx, owner(project), name=Limit.REQUESTS_PER_MINUTE, value=1, deployment="small")
    quotas.put_quota(ctx, owner(project), name=Limit.REQUESTS_PER_MINUTE, value=3)
    admission = Admission(ctx)
    works = [
        ChatWork(project_id=project.id, deployment=name, base_model="m", prompt_tokens=1, completion_tokens=1)
        for name in ("small", "small", None, None, None)
    ]
    found = []
    for work in works:
        try:
            admission.admit(work)
            found.append("")
        except LimitExceeded as problem:
            found.append(problem.message.partition(" may ")[0])
    assert found == ["", "The deployment small", "", "", "The project"]


def test_a_jobs_reservation_counts_until_the_job_ends(ctx: Context, project: Project) -> None:
    """Reserved tokens stand in the way of other jobs, whoever dies; the end of the job frees them by itself."""
    quotas.put_quota(ctx, owner(project), name=Limit.TRAINING_TOKENS_PER_MONTH, value=1000)
    holding = quotas.Holding(tokens=600, money=0)
    with ctx.database.transaction() as tx:
        job = add_job(tx, project, 1)
        quotas.reserve_for_job(ctx, tx, project.id, job.id, holding)
        second = add_job(tx, project, 2)
    left = "600 of them are used, 400 are left, and this needs 600"
    with pytest.raises(LimitExceeded, match=left), ctx.database.transaction() as tx:
        quotas.reserve_for_job(ctx, tx, project.id, second.id, holding)
    with ctx.database.transaction() as tx:
        save_job(tx, replace(job, status=JobStatus.CANCELLED), was=job.status)
        quotas.reserve_for_job(ctx, tx, project.id, second.id, holding)
    [state] = quotas.list_quotas(ctx, owner(project))
    assert state.used == 600


def test_many_at_once_never_take_more_than_there_is(ctx: Context, project: Project) -> None:
    """Eight takers at once under a limit of three deployments: three get one, on either database."""
    quotas.put_quota(ctx, owner(project), name=Limit.DEPLOYMENTS, value=3)
    start, outcomes = threading.Barrier(8), []

    def take(number: int) -> None:
        start.wait()
        try:
            with ctx.database.transaction() as tx:
                quotas.check_room(ctx, tx, project.id, Limit.DEPLOYMENTS)
                tx.exec_driver_sql(
                    "INSERT INTO deployments (id, project_id, name, model, base_model, status, created_at) "
                    f"VALUES ('dep-{number}', '{project.id}', 'd{number}', 'm', 'm', 'ready', 1)"
                )
            outcomes.append("taken")
        except LimitExceeded as refused:
            outcomes.append(refused.code)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["quota_exceeded"] * 5 + ["taken"] * 3


def test_a_month_ends(ctx: Context, project: Project) -> None:
    """What was trained last month does not count in this one."""
    quotas.put_quota(ctx, owner(project), name=Limit.TRAINING_TOKENS_PER_MONTH, value=1000)
    before = quotas.month_start(START) - 1
    with ctx.database.transaction() as tx:
        for at in (before, START):
            usage_rows.insert_usage(tx, spent_record(project, trained_tokens=300, created_at=at))
    assert [state.used for state in quotas.list_quotas(ctx, owner(project))] == [300]


def spent_record(project: Project, *, created_at: int, **counts: int) -> UsageRecord:
    """Some usage."""
    return UsageRecord(
        id=new_id(USAGE),
        project_id=project.id,
        key_id=None,
        kind="training" if "trained_tokens" in counts else "inference",
        model="m",
        created_at=created_at,
        **counts,  # type: ignore[arg-type]
    )


def ledger_machine(database: Database, home: Path) -> type[RuleBasedStateMachine]:
    """Requests under a budget: reserved, settled, settled again, cut short, lost with their server, retried."""
    numbers = itertools.count()

    class Ledger(RuleBasedStateMachine):
        @initialize(budget=st.integers(0, 2000))
        def begin(self, budget: int) -> None:
            self.clock, self.budget = START, budget
            self.ctx = Context(
                database=database, objects=open_objects("memory:///"), home=home, now=lambda: float(self.clock)
            )
            with database.transaction() as tx:
                self.project = add_project(tx, f"p{next(numbers)}")
            quotas.put_quota(self.ctx, owner(self.project), name=Limit.MONEY_PER_MONTH, value=budget)
            self.admission = Admission(self.ctx)
            self.open: list[tuple[Admitted, int]] = []
            self.lost: list[tuple[int, int]] = []
            self.ended: list[Admitted] = []
            self.answered = 0

        def live(self) -> int:
            held = sum(price(tokens) for _, tokens in self.open)
            return held + sum(money for money, until in self.lost if until > self.clock)

        @rule(tokens=st.integers(1, 1500))
        def ask(self, tokens: int) -> None:
            work = ChatWork(
                project_id=self.project.id,
                deployment=None,
                base_model="m",
                prompt_tokens=0,
                completion_tokens=tokens,
            )
            fits = price(self.answered) + self.live() + price(tokens) <= self.budget
            if fits:
                self.open.append((self.admission.admit(work), tokens))
            else:
                with pytest.raises(LimitExceeded, match="can be raised by Owner and Contributor"):
                    self.admission.admit(work)

        @precondition(lambda self: self.open)
        @rule(data=st.data())
        def answer(self, data: st.DataObject) -> None:
            admitted, tokens = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
            used = data.draw(st.integers(0, tokens))
            record = spent_record(self.project, created_at=self.clock, completion_tokens=used)
            with database.transaction() as tx:
                self.admission.settle(tx, admitted, record if used else None)
            self.answered += used
            self.ended.append(admitted)

        @precondition(lambda self: self.open)
        @rule()
        def crash(self) -> None:
            self.lost += [(price(tokens), self.clock + quotas.REQUEST_SECONDS) for _, tokens in self.open]
            self.open.clear()
            self.admission = Admission(self.ctx)

        @precondition(lambda self: self.ended)
        @rule()
        def settle_again(self) -> None:
            with database.transaction() as tx:
                self.admission.settle(tx, self.ended[-1], None)

        @precondition(lambda self: not self.open)
        @rule(seconds=st.integers(1, 2500))
        def wait(self, seconds: int) -> None:
            self.clock += seconds

        @invariant()
        def ledger_is_the_sum_of_answers(self) -> None:
            [state] = quotas.list_quotas(self.ctx, owner(self.project))
            assert state.used == price(self.answered) + self.live()
            assert 0 <= state.used <= self.budget

    return Ledger


def price(tokens: int) -> int:
    """Completion tokens in millionths."""
    return millionths(tokens * BUILT_IN.completion_tokens)


def test_the_ledger_is_what_was_answered(sqlite_database: Database, tmp_path: Path) -> None:
    """After any sequence: used = answers + what is open, never negative, never over; refused only what does not fit."""
    quiet = settings(
        max_examples=SEQUENCES,
        stateful_step_count=8,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    run_state_machine_as_test(ledger_machine(sqlite_database, tmp_path), settings=quiet)
