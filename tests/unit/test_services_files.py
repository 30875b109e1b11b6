"""Files: bytes shared by digest, deletion, leftovers and storage that fails, on both databases."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.api_server import chat_lines
from tests.store_rows import add_project

from smedje.domain.files import File, FilePurpose, FileStatus, content_key, pending_key, report_key
from smedje.domain.projects import Project
from smedje.domain.quotas import Limit, Quota
from smedje.errors import InvalidRequest, LimitExceeded, NotFound, SmedjeError, Unavailable
from smedje.objects.store import open_objects
from smedje.services import files as service
from smedje.services import uploads
from smedje.services.context import Context
from smedje.store import files as rows
from smedje.store import quotas as quota_rows
from smedje.store.database import Database

FORM = service.FileForm(filename="train.jsonl", purpose="fine-tune")


@pytest.fixture
def ctx(database: Database, tmp_path: Path) -> Context:
    """A context on an empty database with objects on disk."""
    objects = open_objects((tmp_path / "objects").as_uri())
    return Context(database=database, objects=objects, home=tmp_path, now=lambda: 1000.5)


@pytest.fixture
def project(ctx: Context) -> Project:
    """A project."""
    with ctx.database.transaction() as tx:
        return add_project(tx)


def upload(ctx: Context, project: Project, content: bytes, form: service.FileForm = FORM) -> File:
    """Upload in two writes."""
    taking = service.Upload(ctx)
    taking.write(content[:7])
    taking.write(content[7:])
    return taking.finish(project, form)


def stored(ctx: Context) -> set[str]:
    """Keys of all objects."""
    return {info.key for info in ctx.objects.list("")}


def test_a_file_is_its_bytes_under_their_digest_and_a_report(ctx: Context, project: Project) -> None:
    """Two objects: the exact bytes where their SHA-256 says, and the data report."""
    content = chat_lines(12)
    file = upload(ctx, project, content)
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert (file.status, file.examples, file.bytes, file.created_at) == (FileStatus.PROCESSED, 12, len(content), 1000)
    assert stored(ctx) == {content_key(file.sha256), report_key(file.id)}
    assert service.get_file(ctx, project, file.id) == file
    assert b"".join(service.read_file(ctx, project, file.id)[1]) == content


def test_the_same_bytes_are_kept_until_their_last_file_goes(ctx: Context, project: Project) -> None:
    """Two files share their bytes; deleting one keeps them, deleting the other removes them and the reports."""
    first, second = (upload(ctx, project, chat_lines(12)) for _ in range(2))
    assert len(stored(ctx)) == 3
    service.delete_file(ctx, project, first.id)
    assert stored(ctx) == {content_key(second.sha256), report_key(second.id)}
    service.delete_file(ctx, project, second.id)
    assert stored(ctx) == set()
    with pytest.raises(NotFound):
        service.delete_file(ctx, project, second.id)


def test_uploads_and_deletions_of_the_same_bytes_never_cross(ctx: Context, project: Project) -> None:
    """Whatever the order, a file that is there has its bytes."""
    content = chat_lines(10)
    made: list[File] = []

    def upload_some() -> None:
        for _ in range(6):
            try:
                made.append(upload(ctx, project, content))
            except (Unavailable, NotFound):
                continue  # told to upload again: nothing was promised

    def delete_some() -> None:
        for _ in range(12):
            for file in service.list_files(ctx, project, limit=10, order="asc")[:1]:
                try:
                    service.delete_file(ctx, project, file.id)
                except NotFound:
                    continue

    threads = [threading.Thread(target=work) for work in (upload_some, delete_some, upload_some, delete_some)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = service.list_files(ctx, project, limit=100, order="asc")
    for file in left:
        assert b"".join(service.read_file(ctx, project, file.id)[1]) == content
    assert made
    if not left:
        assert content_key(made[0].sha256) not in stored(ctx)


def test_an_abandoned_upload_leaves_nothing(ctx: Context, project: Project) -> None:
    """Abort before or after the writes, or a refusal at the end: no object, no half-written file."""
    for content in (b"", chat_lines(10)):
        taking = service.Upload(ctx)
        taking.write(content)
        taking.abort()
        taking.abort()
    for form in (replace(FORM, purpose="assistants"), replace(FORM, lifetime=60)):
        with pytest.raises(InvalidRequest):
            upload(ctx, project, chat_lines(10), form)
    assert [path for path in (ctx.home / "objects").rglob("*") if path.is_file()] == []


def test_storage_that_fails_after_the_bytes_leaves_nothing(ctx: Context, project: Project) -> None:
    """When the report cannot be written, the bytes go too and no file is recorded."""
    (ctx.home / "objects" / "reports").write_bytes(b"a file where a folder should be")
    with pytest.raises(SmedjeError, match="reports/"):
        upload(ctx, project, chat_lines(10))
    assert stored(ctx) == {"reports"}
    assert service.list_files(ctx, project, limit=5, order="desc") == []


def test_start_up_sweeps_what_a_killed_server_left(ctx: Context, project: Project) -> None:
    """Unfinished writes and uploads that were never recorded go; files stay."""
    kept = upload(ctx, project, chat_lines(10))
    service.Upload(ctx).write(b"half")  # never finished, as after a kill
    ctx.objects.put("incoming/in-left", b"whole, never recorded")
    service.sweep(replace(ctx, now=lambda: 10.0**10))
    assert stored(ctx) == {content_key(kept.sha256), report_key(kept.id)}


def test_bad_rows_are_an_error_and_few_rows_are_not(ctx: Context, project: Project) -> None:
    """The status tells whether the data can be used at all; too few rows matter only to a job that trains on them."""
    bad = upload(ctx, project, chat_lines(10) + b"{}\n")
    assert bad.status is FileStatus.ERROR
    assert bad.status_details is not None
    assert "Line 11" in bad.status_details
    assert service.stored_problems(ctx, bad)[0]["line"] == 11
    few = upload(ctx, project, chat_lines(3))
    assert (few.status, few.examples) == (FileStatus.PROCESSED, 3)


@pytest.mark.parametrize(
    "name", ["a/b/../c", "\x00\x01", "." * 300, "x" * 10_000 + ".jsonl", "\ud800.jsonl", "a\nb", "ø" * 300]
)
def test_a_clean_name_is_short_printable_and_no_path(name: str) -> None:
    """At most 255 bytes, no separators, no control characters, never empty, never only dots."""
    clean = service.clean_filename(name)
    assert 0 < len(clean.encode("utf-8")) <= 255
    assert clean.isprintable()
    assert "/" not in clean
    assert clean.strip(".")


def test_only_training_files_have_a_report(ctx: Context, project: Project) -> None:
    """A results file's report is not found; a training file's is the stored JSON."""
    file = upload(ctx, project, chat_lines(10))
    assert b'"verdict"' in service.read_report(ctx, project, file.id)
    with ctx.database.transaction() as tx:
        rows.insert_file(tx, replace(file, id="file-results", purpose=FilePurpose.FINE_TUNE_RESULTS))
    with pytest.raises(NotFound, match="only training files"):
        service.read_report(ctx, project, "file-results")


def test_what_a_killed_server_half_recorded_or_half_deleted_is_undone(ctx: Context, project: Project) -> None:
    """Bytes and reports without a file go, also those of a deletion; a file that was recorded stays whole."""
    kept = upload(ctx, project, chat_lines(10))
    other = upload(ctx, project, chat_lines(11))
    for file in (kept, other):
        # What a kill leaves before the note is taken away, and after a deletion was recorded.
        ctx.objects.put(pending_key(file.id), f'{{"project_id": "{project.id}", "sha256": "{file.sha256}"}}'.encode())
    with ctx.database.transaction() as tx:
        rows.delete_file(tx, project.id, other.id)
    content = chat_lines(12)
    digest = hashlib.sha256(content).hexdigest()
    ctx.objects.put(content_key(digest), content)
    ctx.objects.put(report_key("file-never"), b"{}")
    ctx.objects.put(pending_key("file-never"), f'{{"project_id": "{project.id}", "sha256": "{digest}"}}'.encode())
    service.sweep(ctx)
    assert stored(ctx) == {content_key(kept.sha256), report_key(kept.id)}


def test_parts_count_as_stored_until_they_are_a_file(ctx: Context, project: Project) -> None:
    """What an upload promises takes room; completed it counts once, cancelled or expired not at all."""
    content = chat_lines(20)
    with ctx.database.transaction() as tx:
        quota_rows.put_quota(
            tx,
            Quota(
                project_id=project.id,
                deployment="",
                name=Limit.STORED_BYTES,
                value=2 * len(content),
                updated_at=0,
            ),
        )

    def begin(at: Context = ctx) -> str:
        return uploads.create_upload(at, project, FORM, size=len(content), mime_type="text/jsonl").id

    first, second = begin(), begin()
    with pytest.raises(LimitExceeded, match="stored_bytes"):
        begin()
    with pytest.raises(LimitExceeded):
        upload(ctx, project, content)
    uploads.cancel_upload(ctx, project, second)
    part = uploads.PartWriter(ctx, project, first)
    part.write(content)
    done = uploads.complete_upload(ctx, project, first, part_ids=[part.finish().id])
    assert done[1].status is FileStatus.PROCESSED
    begin()
    with pytest.raises(LimitExceeded):
        begin()
    begin(replace(ctx, now=lambda: 1000.5 + uploads.LIFE_SECONDS + 1))


def test_parts_beyond_twice_the_promise_are_refused(ctx: Context, project: Project) -> None:
    """A part may be sent again when its answer was lost; without end it may not."""
    begun = uploads.create_upload(ctx, project, FORM, size=10, mime_type="text/jsonl")
    for number in range(3):
        part = uploads.PartWriter(ctx, project, begun.id)
        part.write(b"0123456789")
        if number < 2:
            part.finish()
        else:
            with pytest.raises(InvalidRequest, match="30 bytes; it was created for 10"):
                part.finish()
    assert len([key for key in stored(ctx) if "/parts/" in key]) == 2


def test_start_up_takes_away_parts_of_ended_uploads(ctx: Context, project: Project) -> None:
    """A server that was killed between the end of an upload and the removal of its parts."""
    begun = uploads.create_upload(ctx, project, FORM, size=4, mime_type="text/jsonl")
    uploads.cancel_upload(ctx, project, begun.id)
    ctx.objects.put(f"uploads/{begun.id}/parts/part_left", b"left")
    assert uploads.sweep_uploads(ctx) == 1
    assert stored(ctx) == {f"uploads/{begun.id}/record.json"}
