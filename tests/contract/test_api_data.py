"""Uploads in parts with the official client, and insights, rows, repair and lineage, over a live server."""

import hashlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
from tests.api_server import TINY, Server, chat_lines, make_project

from smedje.domain.files import content_key
from smedje.errors import Conflict, NotFound
from smedje.services import files as file_service
from smedje.services import uploads as service

CONTENT = chat_lines(300, text="An answer of some length")


def pieces(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def begin(server: Server, size: int = len(CONTENT)) -> openai.types.Upload:
    return server.client().uploads.create(bytes=size, filename="t.jsonl", mime_type="text/jsonl", purpose="fine-tune")


def test_parts_in_any_order_and_at_once_make_the_file(server: Server) -> None:
    """Parts sent from threads, named in order with the MD5, are the file, checked and with its exact bytes."""
    upload = begin(server)
    assert (upload.status, upload.expires_at - upload.created_at) == ("pending", 3600)
    parts = pieces(CONTENT, 7001)
    with ThreadPoolExecutor(4) as pool:
        ids = list(
            pool.map(lambda data: server.client().uploads.parts.create(upload.id, data=data).id, reversed(parts))
        )
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    done = server.client().uploads.complete(upload.id, part_ids=ids[::-1], md5=md5)
    assert (done.status, done.file.status, done.file.bytes) == ("completed", "processed", len(CONTENT))
    assert server.client().files.content(done.file.id).content == CONTENT
    assert server.ctx.objects.list(f"uploads/{upload.id}/parts") == []
    for call in (
        lambda: server.client().uploads.complete(upload.id, part_ids=ids),
        lambda: server.client().uploads.cancel(upload.id),
        lambda: server.client().uploads.parts.create(upload.id, data=b"x"),
    ):
        with pytest.raises(openai.ConflictError) as told:
            call()
        assert told.value.code == "upload_not_pending"


def test_the_clients_own_chunking_works(server: Server) -> None:
    """`upload_file_chunked` of the official client needs nothing else."""
    done = server.client().uploads.upload_file_chunked(
        file=CONTENT,
        filename="t.jsonl",
        bytes=len(CONTENT),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=9000,
    )
    assert done.file.bytes == len(CONTENT)


def test_what_does_not_add_up_is_refused_and_can_be_mended(server: Server) -> None:
    """A missing part, a wrong order by MD5, an unknown part: told by name; the upload stays and no file appears."""
    upload, before = begin(server), server.client().files.list().data
    first, second = pieces(CONTENT, len(CONTENT) // 2 + 1)
    ids = [server.client().uploads.parts.create(upload.id, data=data).id for data in (first, second)]
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    for part_ids, digest, code in (
        (ids[:1], None, "upload_size_mismatch"),
        (ids[::-1], md5, "md5_mismatch"),
        ([*ids, "part_" + "x" * 24], None, "invalid_parts"),
        ([], None, "invalid_parts"),
        (["../../x"], None, "invalid_parts"),
    ):
        with pytest.raises(openai.BadRequestError) as told:
            server.client().uploads.complete(upload.id, part_ids=part_ids, md5=digest or openai.omit)
        assert told.value.code == code
    assert server.client().files.list().data == before
    assert server.ctx.objects.list("incoming") == []
    assert server.client().uploads.complete(upload.id, part_ids=ids, md5=md5).file.bytes == len(CONTENT)


def test_cancelled_foreign_and_unknown_uploads(server: Server) -> None:
    """A cancelled upload loses its parts; another project's looks like none; sizes have bounds."""
    upload = begin(server)
    server.client().uploads.parts.create(upload.id, data=b"x")
    assert server.client().uploads.cancel(upload.id).status == "cancelled"
    assert server.ctx.objects.list(f"uploads/{upload.id}/parts") == []
    mine = begin(server)
    _, secret = make_project(server.ctx, "other")
    other = server.client(secret)
    for call in (
        lambda: other.uploads.parts.create(mine.id, data=b"x"),
        lambda: other.uploads.complete(mine.id, part_ids=["p"]),
        lambda: other.uploads.cancel(mine.id),
        lambda: server.client().uploads.cancel("upload_" + "x" * 24),
    ):
        with pytest.raises(openai.NotFoundError) as told:
            call()
        assert told.value.code == "upload_not_found"
    with pytest.raises(openai.APIStatusError) as told:
        begin(server, 9 * 2**30)
    assert told.value.code == "file_too_large"
    with pytest.raises(openai.BadRequestError):
        server.client().uploads.parts.create(mine.id, data=b"")


def test_an_upload_ends_after_an_hour_and_is_swept(server: Server) -> None:
    """Expired uploads take no parts, and the next upload removes them with their parts."""
    upload = begin(server)
    server.client().uploads.parts.create(upload.id, data=b"x")
    later = replace(server.ctx, now=lambda: upload.expires_at + 1.0)
    with pytest.raises(Conflict, match="expired"):
        service.cancel_upload(later, server.project, upload.id)
    assert service.sweep_uploads(server.ctx) == 0
    assert service.sweep_uploads(later) >= 1
    assert server.ctx.objects.list(f"uploads/{upload.id}") == []
    with pytest.raises(NotFound):
        service.cancel_upload(server.ctx, server.project, upload.id)


def test_two_completions_at_once_make_one_file(server: Server) -> None:
    """One wins, the other is told; and a mark that a killed server left is swept at the start."""
    upload, before = begin(server), len(server.client().files.list().data)
    part = server.client().uploads.parts.create(upload.id, data=CONTENT).id
    results: list[object] = []

    def complete() -> None:
        try:
            results.append(service.complete_upload(server.ctx, server.project, upload.id, part_ids=[part])[1])
        except Conflict as refusal:
            results.append(refusal)

    threads = [threading.Thread(target=complete) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, Conflict) for one in results) == 1
    assert len(server.client().files.list().data) == before + 1
    server.ctx.objects.put("uploads/upload_x/completing", b"")
    file_service.sweep(server.ctx)
    assert not server.ctx.objects.exists("uploads/upload_x/completing")


def test_cut_parts_leave_nothing(server: Server) -> None:
    """A part that breaks off anywhere is no part: fifty cuts, no object, and the upload still completes."""
    upload = begin(server)
    for cut in range(0, len(CONTENT), max(1, len(CONTENT) // 50)):
        writer = service.PartWriter(server.ctx, server.project, upload.id)
        writer.write(CONTENT[:cut])
        writer.abort()
    assert server.ctx.objects.list(f"uploads/{upload.id}/parts") == []
    part = server.client().uploads.parts.create(upload.id, data=CONTENT).id
    done = server.client().uploads.complete(upload.id, part_ids=[part])
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert server.ctx.objects.get(content_key(digest)) == CONTENT
    assert done.file.bytes == len(CONTENT)


def test_a_part_may_be_longer_than_other_bodies(server: Server) -> None:
    """17 MiB are a part, under both prefixes' limit of 64 MiB, though no other route takes so much."""
    upload = begin(server, 17 * 2**20)
    part = server.client().uploads.parts.create(upload.id, data=b" " * (17 * 2**20))
    assert part.upload_id == upload.id
    assert server.client().uploads.cancel(upload.id).status == "cancelled"


def upload_file(server: Server, content: bytes) -> str:
    return server.client().files.create(file=("train.jsonl", io.BytesIO(content)), purpose="fine-tune").id


def test_insights_rows_repair_and_lineage(server: Server) -> None:
    """A file's findings, one line's tokens, a mended copy, and where it came from."""
    private = json.dumps(json.loads(CONTENT.splitlines()[0])).replace("question 0", "mail ida@post.dk").encode()
    source = upload_file(server, CONTENT + CONTENT.splitlines()[0] + b"\n" + private + b"\n")
    body = server.get(f"/api/files/{source}/insights?model={TINY}").json()
    codes = {one["code"] for one in body["findings"]}
    assert {"duplicate_example", "private_email"} <= codes
    assert body["histograms"]["tokens"]
    assert "ida@post.dk" not in json.dumps(body)
    leaks = server.get(f"/api/files/{source}/insights?validation_file={source}").json()
    assert "leaked_example" in {one["code"] for one in leaks["findings"]}
    row = server.get(f"/api/files/{source}/rows/2?model={TINY}").json()
    assert "An answer of some length 1" in "".join(t["text"] for t in row["examples"][0]["tokens"] if t["weight"])
    assert server.get(f"/api/files/{source}/rows/999?model={TINY}").status_code == 404
    done = server.post(f"/api/files/{source}/repair", {"steps": ["redact", "drop_duplicates"]}).json()
    made = done["file"]["id"]
    assert done["file"]["filename"] == "train.repaired-1.jsonl"
    assert b"[EMAIL]" in server.client().files.content(made).content
    assert server.get(f"/api/files/{made}/lineage").json()["made_from"]["parent"] == source
    assert server.get(f"/api/files/{source}/lineage").json() == {
        "object": "file.lineage",
        "id": source,
        "made_from": None,
        "made_into": [made],
        "used_in": [],
    }
    job = server.client().fine_tuning.jobs.create(model=TINY, training_file=source)
    assert server.get(f"/api/files/{source}/lineage").json()["used_in"] == [job.id]
    assert server.post(f"/api/files/{source}/repair", {"steps": ["polish"]}).status_code == 400


def test_deleting_a_file_deletes_what_is_known_of_it(server: Server) -> None:
    """Insights and lineage go with the file."""
    source = upload_file(server, CONTENT)
    made = server.post(f"/api/files/{source}/repair", {"steps": ["trim"]}).json()["file"]["id"]
    server.get(f"/api/files/{made}/insights")
    server.client().files.delete(made)
    kept = [info.key for prefix in ("insights", "lineage", "reports") for info in server.ctx.objects.list(prefix)]
    assert not [key for key in kept if made in key]
