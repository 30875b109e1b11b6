"""Erasure and retention: what goes, what stands in the way, and that no byte of it is left anywhere."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.api_server import TINY, Clock, Server, chat_lines, live_server, make_context

from smedje.domain.catalog import FineTunedModel
from smedje.domain.ids import CHECKPOINT, RUN, new_id
from smedje.domain.jobs import Checkpoint, JobStatus, advance
from smedje.domain.runs import Run, RunState
from smedje.objects.store import open_objects
from smedje.services import erasure, orphans, projects, retention
from smedje.services.context import Context
from smedje.services.job_ends import moved
from smedje.services.prediction import prediction_key
from smedje.services.run_events import job_event
from smedje.services.upkeep import Upkeep
from smedje.store import catalog as model_rows
from smedje.store import jobs as job_rows
from smedje.store import runs as run_rows
from smedje.store import upkeep as upkeep_rows

CANARY = "zanzibar-canary-90210"
DAY = 24 * 3600


@pytest.fixture(params=["file", "memory"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server on a local disk, and one on a bucket, whose objects are cached in the state folder."""
    ctx = replace(make_context(tmp_path), now=Clock())
    if request.param == "memory":
        ctx = replace(ctx, objects=open_objects("memory:///"))
    with live_server(ctx) as found:
        yield found


def canary_lines(count: int = 12) -> bytes:
    """A training file whose third line holds the canary."""
    lines = chat_lines(count).splitlines(keepends=True)
    lines[2] = lines[2].replace(b"question 2", CANARY.encode())
    return b"".join(lines)


def trained_job(server: Server, file: str, *, model: str = TINY, validation: str | None = None) -> tuple[str, str]:
    """A job that succeeded, with model, run folder, story and log; the job's id and the model's name."""
    ctx, project = server.ctx, server.project
    body: dict[str, Any] = {"model": model, "training_file": file, "suffix": CANARY, "metadata": {"note": CANARY}}
    made = server.post("/v1/fine_tuning/jobs", body | ({"validation_file": validation} if validation else {}))
    assert made.status_code == 200, made.text
    job_id = made.json()["id"]
    run = Run(
        id=new_id(RUN),
        job_id=job_id,
        attempt=1,
        state=RunState.FINISHED,
        executor="local",
        handle={},
        started_at=1,
        ended_at=2,
    )
    key = f"runs/{run.id}/checkpoints/0000000005"
    name = f"ft:{TINY}:default:{CANARY}:{job_id[-8:]}"
    ctx.objects.put(f"{key}/adapter_model.safetensors", CANARY.encode() * 50)
    ctx.objects.put(f"runs/{run.id}/spec.json", CANARY.encode())
    ctx.objects.put(prediction_key(job_id), CANARY.encode())
    ctx.objects.put(f"runs/{run.id}/state/1/x", CANARY.encode())
    ctx.objects.put(f"runs/{run.id}/events/0000000000.jsonl", CANARY.encode())
    ctx.objects.local_folder(key, ctx.home / "cache")
    (ctx.home / "logs").mkdir(exist_ok=True)
    (ctx.home / "logs" / f"{run.id}.log").write_text(CANARY)
    with ctx.database.transaction() as tx:
        run_rows.insert_run(tx, run)
        checkpoint = Checkpoint(
            id=new_id(CHECKPOINT),
            project_id=project.id,
            job_id=job_id,
            step=5,
            model_name=f"{name}:ckpt-step-5",
            key=key,
            metrics={},
            created_at=ctx.seconds(),
            bytes=50 * len(CANARY),
        )
        job_rows.insert_checkpoint(tx, checkpoint)
        model_rows.insert_model(
            tx,
            FineTunedModel(
                id=name,
                project_id=project.id,
                base_model=TINY,
                job_id=job_id,
                suffix=CANARY,
                checkpoint_key=key,
                step=5,
                created_at=ctx.seconds(),
            ),
        )
        job_rows.insert_events(tx, [job_event(job_id, now=1, message=CANARY)])
        job = job_rows.get_any_job(tx, job_id)
        for status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED):
            job, was = advance(job, status, now=ctx.seconds()), job.status
            job_rows.save_job(tx, job, was=was)
        moved(ctx, tx, job)
    return job_id, name


def in_parts(server: Server, content: bytes, name: str) -> str:
    """A file that came through the Uploads API, which keeps a record of it for an hour."""
    made = server.client().uploads.upload_file_chunked(
        file=content, filename=name, bytes=len(content), mime_type="text/jsonl", purpose="fine-tune"
    )
    assert made.file is not None
    return made.file.id


def places_with(ctx: Context, word: str) -> list[str]:
    """Every object and every file of the state folder in which the word is."""
    found = [one.key for one in ctx.objects.list("") if word.encode() in ctx.objects.get(one.key)]
    files = (path for path in ctx.home.rglob("*") if path.is_file())
    return found + [str(path) for path in files if word.encode() in path.read_bytes()]


