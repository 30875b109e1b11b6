"""Warnings before a limit, and the budget that runs out while a job waits its turn."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.api_server import TINY, Clock, Server, chat_lines, live_server, make_context

from smedje.domain.ids import USAGE, new_id
from smedje.domain.jobs import JobStatus, advance
from smedje.domain.runs import Run
from smedje.domain.usage import UsageRecord
from smedje.executors.local import LocalExecutor
from smedje.services.quotas import month_start
from smedje.services.scheduler import Limits, Scheduler
from smedje.store import jobs as job_rows
from smedje.store import runs as run_rows
from smedje.store import usage as usage_rows

T0 = 1_600_000_000


class NothingStarts(LocalExecutor):
    """An executor of a machine on which no worker comes up: jobs that are started stay as they are."""

    def start(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"pid": 0, "started": 0.0}

    def alive(self, handle: Any) -> bool:
        return True


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the test's clock."""
    ctx = replace(make_context(tmp_path_factory.mktemp("home")), now=Clock(at=T0))
    with live_server(ctx) as found:
        yield found


def limit(server: Server, name: str, value: int, **more: object) -> dict[str, Any]:
    """Set a limit; it as it then is."""
    with server.http() as http:
        answer = http.put("/api/quotas", json={"name": name, "value": value, **more})
    assert answer.status_code == 200, answer.text
    return next(one for one in answer.json()["data"] if one["name"] == name)


def warnings(server: Server) -> int:
    """How many warnings the audit log holds."""
    return sum(one["action"] == "quota.warning" for one in server.get("/api/audit").json()["data"])


def deploy(server: Server, name: str) -> list[str]:
    """Deploy the base model under a name; the warnings in the answer's headers."""
    answer = server.post("/api/deployments", {"name": name, "model": TINY})
    assert answer.status_code == 200, answer.text
    return answer.headers.get_list("x-smedje-warning")


def test_a_warning_comes_at_80_percent_and_is_written_down_once(server: Server) -> None:
    """Below the share nothing is said; from it on each answer says so, the audit log once, until use has fallen."""
    limit(server, "deployments", 5)
    assert [deploy(server, f"d{n}") for n in range(3)] == [[], [], []]
    [text] = deploy(server, "d3")
    assert "80 % of the project's deployments" in text
    assert "4 of 5" in text
    assert "Owner" in text
    assert warnings(server) == 1
    assert "100 %" in deploy(server, "d4")[0]
    assert warnings(server) == 1
    refused = server.post("/api/deployments", {"name": "d5", "model": TINY}).json()["error"]
    assert refused["code"] == "quota_exceeded"
    assert "0 are left" in refused["message"]
    assert "can be raised by Owner" in refused["message"]
    shown = server.get("/api/quotas").json()["data"][0]
    assert (shown["warn_percent"], shown["used"], "100 %" in shown["warning"]) == (80, 5, True)
    with server.http() as http:
        for name in ("d4", "d3", "d2"):
            http.delete(f"/api/deployments/{name}")
    assert deploy(server, "d2") == []
    assert deploy(server, "d3") != []
    assert warnings(server) == 2


def test_the_share_can_be_set(server: Server) -> None:
    """At 50 percent it comes earlier, at 100 never, and a new value keeps the share; nonsense is refused."""
    assert limit(server, "deployments", 4, warn_percent=50)["warn_percent"] == 50
    assert (deploy(server, "a"), deploy(server, "b") != []) == ([], True)
    assert limit(server, "deployments", 40)["warn_percent"] == 50
    limit(server, "deployments", 3, warn_percent=100)
    assert deploy(server, "c") == []
    with server.http() as http:
        refused = http.put("/api/quotas", json={"name": "deployments", "value": 1, "warn_percent": 0})
    assert refused.json()["error"]["param"] == "warn_percent"


