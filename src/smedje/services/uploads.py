"""Large files in parts: created, filled in any order and in parallel, then completed into one file, or cancelled.

Knows nothing of HTTP or forms; where an upload's objects lie is in upload_records.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import msgspec

from smedje.domain.files import File
from smedje.domain.ids import is_id, new_id
from smedje.domain.projects import Project
from smedje.domain.quotas import Limit
from smedje.errors import Conflict, InvalidRequest, NotFound, SmedjeError, TooLarge
from smedje.services import files as file_service
from smedje.services.context import Context
from smedje.services.quotas import check_room
from smedje.services.upload_records import (
    UploadRecord,
    UploadStatus,
    completing_key,
    held_uploads,
    part_bytes,
    parts_prefix,
    read_record,
    record_key,
    save_record,
)

UPLOAD = "upload_"
PART = "part_"
PART_BYTES = 64 * 1024 * 1024
LIMIT_BYTES = 8 * 1024 * 1024 * 1024
LIFE_SECONDS = 3600
# Small enough that a server's memory does not show which files it joins.
PIECE_BYTES = 256 * 1024
MOST_PARTS = 10_000
# A part whose answer was lost is sent again, so more may lie there than was promised; not without end.
MOST_TIMES = 2


class UploadPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of an upload, whole in object storage."""

    id: str
    upload_id: str
    created_at: int


class PartWriter:
    """The bytes of one part on their way in. Ends with `finish` or `abort`; an abandoned one leaves nothing."""

    def __init__(self, ctx: Context, project: Project, upload_id: str) -> None:
        """Raises NotFound for a foreign upload and Conflict for one that takes no more parts."""
        _pending(ctx, project, upload_id)
        self._ctx = ctx
        self._project = project
        self._part = UploadPart(id=new_id(PART), upload_id=upload_id, created_at=ctx.seconds())
        self._bytes = 0
        self._open = ExitStack()
        self._out = self._open.enter_context(ctx.objects.writer(_part_key(upload_id, self._part.id)))

    def write(self, data: bytes) -> None:
        """Append. Raises TooLarge above 64 MiB."""
        self._bytes += len(data)
        if self._bytes > PART_BYTES:
            raise TooLarge(
                f"A part may have at most {PART_BYTES // 2**20} MiB. Send more and smaller parts.",
                code="part_too_large",
                param="data",
            )
        self._out.write(data)

    def abort(self) -> None:
        """Drop everything. Harmless after `finish`."""
        self._open.__exit__(file_service.Abandoned, file_service.Abandoned(), None)

    def finish(self) -> UploadPart:
        """The part, whole in storage.

        Raises InvalidRequest for an empty one or one too many, Conflict when the upload has ended.
        """
        if self._bytes == 0:
            self.abort()
            raise InvalidRequest("The part is empty.", code="empty_part", param="data")
        self._open.close()
        upload_id = self._part.upload_id
        try:
            record = _pending(self._ctx, self._project, upload_id)
            found = part_bytes(self._ctx, upload_id)
            if found > MOST_TIMES * record.bytes:
                raise InvalidRequest(
                    f"With this part {upload_id} would hold {found} bytes; it was created for {record.bytes}. "
                    "Complete it, or cancel it and create a new one.",
                    code="upload_size_mismatch",
                    param="data",
                )
        except SmedjeError:
            self._ctx.objects.delete(_part_key(upload_id, self._part.id))
            raise
        return self._part


def create_upload(
    ctx: Context, project: Project, form: file_service.FileForm, *, size: int, mime_type: str
) -> UploadRecord:
    """A pending upload of `size` bytes that lives for an hour.

    Raises InvalidRequest; TooLarge above 8 GiB; LimitExceeded when the project may not store so much.
    """
    sweep_uploads(ctx)
    if not 1 <= size <= LIMIT_BYTES:
        raise TooLarge(
            f"An upload may have 1 to {LIMIT_BYTES} bytes, found {size}.", code="file_too_large", param="bytes"
        )
    now = ctx.seconds()
    record = UploadRecord(
        id=new_id(UPLOAD),
        project_id=project.id,
        filename=file_service.clean_filename(form.filename),
        purpose=file_service.check_purpose(form.purpose).value,
        bytes=size,
        mime_type=mime_type,
        created_at=now,
        expires_at=now + LIFE_SECONDS,
        lifetime=None if form.lifetime is None else file_service.check_lifetime(form.lifetime),
    )
    with ctx.database.transaction() as tx:
        check_room(ctx, tx, project.id, Limit.STORED_BYTES, size)
        # Inside, so that the next one to ask counts this one.
        save_record(ctx, record)
    return record


