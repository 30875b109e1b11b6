"""A thousand canary words in everything that a user sends: none is in a log, a metric, the audit log, an event or the
title of a process."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from tests.server_process import KEY, MODEL, ServerProcess, server_home, wait_for

WORD = "canaryword"


class Words:
    """Fresh canary words, counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        return f"{WORD}{self.count:04d}"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server with the tiny model."""
    server = ServerProcess(server_home(tmp_path_factory.mktemp("canaries")))
    server.start()
    yield server
    server.stop()


def rows(word: Words, count: int) -> bytes:
    """Chat rows in which question, answer and system prompt are canaries."""

    def row() -> dict[str, object]:
        said = [("system", word()), ("user", f"{word()}?"), ("assistant", word())]
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    return "\n".join(json.dumps(row()) for _ in range(count)).encode()


def say_everything(client: OpenAI, http: httpx2.Client, word: Words) -> tuple[str, list[str]]:
    """Send canaries wherever something is taken. Returns the job that trains on them and the secrets of its keys."""
    file = client.files.create(file=(f"{word()}.jsonl", rows(word, 200)), purpose="fine-tune")
    broken = b'{"messages": [{"role": "%s", "content": "%s"}]}\n' % (word().encode(), word().encode())
    client.files.create(file=(f"{word()}.jsonl", broken * 3), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        seed=7,
        metadata={word(): word()},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}},
        extra_body={"smedje": {"lora_rank": 2, "max_steps": 3}},
    )
    secrets = []
    for _ in range(40):
        secrets.append(http.post("/api/keys", json={"name": word(), "role": "reader"}).json()["secret"])
        project = {"name": word(), "description": word(), "tags": {word(): word()}}
        assert http.post("/api/projects", json=project).status_code == 200
        assert http.post("/api/deployments", json={"name": word(), "model": MODEL}).status_code == 200
        headers = {"user-agent": word(), "x-note": word(), "authorization": f"Bearer {word()}"}
        assert http.get("/v1/files", headers=headers).status_code == 401
        chat = {"model": MODEL, "max_tokens": 1, "user": word(), "metadata": {word(): word()}}
        chat["messages"] = [{"role": "user", "content": word()}]
        assert http.post("/v1/chat/completions", json=chat).status_code == 200
        assert http.post("/v1/chat/completions", json={**chat, word(): 1}).status_code == 400
        assert http.get(f"/v1/files/{word()}", params={word(): word()}).status_code in (400, 404)
    return job.id, secrets


def titles(process: ServerProcess) -> str:
    """Names, command lines and environments of every process of this state folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(entry / part).read_bytes().decode(errors="replace") for part in ("comm", "cmdline", "environ")]
        except OSError:
            continue
        if str(process.home) in "".join(texts):
            found += texts
    return "\n".join(found)


def organization_log(http: httpx2.Client) -> str:
    """The audit log in OpenAI's shape, without the project's present name, which that shape adds when it is read."""
    entries = http.get("/v1/organization/audit_logs?limit=100").json()["data"]
    for entry in entries:
        entry.get("project", {}).pop("name", None)
    return json.dumps(entries)


def test_no_canary_is_where_others_look(process: ServerProcess) -> None:
    """Prompts, rows, file and key names, tags, headers, paths, queries, unknown fields: 0 hits in logs of the server,
    the engine and the worker, metrics, audit, events, and process titles; and no key's secret either."""
    word = Words()
    with (
        process.client() as client,
        httpx2.Client(base_url=process.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
    ):
        job, secrets = say_everything(client, http, word)
        seen = titles(process)
        done = wait_for(
            lambda: (found := client.fine_tuning.jobs.retrieve(job)).status in ("succeeded", "failed") and found,
            what="the job",
        )
        assert done.status == "succeeded", done.error
        seen += titles(process)
        places = {
            "metrics": http.get("/metrics").text,
            "audit": http.get("/api/audit?limit=100").text + organization_log(http),
            "events": client.fine_tuning.jobs.list_events(job, limit=100).model_dump_json(),
            "titles": seen,
        }
    logs = list(process.home.rglob("*.log"))
    assert len(logs) >= 3, "the server, the engine and the worker each have a log"
    places |= {str(path): path.read_text(errors="replace") for path in logs}
    size = sum(map(len, places.values()))
    print(f"{word.count} canary words, {len(secrets)} keys, {len(places)} places, {size} characters, 0 hits wanted")
    assert word.count >= 1000
    hits = {place: text[max(0, text.find(WORD) - 80) :][:200] for place, text in places.items() if WORD in text}
    assert hits == {}
    leaked = [place for place, text in places.items() if place != "titles" for one in secrets if one in text]
    assert leaked == []