def test_nothing_of_a_row_is_left_after_its_erasure(server: Server) -> None:
    """Files that hold the row, copies, what was repaired from them, jobs, checkpoints, models, logs and names go; a
    file without the row and a job on it stay. The certificate's digests are those of what went; the log is sound."""
    first = server.upload(canary_lines(), name=f"{CANARY}.jsonl")
    copy = server.upload(canary_lines(), name="copy.jsonl")
    larger = in_parts(server, canary_lines(20), f"{CANARY}-larger.jsonl")
    other = server.upload(chat_lines(14), name="other.jsonl")
    repaired = server.post(f"/api/files/{first}/repair", {"steps": ["deduplicate"]})
    derived = [repaired.json()["file"]["id"]] if repaired.status_code == 200 else []
    server.get(f"/api/files/{first}/insights")
    job, model = trained_job(server, first)
    further, _ = trained_job(server, other, model=model)
    unrelated, _ = trained_job(server, other)
    held_out, _ = trained_job(server, other, validation=larger)
    plan = server.get(f"/api/erasures/preview?file={first}&row=3").json()
    assert set(plan["files"]) == {first, copy, larger, *derived}
    assert set(plan["jobs"]) == {job, further, held_out}
    assert len(plan["models"]) == len(plan["checkpoints"]) == 3
    assert plan["blocked_by"] == []
    digest = hashlib.sha256(canary_lines()).hexdigest()
    line = hashlib.sha256(canary_lines().splitlines()[2]).hexdigest()
    done = server.post("/api/erasures", {"file": first, "row": 3, "plan": plan["plan"]})
    assert done.status_code == 200, done.text
    made = done.json()
    assert made["state"] == "done"
    assert made["certificate"]["asked"] == {"file": first, "row": 3, "row_sha256": line}
    assert {one["sha256"] for one in made["certificate"]["files"]} >= {digest}
    adapters = {one["adapter_sha256"] for one in made["certificate"]["checkpoints"]}
    assert adapters == {hashlib.sha256(CANARY.encode() * 50).hexdigest()}
    assert hashlib.sha256(made["certificate_text"].encode()).hexdigest() == made["sha256"]
    assert made["sha256"] in server.get("/api/audit").text
    assert server.get("/api/audit/verify").json()["sound"]
    assert server.get(f"/api/erasures/{made['id']}").json() == made
    # What is left of the canary belongs to the unrelated job, which our own test named and filled with it.
    with server.ctx.database.transaction() as tx:
        [run] = run_rows.list_runs(tx, unrelated)
        job_rows.get_any_job(tx, unrelated)
    left = [place for place in places_with(server.ctx, CANARY) if run.id not in place and unrelated not in place]
    assert [place for place in left if "smedje.db" not in place and "/cache/" not in place] == []
    assert server.client().fine_tuning.jobs.retrieve(unrelated).id == unrelated
    final = server.get(f"/api/erasures/preview?file={other}").json()
    assert final["jobs"] == [unrelated]
    assert server.post("/api/erasures", {"file": other, "plan": final["plan"]}).json()["state"] == "done"
    assert places_with(server.ctx, CANARY) == []