def complete_upload(
    ctx: Context, project: Project, upload_id: str, *, part_ids: Sequence[str], md5: str | None = None
) -> tuple[UploadRecord, File]:
    """Join the parts in the order of `part_ids` into a file, and check it like any other.

    Raises InvalidRequest when a part is unknown, the sizes do not add up or the MD5 differs; the upload stays pending
    then. Raises Conflict when it is not pending, or is being completed by another call.
    """
    record = _pending(ctx, project, upload_id)
    if not part_ids or len(part_ids) > MOST_PARTS:
        raise InvalidRequest(f"Name 1 to {MOST_PARTS} parts in part_ids.", code="invalid_parts", param="part_ids")
    mark = completing_key(upload_id)
    try:
        ctx.objects.put(mark, b"", create_only=True)
    except Conflict as error:
        raise Conflict(f"{upload_id} is being completed already.", code="upload_not_pending") from error
    try:
        file = _join(ctx, project, record, part_ids, md5)
        done = msgspec.structs.replace(record, status=UploadStatus.COMPLETED, file_id=file.id)
        save_record(ctx, done)
    finally:
        ctx.objects.delete(mark)
    ctx.objects.delete_prefix(parts_prefix(upload_id))
    return done, file


def cancel_upload(ctx: Context, project: Project, upload_id: str) -> UploadRecord:
    """End an upload; its parts go. Raises NotFound; Conflict when it is not pending."""
    record = msgspec.structs.replace(_pending(ctx, project, upload_id), status=UploadStatus.CANCELLED)
    save_record(ctx, record)
    ctx.objects.delete_prefix(parts_prefix(upload_id))
    return record


def sweep_uploads(ctx: Context) -> int:
    """Remove uploads whose hour is over, and parts of ended ones that a killed server left; returns how many."""
    swept = 0
    for held in held_uploads(ctx):
        over = held.record.expires_at <= ctx.now()
        if over or (held.record.status is not UploadStatus.PENDING and held.part_bytes):
            prefix = record_key(held.record.id).rpartition("/")[0] if over else parts_prefix(held.record.id)
            ctx.objects.delete_prefix(prefix)
            swept += 1
    return swept


def _join(ctx: Context, project: Project, record: UploadRecord, part_ids: Sequence[str], md5: str | None) -> File:
    keys = [_known_part(ctx, record.id, part_id) for part_id in part_ids]
    taking = file_service.Upload(ctx, limit=LIMIT_BYTES)
    try:
        digest = hashlib.md5(usedforsecurity=False)
        for piece in _pieces(ctx, keys):
            taking.write(piece)
            digest.update(piece)
        if taking.bytes != record.bytes:
            raise InvalidRequest(
                f"The parts add up to {taking.bytes} bytes; the upload was created for {record.bytes}.",
                code="upload_size_mismatch",
                param="part_ids",
            )
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise InvalidRequest(
                f"The parts have the MD5 {digest.hexdigest()}, not {md5[:32]}. Name them in order, or send them anew.",
                code="md5_mismatch",
                param="md5",
            )
        form = file_service.FileForm(filename=record.filename, purpose=record.purpose, lifetime=record.lifetime)
        return taking.finish(project, form)
    except BaseException:
        taking.abort()
        raise


def _pieces(ctx: Context, keys: Sequence[str]) -> Iterator[bytes]:
    for key in keys:
        yield from ctx.objects.iter_bytes(key, PIECE_BYTES)


def _known_part(ctx: Context, upload_id: str, part_id: str) -> str:
    if not is_id(part_id, PART) or not ctx.objects.exists(_part_key(upload_id, part_id)):
        raise InvalidRequest(f"{upload_id} has no part {part_id[:60]!r}.", code="invalid_parts", param="part_ids")
    return _part_key(upload_id, part_id)


def _pending(ctx: Context, project: Project, upload_id: str) -> UploadRecord:
    missing = NotFound(f"No such Upload object: {upload_id[:60]}", code="upload_not_found", param="upload_id")
    if not is_id(upload_id, UPLOAD):
        raise missing
    try:
        record = read_record(ctx, upload_id)
    except NotFound:
        raise missing from None
    if record.project_id != project.id:
        raise missing
    status = record.status
    if status is UploadStatus.PENDING and record.expires_at <= ctx.now():
        status = UploadStatus.EXPIRED
    if status is not UploadStatus.PENDING:
        raise Conflict(f"{upload_id} is {status.value}; create a new upload.", code="upload_not_pending")
    return record


def _part_key(upload_id: str, part_id: str) -> str:
    return f"{parts_prefix(upload_id)}/{part_id}"
