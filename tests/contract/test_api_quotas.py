"""Quotas, usage, costs and prices over HTTP: what is refused, how it is told, and that the sums are right."""

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.api_server import TINY, Server, chat_lines, make_project

from smedje.domain.ids import USAGE, new_id
from smedje.domain.projects import Project
from smedje.domain.usage import UsageRecord
from smedje.store import usage as usage_rows

DAY = 24 * 3600
CHAT = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}


@pytest.fixture
def limited(server: Server, request: pytest.FixtureRequest) -> str:
    """The key of a project of its own."""
    return make_project(server.ctx, request.node.name)[1]


def put(server: Server, key: str, **body: Any) -> None:
    """Set a limit."""
    with server.http(key) as http:
        answer = http.put("/api/quotas", json=body)
    assert answer.status_code == 200, answer.text


def test_a_rate_is_a_429_with_retry_after(server: Server, limited: str) -> None:
    """Of 30 requests at once under 10 a minute exactly 10 are answered; the others are told when to come again."""
    put(server, limited, name="requests_per_minute", value=10)
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: server.post("/v1/chat/completions", CHAT, key=limited), range(30)))
    assert sorted(answer.status_code for answer in found) == [200] * 10 + [429] * 20
    refused = next(answer for answer in found if answer.status_code == 429)
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "10 requests a minute" in error["message"]
    assert "Owner and Contributor" in error["message"]


