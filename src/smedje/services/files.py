"""Files: taking bytes in without ever holding them whole, validating them, and letting them go.

Bytes lie in object storage under their digest, so that files with the same content share them. Knows nothing of HTTP
or multipart forms: an upload is a sequence of writes that ends in `finish` or `abort`.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from smedje.data.apart import check_file
from smedje.data.prepared import forget_rows
from smedje.data.report import Report, report_to_json
from smedje.domain.files import (
    File,
    FilePurpose,
    FileStatus,
    content_key,
    insights_key,
    lineage_key,
    pending_key,
    report_key,
    traces_key,
)
from smedje.domain.ids import FILE, new_id
from smedje.domain.projects import Project
from smedje.domain.quotas import Limit
from smedje.errors import InvalidRequest, NotFound, SmedjeError, TooLarge, Unavailable
from smedje.services.audit import record_in
from smedje.services.context import Context
from smedje.services.quotas import check_room
from smedje.services.traces import Fed, fed_by, keep_traces
from smedje.store import files as store

LIMIT_BYTES = 512 * 1024 * 1024
LONGEST_NAME = 255
INCOMING = "incoming/"
PENDING = "pending"
UPLOAD_PURPOSES = (FilePurpose.FINE_TUNE, FilePurpose.USER_DATA)
SHORTEST_LIFE, LONGEST_LIFE = 3600, 2_592_000
SHOWN_PROBLEMS = 3
CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class FileForm:
    """What a caller says about a file. lifetime: seconds until it expires, None for never."""

    filename: str
    purpose: str
    lifetime: int | None = None


class Abandoned(Exception):
    """Ends the object's writer without keeping what it wrote."""


class Upload:
    """Bytes on their way into a file. Ends with `finish` or `abort`; an abandoned one leaves nothing readable."""

    def __init__(self, ctx: Context, *, limit: int = LIMIT_BYTES) -> None:
        self.bytes = 0
        self._ctx = ctx
        self._limit = limit
        self._digest = hashlib.sha256()
        self._key = INCOMING + new_id("in-")
        self._landed = False
        self._open = ExitStack()
        self._out = self._open.enter_context(ctx.objects.writer(self._key))

    def write(self, data: bytes) -> None:
        """Append. Raises TooLarge beyond the limit and OutOfStorage when the disk or bucket is full."""
        self.bytes += len(data)
        if self.bytes > self._limit:
            raise too_large(self._limit)
        self._digest.update(data)
        self._out.write(data)

    def abort(self) -> None:
        """Drop everything. Harmless after `finish`."""
        self._open.__exit__(Abandoned, Abandoned(), None)
        if self._landed:
            self._ctx.objects.delete(self._key)

    def finish(self, project: Project, form: FileForm) -> File:
        """The file, validated: its status is `processed` or `error`, its report is stored.

        Raises InvalidRequest for a wrong purpose, lifetime or an empty file, and OutOfStorage; nothing is kept then.
        """
        try:
            file = self._described(project, form)
            self._open.close()
            self._landed = True
        except BaseException:
            self.abort()
            raise
        _note(self._ctx, file)
        try:
            self._ctx.objects.rename(self._key, content_key(file.sha256))
            self._landed = False
            known = _validated(self._ctx, file)
        except BaseException:
            self.abort()
            with suppress(SmedjeError):
                _settle(self._ctx, file.id, _Pending(project_id=file.project_id, sha256=file.sha256))
            raise
        self._ctx.objects.delete(pending_key(file.id))
        return known

    def _described(self, project: Project, form: FileForm) -> File:
        purpose = check_purpose(form.purpose)
        if self.bytes == 0:
            raise InvalidRequest(
                "The file is empty. A training file needs one JSON object a line.", code="empty_file", param="file"
            )
        now = self._ctx.seconds()
        return File(
            id=new_id(FILE),
            project_id=project.id,
            filename=clean_filename(form.filename),
            purpose=purpose,
            bytes=self.bytes,
            sha256=self._digest.hexdigest(),
            status=FileStatus.UPLOADED,
            created_at=now,
            expires_at=None if form.lifetime is None else now + check_lifetime(form.lifetime),
        )


def get_file(ctx: Context, project: Project, file_id: str) -> File:
    """Raises NotFound when this project has no such file, or its time is over."""
    with ctx.database.transaction() as tx:
        file = store.get_file(tx, project.id, file_id)
    if file is None or (file.expires_at is not None and file.expires_at <= ctx.now()):
        raise NotFound(f"No such File object: {file_id}", code="file_not_found", param="id")
    return file


