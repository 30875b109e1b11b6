"""New files from old ones over a live server: repair, split, import, download; what changed, lineage, and traces."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from threading import Thread
from typing import Any

import openai
import pytest
from tests.api_server import TINY, Server, chat_lines, make_app, make_project, serving

from smedje.domain.catalog import FineTunedModel
from smedje.domain.jobs import JobStatus
from smedje.services.outbound import Outbound
from smedje.store import catalog as model_rows
from smedje.store import jobs as job_rows


def chat(question: str, answer: str) -> bytes:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}).encode()


CONTENT = chat_lines(20) + b"\n".join([chat("question 3", "hello 3"), chat("Whom?", "ida@post.dk")]) + b"\n"


def raw_file(server: Server, name: str, content: bytes, purpose: Any = "user_data") -> str:
    return server.client().files.create(file=(name, io.BytesIO(content)), purpose=purpose).id


def trained(server: Server, model: str, file: str, name: str | None) -> str:
    """A job over the API whose end is written as the scheduler would; its fine-tuned model."""
    job = server.client().fine_tuning.jobs.create(model=model, training_file=file)
    with server.ctx.database.transaction() as tx:
        row = job_rows.get_job(tx, server.project.id, job.id)
        assert row is not None
        done = replace(row, status=JobStatus.SUCCEEDED, fine_tuned_model=name)
        job_rows.save_job(tx, done, was=row.status)
        if name is not None:
            model_rows.insert_model(
                tx,
                FineTunedModel(
                    id=name,
                    project_id=server.project.id,
                    base_model=TINY,
                    job_id=job.id,
                    suffix="",
                    checkpoint_key=f"runs/{job.id}/checkpoints/1",
                    step=1,
                    created_at=5,
                ),
            )
    return job.id


def test_a_repair_by_the_report_and_its_difference(server: Server) -> None:
    """The insights name the call; the call makes a new file; the difference shows each line; the parent stays."""
    source = server.upload(CONTENT)
    insights = server.get(f"/api/files/{source}/insights").json()
    steps = {one["step"]: one for one in insights["repairs"]}
    assert set(steps) == {"drop_duplicates", "redact"}
    method, _, rest = steps["redact"]["call"].partition(" ")
    path, _, body = rest.partition(" ")
    assert (method, steps["redact"]["command"]) == ("POST", f"smedje files repair {source} --step redact")
    made = server.post(path, json.loads(body)).json()
    assert made["made_from"]["changed"] == {"redact": 1}
    advised = server.post(f"/api/files/{source}/repair", {"advised": True}).json()
    found = server.get(f"/api/files/{advised['file']['id']}/diff?limit=1").json()
    assert (found["has_more"], found["data"][0]["line"], found["data"][0]["after"]) == (True, 21, None)
    rest = server.get(f"/api/files/{advised['file']['id']}/diff?after=21").json()
    assert [(one["line"], one["steps"]) for one in rest["data"]] == [(22, ["redact"])]
    assert "ida@post.dk" in rest["data"][0]["before"]
    assert "[EMAIL]" in rest["data"][0]["after"]
    lineage = server.get(f"/api/files/{source}/lineage").json()
    assert lineage["made_into"] == [made["file"]["id"], advised["file"]["id"]]
    assert server.get(f"/api/files/{source}/diff").json()["error"]["code"] == "lineage_not_found"
    again = server.post(f"/api/files/{advised['file']['id']}/repair", {"advised": True})
    assert (again.status_code, again.json()["error"]["code"]) == (400, "nothing_to_repair")
    other = server.upload(CONTENT)
    gone = server.post(f"/api/files/{source}/repair", {"steps": ["drop_leaks"], "against": other}).json()
    assert gone["error"]["code"] == "nothing_left"
    assert server.post(f"/api/files/{source}/repair", {"steps": ["drop_leaks"]}).status_code == 400


def test_a_split_makes_a_file_of_each_part(server: Server) -> None:
    """Every line once, each part with its lineage; shares that do not add up are refused."""
    source = server.upload(chat_lines(20))
    found = server.post(f"/api/files/{source}/split", {"shares": "80/10/10", "seed": 4}).json()
    parts = {name: part["file"]["id"] for name, part in found["parts"].items()}
    lines = [server.client().files.content(one).content for one in parts.values()]
    assert sorted(b"".join(lines).splitlines()) == sorted(chat_lines(20).splitlines())
    assert [len(one.splitlines()) for one in lines] == [16, 2, 2]
    assert found["parts"]["test"]["made_from"]["account"] == {"part": "test", "shares": "80/10/10", "by_label": False}
    assert found["parts"]["test"]["file"]["filename"] == "train.test-1.jsonl"
    pair = f"/api/files/{parts['train']}/insights?validation_file={parts['validation']}"
    assert server.get(pair).json()["pair"]["labels"] == {}
    assert server.post(f"/api/files/{source}/split", {"shares": "80/30"}).json()["error"]["param"] == "shares"


def test_a_raw_file_is_kept_as_it_is_and_imported(server: Server) -> None:
    """A CSV as user_data has no report and trains nothing; imported it is a training file with an account."""
    table = b"ask,say,id\n" + b"".join(b"Question %d,Answer %d,%d\n" % (n, n, n) for n in range(12)) + b"Empty,,1\n"
    raw = raw_file(server, "rows.csv", table)
    assert server.client().files.retrieve(raw).status == "processed"
    assert server.client().files.content(raw).content == table
    assert [one.id for one in server.client().files.list(purpose="user_data").data] == [raw]
    assert server.get(f"/api/files/{raw}/report").status_code == 404
    with pytest.raises(openai.BadRequestError) as told:
        server.client().fine_tuning.jobs.create(model=TINY, training_file=raw)
    assert told.value.code == "invalid_file_purpose"
    body = {"columns": {"user": "ask", "assistant": "say"}}
    made = server.post(f"/api/files/{raw}/import", body).json()
    assert (made["file"]["filename"], made["file"]["status"]) == ("rows.imported-1.jsonl", "processed")
    account = made["made_from"]["account"]
    assert (account["kept"], account["rows"], account["unused_columns"]) == (12, 13, {"id": 12})
    assert account["dropped"] == [{"file": "rows.csv", "row": 13, "reason": "missing_content"}]
    assert server.get(f"/api/files/{made['file']['id']}/lineage").json()["made_from"]["parent"] == raw
    for wrong, code in (
        ({"format": "xml"}, "unknown_format"),
        ({"columns": {"user": "ask"}}, "invalid_value"),
        ({}, "nothing_left"),
    ):
        answer = server.post(f"/api/files/{raw}/import", wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_the_report_is_a_page_too(server: Server) -> None:
    """One file with both files of a pair and marked tokens, sent as a download."""
    source = server.upload(CONTENT)
    answer = server.get(f"/api/files/{source}/page?model={TINY}&validation_file={source}")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "<mark>" in answer.text
    assert "Validation file" in answer.text
    assert f"smedje files repair {source} --step redact" in answer.text
    assert "ida@post.dk" not in answer.text


def test_which_models_saw_a_row(server: Server) -> None:
    """A row is found in every file that has it, deleted ones too, and so are models that continue from such a model."""
    content = chat_lines(20, text="traced")
    name, second, third = (f"ft:{TINY}:p::AbCd123{n}" for n in range(3))
    first = server.upload(content)
    copy = server.upload(b"\n" + content.splitlines()[4] + b"\n" + chat_lines(12, text="bye"))
    other = server.upload(chat_lines(12, text="good day"))
    job = trained(server, TINY, first, name)
    next_job = trained(server, name, other, second)
    trained(server, TINY, other, third)
    found = server.get(f"/api/files/{first}/rows/5/models").json()
    assert [(one["file_id"], one["lines"]) for one in found["files"]] == [(first, [5]), (copy, [2])]
    models = [(one["model"], one["job"], one["used_as"], one["through"]) for one in found["models"]]
    assert models == [(name, job, "training_file", None), (second, next_job, None, name)]
    assert found["jobs"] == [job]
    answer = server.client().files.delete(first)
    assert answer.deleted
    assert answer.to_dict() == {
        "id": first,
        "object": "file",
        "deleted": True,
        "smedje": {"jobs": [job], "models": [name, second]},
    }
    value = json.loads(content.splitlines()[4])
    row = json.dumps({"note": 1, **dict(reversed(value.items()))}, indent=1)
    again = server.post("/api/files/trace", {"row": row}).json()
    assert [(one["file_id"], one["deleted"]) for one in again["files"]] == [(copy, False), (first, True)]
    assert again["models"] == found["models"]
    assert server.client().files.delete(copy).to_dict() == {"id": copy, "object": "file", "deleted": True}
    assert [one["file_id"] for one in server.post("/api/files/trace", {"row": row}).json()["files"]] == [first]
    unseen = server.post("/api/files/trace", {"row": chat("never", "seen").decode()}).json()
    assert (unseen["files"], unseen["models"]) == ([], [])
    assert server.post("/api/files/trace", {"row": "{}"}).json()["error"]["code"] == "invalid_row"
    _, secret = make_project(server.ctx, "tracer")
    assert server.post("/api/files/trace", {"row": row}, key=secret).json()["files"] == []


def test_an_erasure_takes_the_traces_too(server: Server) -> None:
    """What was kept to answer which models saw a row goes with the file, its job and its model."""
    content = chat_lines(12, text="to be erased")
    file = server.upload(content)
    trained(server, TINY, file, f"ft:{TINY}:p::AbCd1239")
    row = {"row": content.splitlines()[0].decode()}
    assert [one["file_id"] for one in server.post("/api/files/trace", row).json()["files"]] == [file]
    plan = server.get(f"/api/erasures/preview?file={file}").json()["plan"]
    assert server.post("/api/erasures", {"file": file, "plan": plan}).json()["state"] == "done"
    assert server.post("/api/files/trace", row).json() == {
        "files": [],
        "jobs": [],
        "models": [],
        "object": "file.trace",
    }
    assert not [info for info in server.ctx.objects.list("traces") if file in info.key]


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """A web server on this machine with one table."""

    class Table(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"prompt,completion\n" + b"".join(b"Q%d,A%d\n" % (n, n) for n in range(12))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Table) as listening:
        thread = Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/data/rows.csv?x=1"
        listening.shutdown()


def test_a_url_is_imported_only_where_it_is_allowed(server: Server, host: str) -> None:
    """Off by default; with the network allowed the download is kept, imported, and its URL stands in the lineage."""
    refused = server.post("/api/files/import", {"url": host})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "url")
    ctx = replace(server.ctx, outbound=Outbound(networks=(ip_network("127.0.0.0/8"),)))
    with serving(make_app(ctx)) as url:
        open_server = replace(server, url=url, ctx=ctx, clients={})
        made = open_server.post("/api/files/import", {"url": host}).json()
        assert made["made_from"]["lines_written"] == 12
        raw = made["made_from"]["parent"]
        source = open_server.get(f"/api/files/{raw}/lineage").json()["made_from"]
        assert (source["kind"], source["parent_filename"]) == ("download", host)
        assert made["made_from"]["parent_filename"] == "rows.csv"