def test_counts_are_refused_before_anything_is_made(server: Server, limited: str) -> None:
    """Bytes, jobs, models and deployments: 429 quota_exceeded that clients do not retry, and nothing is left behind."""
    file = server.upload(chat_lines(12), key=limited)
    job = {"model": TINY, "training_file": file}
    put(server, limited, name="stored_bytes", value=len(chat_lines(12)) + 10)
    put(server, limited, name="deployments", value=0)
    put(server, limited, name="active_jobs", value=1)
    with server.http(limited) as http:
        upload = http.post("/v1/files", files={"file": ("a.jsonl", chat_lines(13))}, data={"purpose": "fine-tune"})
    assert server.post("/v1/fine_tuning/jobs", job, key=limited).status_code == 200
    for answer in (
        upload,
        server.post("/api/deployments", {"name": "d", "model": TINY}, key=limited),
        server.post("/v1/fine_tuning/jobs", job, key=limited),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded"), answer.text
        assert answer.headers["x-should-retry"] == "false"
    assert [one["id"] for one in server.get("/v1/files", key=limited).json()["data"]] == [file]
    assert server.get("/api/deployments", key=limited).json()["data"] == []
    states = {one["name"]: (one["used"], one["left"]) for one in server.get("/api/quotas", key=limited).json()["data"]}
    assert states == {"stored_bytes": (len(chat_lines(12)), 10), "deployments": (0, 0), "active_jobs": (1, 0)}


def test_a_job_reserves_its_training_tokens(server: Server, limited: str) -> None:
    """A job that would use more tokens than are left is refused with both numbers; one that fits holds them."""
    file = server.upload(chat_lines(12), key=limited)
    job = {"model": TINY, "training_file": file, "seed": 3}
    found = server.post("/api/fine_tuning/estimate", job, key=limited).json()
    assert (found["quotas"], found["admitted"]) == ([], True)
    tokens = found["trained_tokens"]
    put(server, limited, name="training_tokens_per_month", value=tokens + 5)
    [room] = server.post("/api/fine_tuning/estimate", job, key=limited).json()["quotas"]
    assert f"{tokens} of {tokens + 5}" in room.pop("warning")
    assert room == {
        "name": "training_tokens_per_month",
        "value": tokens + 5,
        "used": 0,
        "left": tokens + 5,
        "needed": tokens,
        "enough": True,
    }
    assert server.post("/v1/fine_tuning/jobs", job, key=limited).status_code == 200
    found = server.post("/api/fine_tuning/estimate", job, key=limited).json()
    assert (found["quotas"][0]["left"], found["admitted"]) == (5, False)
    refused = server.post("/v1/fine_tuning/jobs", job, key=limited).json()["error"]
    assert refused["code"] == "quota_exceeded"
    assert f"{tokens} of them are used, 5 are left, and this needs {tokens}" in refused["message"]
    made = server.get("/v1/fine_tuning/jobs", key=limited).json()["data"]
    server.post(f"/v1/fine_tuning/jobs/{made[0]['id']}/cancel", {}, key=limited)
    assert [one["used"] for one in server.get("/api/quotas", key=limited).json()["data"]] == [0]


def test_a_budget_stops_requests(server: Server, limited: str) -> None:
    """With nothing left to spend a request is refused before it starts; with enough it leaves exactly its usage."""
    put(server, limited, name="money_per_month", value=0)
    answer = server.post("/v1/chat/completions", CHAT, key=limited)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    put(server, limited, name="money_per_month", value=1_000_000)
    usage = server.post("/v1/chat/completions", CHAT, key=limited).json()["usage"]
    cost = usage["prompt_tokens"] * 130_000 + usage["completion_tokens"] * 520_000
    [state] = server.get("/api/quotas", key=limited).json()["data"]
    assert state["used"] == -(-cost // 1_000_000)


def test_the_estimate_has_a_price(server: Server) -> None:
    """price is trained_tokens at the table's price."""
    file = server.upload(chat_lines(12))
    found = server.post("/api/fine_tuning/estimate", {"model": TINY, "training_file": file}).json()
    price = server.get("/api/prices").json()
    assert found["price"] == pytest.approx(found["trained_tokens"] * price["training_tokens"] / 1e12)
    assert found["currency"] == price["currency"]


def invented(server: Server, project: Project) -> list[UsageRecord]:
    """A month of made-up usage of one project, recorded."""
    rows = [
        UsageRecord(
            id=new_id(USAGE),
            project_id=project.id,
            key_id=f"key_{n % 3}",
            kind="training" if n % 7 == 0 else "inference",
            model=("small", "large")[n % 2],
            prompt_tokens=0 if n % 7 == 0 else 100 + n,
            completion_tokens=0 if n % 7 == 0 else 10 + n,
            trained_tokens=5000 + n if n % 7 == 0 else 0,
            seconds=1.5,
            created_at=1_600_000_000 + n * DAY // 5,
        )
        for n in range(150)
    ]
    with server.ctx.database.transaction() as tx:
        for row in rows:
            usage_rows.insert_usage(tx, row)
    return rows


def test_costs_equal_an_independent_sum(server: Server) -> None:
    """A month replayed for two projects: by project, model, key and day the sums are those of the rows."""
    projects = [make_project(server.ctx, f"month-{n}") for n in range(2)]
    rows = [row for project, _ in projects for row in invented(server, project)]
    window = "start_time=1599000000&end_time=1603000000"

    def cost(row: UsageRecord) -> int:
        return row.trained_tokens * 3_000_000 + row.prompt_tokens * 130_000 + row.completion_tokens * 520_000

    for group, value in (("project_id", "project_id"), ("model", "model"), ("key_id", "key_id"), ("day", "")):
        wanted: dict[object, int] = {}
        for row in rows:
            key = getattr(row, value) if value else row.created_at // DAY * DAY
            wanted[key] = wanted.get(key, 0) + cost(row)
        found = server.get(f"/api/costs?{window}&group_by={group}").json()["data"]
        assert {one[group]: round(one["cost"] * 1e12) for one in found} == wanted
    text = server.get(f"/api/usage?{window}&group_by=project_id,model&format=csv").text
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 4
    assert sum(int(line["trained_tokens"]) for line in lines) == sum(row.trained_tokens for row in rows)
    own = server.get(f"/api/costs?{window}&group_by=project_id", key=projects[0][1]).json()["data"]
    assert [one["project_id"] for one in own] == [projects[0][0].id]


def test_openais_organization_routes(server: Server) -> None:
    """Daily buckets with the numbers of the rows, empty days too, in the official client's shapes."""
    project, key = make_project(server.ctx, "organization")
    rows = [row for row in invented(server, project) if row.created_at < 1_600_000_000 + 3 * DAY]
    start = f"start_time={1_600_000_000}&limit=4&group_by=model"
    usage = server.get(f"/v1/organization/usage/completions?{start}", key=key).json()
    assert (usage["object"], len(usage["data"]), usage["has_more"]) == ("page", 4, True)
    first = usage["data"][0]
    assert first["end_time"] - first["start_time"] == DAY
    told = sum(one["num_model_requests"] for one in first["results"])
    assert told == sum(row.kind == "inference" and row.created_at < first["end_time"] for row in rows)
    costs = server.get(f"/v1/organization/costs?{start.replace('model', 'line_item')}", key=key).json()
    amount = costs["data"][0]["results"][0]["amount"]
    assert amount["currency"] == "usd"
    assert amount["value"] > 0
    refused = server.get(f"/v1/organization/costs?{start}&bucket_width=1h", key=key)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "bucket_width")


def test_new_prices_hold_from_now_on(server: Server) -> None:
    """What was used before keeps its price; only server-wide keys set prices."""
    body = {"currency": "EUR", "training_tokens": 9, "prompt_tokens": 0, "completion_tokens": 0, "device_hour": 0}
    before = server.get("/api/costs?start_time=1599000000&end_time=1603000000").json()["data"]
    with server.http() as http:
        assert http.put("/api/prices", json=body).json()["version"] == 1
        assert http.put("/api/prices", json={**body, "currency": "euro"}).json()["error"]["code"] == "invalid_prices"
    after = server.get("/api/costs?start_time=1599000000&end_time=1603000000").json()["data"]
    assert [one["cost"] for one in after] == [one["cost"] for one in before]
    assert server.get("/api/prices").json()["training_tokens"] == 9
    with server.http(make_project(server.ctx, "poor")[1]) as http:
        assert http.put("/api/prices", json=body).status_code == 403