def list_files(
    ctx: Context, project: Project, *, purpose: str | None = None, after: str | None = None, limit: int, order: str
) -> list[File]:
    """At most `limit` files, newest first or (order "asc") oldest first. Raises NotFound for an unknown `after`."""
    wanted = None if purpose is None else _known_purpose(purpose)
    with ctx.database.transaction() as tx:
        found = store.list_files(tx, project.id, purpose=wanted, after=after, limit=limit, order=order)
    return [file for file in found if file.expires_at is None or file.expires_at > ctx.now()]


def read_file(ctx: Context, project: Project, file_id: str) -> tuple[File, Iterator[bytes]]:
    """The file and its exact bytes in pieces."""
    file = get_file(ctx, project, file_id)
    return file, ctx.objects.iter_bytes(content_key(file.sha256))


def read_report(ctx: Context, project: Project, file_id: str) -> bytes:
    """The data report as JSON. Raises NotFound for a file that has none, such as a results file."""
    file = get_file(ctx, project, file_id)
    if file.purpose is not FilePurpose.FINE_TUNE:
        raise NotFound(
            f"{file_id} has the purpose {file.purpose.value}; only training files have a data report.",
            code="report_not_found",
            param="id",
        )
    return ctx.objects.get(report_key(file.id))


def delete_file(ctx: Context, project: Project, file_id: str) -> Fed:
    """Forget a file; its bytes go unless another file has the same. What it fed. Raises NotFound."""
    file = get_file(ctx, project, file_id)
    fed = keep_traces(ctx, file)
    _remove(ctx, file)
    return fed


def remove_file(ctx: Context, project_id: str, file_id: str) -> bool:
    """Forget a file, also one whose time is over; whether it was there."""
    with ctx.database.transaction() as tx:
        file = store.get_file(tx, project_id, file_id)
    if file is None:
        return False
    keep_traces(ctx, file)
    return _remove(ctx, file)


def _remove(ctx: Context, file: File) -> bool:
    _note(ctx, file)
    with ctx.database.transaction() as tx:
        gone = store.delete_file(tx, file.project_id, file.id)
        if gone:
            record_in(ctx, tx, "file.deleted", file.project_id, file.id)
    _settle(ctx, file.id, _Pending(project_id=file.project_id, sha256=file.sha256))
    return gone


def sweep(ctx: Context) -> int:
    """Remove what broken uploads left behind; for start-up, before requests come. Returns how many objects."""
    left = ctx.objects.list(INCOMING.rstrip("/"))
    # A server that died while it joined an upload's parts left its mark; the parts are whole and can be joined again.
    left += [found for found in ctx.objects.list("uploads") if found.key.endswith("/completing")]
    for found in left:
        ctx.objects.delete(found.key)
    noted = ctx.objects.list(PENDING)
    for found in noted:
        with suppress(msgspec.DecodeError):
            pending = msgspec.json.decode(ctx.objects.get(found.key), type=_Pending)
            _settle(ctx, found.key.removeprefix(f"{PENDING}/"), pending)
    return len(left) + len(noted) + ctx.objects.sweep(ctx.home / CACHE)


def too_large(limit: int) -> TooLarge:
    """The error for more bytes than the limit."""
    return TooLarge(
        f"The file is larger than the limit of {limit // 2**20} MiB. Split it, or leave out rows that add little.",
        code="file_too_large",
        param="file",
    )


def check_purpose(purpose: str) -> FilePurpose:
    """The purpose of an upload. Raises InvalidRequest naming the allowed ones."""
    allowed = {one.value: one for one in UPLOAD_PURPOSES}
    if purpose not in allowed:
        raise InvalidRequest(
            f"The purpose {purpose[:60]!r} is not offered for uploads. Use {' or '.join(allowed)}.",
            code="invalid_purpose",
            param="purpose",
        )
    return allowed[purpose]


def check_lifetime(seconds: int) -> int:
    """Raises InvalidRequest outside an hour to thirty days."""
    if not SHORTEST_LIFE <= seconds <= LONGEST_LIFE:
        raise InvalidRequest(
            f"expires_after[seconds] must lie between {SHORTEST_LIFE} and {LONGEST_LIFE}, found {seconds}.",
            code="invalid_value",
            param="expires_after.seconds",
        )
    return seconds


