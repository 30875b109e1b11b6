"""Usage and costs as OpenAI's admin client asks for them; what storage, failed and cancelled jobs come to."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from openai import OpenAI
from tests.api_server import TINY, Clock, Server, chat_lines, live_server, make_context

from smedje.domain.ids import RUN, USAGE, new_id
from smedje.domain.jobs import FineTuningJob, JobStatus, advance
from smedje.domain.prices import FREE
from smedje.domain.runs import Outcome, Run, RunResult, RunState
from smedje.domain.usage import UsageRecord
from smedje.objects.run_folder import RunFolder
from smedje.services import job_ends
from smedje.services.upkeep import meter_storage
from smedje.store import jobs as job_rows
from smedje.store import runs as run_rows
from smedje.store import usage as usage_rows

HOUR, DAY = 3600, 86_400
T0 = 1_600_000_000 - 1_600_000_000 % DAY


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the test's clock, with some usage."""
    ctx = replace(make_context(tmp_path_factory.mktemp("home")), now=Clock(at=T0))
    with live_server(ctx) as found:
        used(found, "a", hours=[0, 0, 1, 25], key="key_1")
        used(found, "b", hours=[2, 49], key="key_2")
        yield found


@pytest.fixture
def admin(server: Server) -> Iterator[OpenAI]:
    """The official client as an administrator uses it."""
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, admin_api_key=server.key, max_retries=0) as client:
        yield client


def used(server: Server, model: str, *, hours: list[int], key: str) -> None:
    """An answer of 10 + 5 tokens at each of these hours."""
    with server.ctx.database.transaction() as tx:
        for hour in hours:
            record = UsageRecord(
                id=new_id(USAGE),
                project_id=server.project.id,
                key_id=key,
                kind="inference",
                model=model,
                prompt_tokens=10,
                completion_tokens=5,
                created_at=T0 + hour * HOUR,
            )
            usage_rows.insert_usage(tx, record)


def test_buckets_of_every_width_and_their_pages(admin: OpenAI) -> None:
    """Days and hours hold the requests of their time; pages follow one another without a gap or an overlap."""
    usage = admin.admin.organization.usage
    days = usage.completions(start_time=T0, end_time=T0 + 3 * DAY, bucket_width="1d")
    counts = [sum(one.num_model_requests for one in bucket.results) for bucket in days.data]  # type: ignore[union-attr]
    assert (counts, days.has_more, days.next_page) == ([4, 1, 1], False, None)
    first = usage.completions(start_time=T0, end_time=T0 + 3 * DAY, limit=2)
    assert (len(first.data), first.has_more) == (2, True)
    assert first.next_page is not None
    second = usage.completions(start_time=T0, end_time=T0 + 3 * DAY, limit=2, page=first.next_page)
    assert [bucket.start_time for bucket in first.data + second.data] == [T0, T0 + DAY, T0 + 2 * DAY]
    hours = usage.completions(start_time=T0, end_time=T0 + 3 * HOUR, bucket_width="1h", group_by=["model"])
    told = [[(one.model, one.num_model_requests) for one in bucket.results] for bucket in hours.data]  # type: ignore[union-attr]
    assert told == [[("a", 2)], [("a", 1)], [("b", 1)]]


def test_filters_and_groups(admin: OpenAI, server: Server) -> None:
    """By model, key and project; a foreign project adds nothing; an unknown group is refused by name."""
    usage = admin.admin.organization.usage
    period = {"start_time": T0, "end_time": T0 + 3 * DAY}
    only = usage.completions(**period, models=["b"], group_by=["api_key_id", "project_id"])  # type: ignore[arg-type]
    [one] = only.data[0].results
    assert (one.api_key_id, one.project_id, one.input_tokens) == ("key_2", server.project.id, 10)  # type: ignore[union-attr]
    none = usage.completions(**period, project_ids=["proj_other"])  # type: ignore[arg-type]
    assert all(bucket.results == [] for bucket in none.data)
    refused = server.get(f"/v1/organization/usage/completions?start_time={T0}&group_by=user_id")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "group_by")


def test_what_the_server_has_none_of_is_empty(admin: OpenAI, server: Server) -> None:
    """Embeddings, images and the like answer with empty buckets, anything else is not there."""
    for kind in ("embeddings", "images", "moderations", "vector_stores", "audio_speeches"):
        found = getattr(admin.admin.organization.usage, kind)(start_time=T0, end_time=T0 + DAY)
        assert [bucket.results for bucket in found.data] == [[]]
    assert server.get(f"/v1/organization/usage/dreams?start_time={T0}").status_code == 404