def test_an_erasure_is_refused_while_something_stands_in_the_way(server: Server) -> None:
    """A deployment and an unfinished job are named; an outdated plan is refused; nothing is removed."""
    file = server.upload(canary_lines())
    _, model = trained_job(server, file)
    server.post("/api/deployments", {"name": "live", "model": model})
    running = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file}).json()["id"]
    plan = server.get(f"/api/erasures/preview?file={file}").json()
    refused = server.post("/api/erasures", {"file": file, "plan": plan["plan"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "erasure_blocked")
    assert "live" in refused.json()["error"]["message"]
    assert running in refused.json()["error"]["message"]
    server.client().fine_tuning.jobs.cancel(running)
    with server.http() as http:
        assert http.delete("/api/deployments/live").status_code == 200
    server.upload(canary_lines())
    stale = server.post("/api/erasures", {"file": file, "plan": plan["plan"]})
    assert stale.json()["error"]["code"] == "plan_changed"
    assert server.get(f"/v1/files/{file}").status_code == 200
    absent = server.get("/api/erasures/preview?file=file-" + "x" * 24)
    assert absent.status_code == 404
    assert server.get(f"/api/erasures/preview?file={file}&row=99").json()["error"]["code"] == "row_not_found"


def test_an_erasure_that_was_cut_off_is_finished_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies after the rows went leaves a note, and the next one's upkeep removes the bytes."""
    file = server.upload(canary_lines())
    trained_job(server, file)
    ctx = server.ctx
    caller = projects.authenticate(ctx, server.key)
    plan = erasure.plan_erasure(ctx, server.project, file)
    certificate = erasure._certificate(ctx, caller, plan)
    made = erasure._take_rows(ctx, server.project.id, plan, certificate)
    assert server.get(f"/api/erasures/{made.id}").json()["state"] == "removing"
    assert places_with(ctx, CANARY) != []
    assert Upkeep(ctx).step()["erasures"] == 1
    assert server.get(f"/api/erasures/{made.id}").json()["state"] == "done"
    assert places_with(ctx, CANARY) == []


def test_deleting_a_model_frees_its_bytes(server: Server) -> None:
    """The preview says what; a deployment of the model or of its checkpoint blocks by name; then its bytes are gone,
    stored bytes go down and the job stays."""
    file = server.upload(chat_lines(12))
    job, model = trained_job(server, file)
    server.post("/api/deployments", {"name": "live", "model": f"{model}:ckpt-step-5"})
    shown = server.get(f"/api/models/{model}/removal").json()
    assert (shown["bytes"], shown["deployments"]) == (50 * len(CANARY), ["live"])
    with server.http() as http:
        refused = http.delete(f"/v1/models/{model}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_deployed")
        assert "live" in refused.json()["error"]["message"]
        http.delete("/api/deployments/live")
        assert http.delete(f"/v1/models/{model}:ckpt-step-5").json()["error"]["code"] == "model_not_deletable"
        with server.ctx.database.transaction() as tx:
            before = upkeep_rows.stored_bytes(tx)[server.project.id]
        assert http.delete(f"/v1/models/{model}").status_code == 200
    with server.ctx.database.transaction() as tx:
        assert before - upkeep_rows.stored_bytes(tx)[server.project.id] == 50 * len(CANARY)
        [run] = run_rows.list_runs(tx, job)
    assert server.ctx.objects.list(f"runs/{run.id}/checkpoints") == []
    assert server.get(f"/v1/fine_tuning/jobs/{job}").json()["fine_tuned_model"] is None
    assert server.get(f"/v1/fine_tuning/jobs/{job}/checkpoints").json()["data"] == []


def test_retention_removes_what_is_old_and_not_in_use(server: Server) -> None:
    """The preview shows what a run then removes; a model's checkpoint, and a file that a job waits for, stay."""
    clock = server.ctx.now
    assert isinstance(clock, Clock)
    old, used = server.upload(chat_lines(12)), server.upload(chat_lines(13))
    job, _ = trained_job(server, old)
    server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": used})
    with server.ctx.database.transaction() as tx:
        [run] = run_rows.list_runs(tx, job)
        spare = replace(
            job_rows.list_checkpoints(tx, server.project.id, job, limit=1)[0],
            id=new_id(CHECKPOINT),
            step=3,
            model_name=f"ft:{TINY}:default::{job[-8:]}:ckpt-step-3",
            key=f"runs/{run.id}/checkpoints/0000000003",
        )
        job_rows.insert_checkpoint(tx, spare)
    server.ctx.objects.put(f"{spare.key}/adapter_model.safetensors", b"x")
    clock.at += 8 * DAY
    young = server.upload(chat_lines(14))
    hypothetical = server.get("/api/retention/preview?files=7&checkpoints=7&events=7").json()
    assert server.get("/api/retention/preview").json()["data"] == []
    with server.http() as http:
        assert http.put("/api/retention", json={"files": 7, "checkpoints": 7, "events": 7}).status_code == 200
    shown = server.get("/api/retention/preview").json()
    assert shown == hypothetical
    assert {one["id"] for one in shown["data"]} == {old, job, spare.model_name}
    assert shown["in_use"] == 2
    assert retention.apply_all(server.ctx) == 3
    assert server.get("/api/retention/preview").json()["data"] == []
    assert [server.get(f"/v1/files/{one}").status_code for one in (old, used, young)] == [404, 200, 200]
    assert server.ctx.objects.list(spare.key) == []
    assert not (server.ctx.home / "logs" / f"{run.id}.log").exists()
    assert server.get(f"/v1/fine_tuning/jobs/{job}/events").json()["data"] == []
    actions = [json.dumps(one) for one in server.get("/api/audit?limit=100").json()["data"]]
    for action in ("file.deleted", "checkpoint.deleted", "job.events_deleted", "retention.set"):
        assert any(action in one for one in actions)
    with server.http() as http:
        refused = http.put("/api/retention", json={"files": 99999})
        assert refused.json()["error"]["code"] == "invalid_value"


def test_orphans_are_collected_and_nothing_else(server: Server) -> None:
    """Bytes that no row names go once they are a day old; saved state goes with its job's end; the rest stays."""
    clock, ctx = server.ctx.now, server.ctx
    assert isinstance(clock, Clock)
    file = server.upload(chat_lines(12))
    job, _ = trained_job(server, file)
    with ctx.database.transaction() as tx:
        [run] = run_rows.list_runs(tx, job)
    lost = ["sha256/ab/ab/" + "ab" * 32, f"reports/file-{'z' * 24}.json", "runs/run-gone/spec.json"]
    lost.append(f"runs/{run.id}/checkpoints/0000000099/adapter_model.safetensors")
    for key in lost:
        ctx.objects.put(key, b"left behind")
    kept = {one.key for one in ctx.objects.list("")} - set(lost) - {f"runs/{run.id}/state/1/x"}
    assert orphans.collect(ctx) == 0
    clock.at += 2 * DAY
    assert orphans.collect(ctx) == len(lost) + 1
    assert {one.key for one in ctx.objects.list("")} == kept