def test_the_estimate_warns_too(server: Server) -> None:
    """An estimate says when the job would bring a limit near."""
    file = server.upload(chat_lines(12))
    body = {"model": TINY, "training_file": file, "hyperparameters": {"n_epochs": 1}}
    tokens = server.post("/api/fine_tuning/estimate", body).json()["trained_tokens"]
    limit(server, "training_tokens_per_month", tokens * 10 // 9)
    [room] = server.post("/api/fine_tuning/estimate", body).json()["quotas"]
    assert room["enough"], room
    assert "training tokens a month" in room["warning"]


def test_checkpoints_count_as_stored_bytes(server: Server) -> None:
    """What a limit of stored bytes shows as used is files and checkpoints together."""
    content = chat_lines(12)
    file = server.upload(content)
    job = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file}).json()["id"]
    limit(server, "stored_bytes", 10**9)
    with server.ctx.database.transaction() as tx:
        tx.exec_driver_sql(
            "INSERT INTO checkpoints (id, project_id, job_id, step, model_name, key, metrics, created_at, bytes) "
            f"VALUES ('c', '{server.project.id}', '{job}', 1, 'm', 'k', '{{}}', 1, 777)"
        )
    assert server.get("/api/quotas").json()["data"][0]["used"] == len(content) + 777


def test_a_queued_job_waits_when_the_budget_runs_out(server: Server) -> None:
    """Of two jobs the running one goes on; the queued one is not started and says why, once, until the limit is raised
    or the month is over."""
    clock, ctx = server.ctx.now, server.ctx
    assert isinstance(clock, Clock)
    file = server.upload(chat_lines(12))
    body = {"model": TINY, "training_file": file, "seed": 1, "hyperparameters": {"n_epochs": 1}}
    price = server.post("/api/fine_tuning/estimate", body).json()["price"]
    budget = round(2.5 * price * 1e6)
    limit(server, "money_per_month", budget)
    made = [server.post("/v1/fine_tuning/jobs", body) for _ in range(2)]
    assert [one.status_code for one in made] == [200, 200], made[0].text
    first, second = (one.json()["id"] for one in made)
    with ctx.database.transaction() as tx:
        for job_id in (first, second):
            job = job_rows.get_any_job(tx, job_id)
            job_rows.save_job(tx, advance(job, JobStatus.QUEUED, now=T0), was=job.status)
    scheduler = Scheduler(
        ctx=ctx,
        executor=NothingStarts(),
        limits=Limits(max_running_jobs=1, memory_bytes=10**12, threads=1, lease_seconds=1000),
        owner="test",
        command=("true",),
    )
    scheduler.step()
    assert statuses(server, first, second) == ["running", "queued"]
    spend(server, budget - 1)
    finish(server, first)
    for _ in range(3):
        scheduler.step()
    assert statuses(server, second) == ["queued"]
    told = [one for one in server.get(f"/v1/fine_tuning/jobs/{second}/events").json()["data"] if one["level"] == "warn"]
    assert len(told) == 1
    assert "money_per_month" in told[0]["message"]
    assert "raise the limit" in told[0]["message"]
    assert sum(one["action"] == "job.waits_for_budget" for one in server.get("/api/audit").json()["data"]) == 1
    clock.at = month_start(T0) + 32 * 86400
    scheduler.step()
    assert statuses(server, second) == ["running"]


def statuses(server: Server, *jobs: str) -> list[str]:
    """The jobs' statuses."""
    return [server.get(f"/v1/fine_tuning/jobs/{job}").json()["status"] for job in jobs]


def spend(server: Server, millionths: int) -> None:
    """Answers that cost so much at the built-in price."""
    record = UsageRecord(
        id=new_id(USAGE),
        project_id=server.project.id,
        key_id=None,
        kind="inference",
        model="m",
        prompt_tokens=-(-millionths * 1_000_000 // 130_000),
        created_at=T0,
    )
    with server.ctx.database.transaction() as tx:
        usage_rows.insert_usage(tx, record)


def finish(server: Server, job_id: str) -> None:
    """The running job comes to its end, and so does its run."""
    with server.ctx.database.transaction() as tx:
        job = job_rows.get_any_job(tx, job_id)
        job_rows.save_job(tx, advance(job, JobStatus.SUCCEEDED, now=T0), was=job.status)
        run = run_rows.latest_run(tx, job_id)
        assert isinstance(run, Run)
        run_rows.save_run(tx, replace(run, state=type(run.state).FINISHED, ended_at=T0))