def test_costs_by_line_item(admin: OpenAI, server: Server) -> None:
    """One line for each model and use, with its tokens; together they are the bucket without lines."""
    costs = admin.admin.organization.usage.costs
    lines = costs(start_time=T0, end_time=T0 + DAY, group_by=["line_item"]).data[0].results
    told = {one.line_item: (one.quantity, one.quantity_unit) for one in lines}  # type: ignore[union-attr]
    assert told == {"a, inference": (45.0, "tokens"), "b, inference": (15.0, "tokens")}
    [whole] = costs(start_time=T0, end_time=T0 + DAY).data[0].results
    parts = sum(one.amount.value for one in lines)  # type: ignore[union-attr, misc]
    assert whole.amount.value == pytest.approx(parts)  # type: ignore[union-attr]
    only = costs(start_time=T0, end_time=T0 + DAY, line_items=["b, inference"]).data[0].results
    assert [one.line_item for one in only] == ["b, inference"]  # type: ignore[union-attr]


def test_storage_is_metered_by_the_byte_and_second(server: Server) -> None:
    """A file kept for two days costs its bytes times two days, however often the meter ran; deleted, nothing more."""
    clock = server.ctx.now
    assert isinstance(clock, Clock)
    clock.at = T0 + 10 * DAY
    content = chat_lines(40)
    file = server.upload(content)
    meter_storage(server.ctx)
    for _ in range(8):
        clock.at += DAY / 4
        meter_storage(server.ctx)
        meter_storage(server.ctx)
    with server.http() as http:
        http.delete(f"/v1/files/{file}")
    clock.at += DAY
    meter_storage(server.ctx)
    begin, end = T0 + 10 * DAY, T0 + 20 * DAY
    found = server.get(f"/api/costs?start_time={begin}&end_time={end}&group_by=kind").json()["data"]
    [stored] = [one for one in found if one["kind"] == "storage"]
    assert stored["storage_gb_days"] == pytest.approx(len(content) * 2 / 1e9)
    assert stored["cost"] == pytest.approx(len(content) * 2 / 1e9 * 700 / 1e6, abs=1e-10)
    assert "storage_gb_days" in server.get("/api/costs?format=csv").text.splitlines()[0]
    prices = server.get("/api/prices").json()
    assert (prices["storage_gb_day"], prices["hosting_hour"]) == (700, 0)


def ended_job(server: Server, status: JobStatus, *, tokens: int) -> FineTuningJob:
    """A job that ended so after a run that had trained so many tokens."""
    file = server.upload(chat_lines(12))
    made = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file}).json()
    with server.ctx.database.transaction() as tx:
        job = job_rows.get_any_job(tx, made["id"])
        run = Run(
            id=new_id(RUN),
            job_id=job.id,
            attempt=1,
            state=RunState.FINISHED,
            executor="local",
            handle={},
            started_at=1,
            ended_at=2,
        )
        run_rows.insert_run(tx, run)
        data = {"trained_tokens": tokens, "seconds": 3.0}
        RunFolder(server.ctx.objects, run.id).write_result(RunResult(outcome=Outcome.CANCELLED, data=data))
        ended = advance(job, status, now=server.ctx.seconds())
        job_rows.save_job(tx, ended, was=job.status)
        job_ends.moved(server.ctx, tx, ended)
        job_ends.meter(server.ctx, tx, ended)
    return ended


def test_what_did_not_succeed_is_metered_once_and_charged_only_when_cancelled(server: Server) -> None:
    """A cancelled job pays for what it trained, a failed one only shows it; the key is the job's maker's."""
    clock = server.ctx.now
    assert isinstance(clock, Clock)
    clock.at = T0 + 30 * DAY
    cancelled = ended_job(server, JobStatus.CANCELLED, tokens=1000)
    ended_job(server, JobStatus.FAILED, tokens=500)
    query = f"start_time={T0 + 30 * DAY}&end_time={T0 + 31 * DAY}&group_by=kind,key_id"
    found = {one["kind"]: one for one in server.get(f"/api/costs?{query}").json()["data"]}
    assert found["training"]["trained_tokens"] == 1000
    assert found["training"]["cost"] == pytest.approx(1000 * 3_000_000 / 1e12)
    assert (found[FREE]["trained_tokens"], found[FREE]["cost"], found[FREE]["seconds"]) == (500, 0, 3.0)
    assert found["training"]["key_id"] == cancelled.key_id
    assert cancelled.key_id is not None