def clean_filename(name: str) -> str:
    """A name to show, never a path: the last part, without control characters, at most 255 bytes of UTF-8."""
    last = name.replace("\\", "/").rpartition("/")[2]
    text = "".join(c for c in last if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")).strip()
    stem, dot, ending = text.rpartition(".")
    tail = dot + ending if stem and len(ending) <= 16 else ""
    body = (stem if tail else text).encode("utf-8")[: LONGEST_NAME - len(tail.encode("utf-8"))]
    return (body.decode("utf-8", "ignore") + tail).strip(". ") or "upload"


def stored_problems(ctx: Context, file: File) -> list[dict[str, Any]]:
    """The first errors of a file's stored report, as plain dicts: line, path, code, message, remedy."""
    report = msgspec.json.decode(ctx.objects.get(report_key(file.id)))
    return [problem for problem in report["problems"] if problem["severity"] == "error"][:SHOWN_PROBLEMS]


def local_bytes(ctx: Context, file: File) -> Path:
    """A path at which the file's bytes can be read."""
    return ctx.objects.local_path(content_key(file.sha256), ctx.home / CACHE)


def _validated(ctx: Context, file: File) -> File:
    """Validate bytes that lie in their place, and record the file. What is not for training has no report."""
    if file.purpose is not FilePurpose.FINE_TUNE:
        known = replace(file, status=FileStatus.PROCESSED)
        _insert(ctx, known)
        return known
    report = check_file(local_bytes(ctx, file))
    ctx.objects.put(report_key(file.id), report_to_json(report))
    details = _what_is_wrong(report)
    known = replace(
        file,
        status=FileStatus.ERROR if details else FileStatus.PROCESSED,
        status_details=details,
        examples=report.statistics.examples,
    )
    _insert(ctx, known)
    return known


class _Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is being recorded or deleted."""

    project_id: str
    sha256: str


def _note(ctx: Context, file: File) -> None:
    body = _Pending(project_id=file.project_id, sha256=file.sha256)
    ctx.objects.put(pending_key(file.id), msgspec.json.encode(body))


def _settle(ctx: Context, file_id: str, pending: _Pending) -> None:
    """Of a file that is not recorded, remove everything; of one that is, nothing. Its note goes either way."""
    with ctx.database.transaction() as tx:
        kept = store.get_file(tx, pending.project_id, file_id) is not None
        # Inside the transaction, so that an upload of the same bytes cannot be recorded in between.
        if not store.digest_in_use(tx, pending.sha256):
            ctx.objects.delete(content_key(pending.sha256))
            ctx.objects.forget(content_key(pending.sha256), ctx.home / CACHE)
            forget_rows(ctx.home / "cache", pending.sha256)
    if not kept:
        # Of a file that fed no job nothing stays; of one that did, the digests of its rows.
        fed = fed_by(ctx, pending.project_id, file_id).jobs
        traces = () if fed else (traces_key(pending.project_id, file_id),)
        for key in (report_key(file_id), insights_key(file_id), lineage_key(file_id), *traces):
            with suppress(SmedjeError):
                ctx.objects.delete(key)
    ctx.objects.delete(pending_key(file_id))


def _what_is_wrong(report: Report) -> str | None:
    """The first errors in words, None for a file that may be used. Too few rows matter for training files only, and
    an upload does not say which it is, so that is left to the job."""
    errors = [one for one in report.problems if one.severity == "error" and one.code != "invalid_n_examples"]
    if not errors:
        return None
    shown = " ".join(f"Line {one.line}: {one.message} {one.remedy}" for one in errors[:SHOWN_PROBLEMS])
    more = report.statistics.errors - len(errors[:SHOWN_PROBLEMS])
    return shown + (f" And {more} more." if more > 0 else "")


def _insert(ctx: Context, file: File) -> None:
    with ctx.database.transaction() as tx:
        # Asked for the lock that it takes: nobody can delete these bytes between the look and the record.
        store.digest_in_use(tx, file.sha256)
        if not ctx.objects.exists(content_key(file.sha256)):
            raise Unavailable("A file with the same content was deleted at the same moment. Upload it again.")
        check_room(ctx, tx, file.project_id, Limit.STORED_BYTES, file.bytes)
        store.insert_file(tx, file)
        record_in(ctx, tx, "file.created", file.project_id, file.id)


def _known_purpose(purpose: str) -> FilePurpose:
    known = {one.value: one for one in FilePurpose}
    if purpose not in known:
        raise InvalidRequest(
            f"There are no files with the purpose {purpose[:60]!r}. Known purposes: {', '.join(known)}.",
            code="invalid_purpose",
            param="purpose",
        )
    return known[purpose]
