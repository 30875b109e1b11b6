"""What is kept of an upload in parts: objects alone, `uploads/<id>/...`, a record and each part under its id.

Knows the objects and what they hold of a project's room; knows nothing of how an upload goes on.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import msgspec

from smedje.errors import NotFound
from smedje.services.context import Context

FOLDER = "uploads"


class UploadStatus(StrEnum):
    """OpenAI's states of an upload. Only a pending one takes parts."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class UploadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One upload. bytes: what the parts must add up to. lifetime: of the file, in seconds from its making."""

    id: str
    project_id: str
    filename: str
    purpose: str
    bytes: Annotated[int, msgspec.Meta(ge=1)]
    mime_type: str
    created_at: int
    expires_at: int
    status: UploadStatus = UploadStatus.PENDING
    lifetime: int | None = None
    file_id: str | None = None


class HeldUpload(msgspec.Struct, frozen=True, kw_only=True):
    """A record with what lies beside it. part_bytes: of all parts. completing: whether they are being joined."""

    record: UploadRecord
    part_bytes: int
    completing: bool


def record_key(upload_id: str) -> str:
    """Where an upload's record lies."""
    return f"{FOLDER}/{upload_id}/record.json"


def parts_prefix(upload_id: str) -> str:
    """Below which an upload's parts lie."""
    return f"{FOLDER}/{upload_id}/parts"


def completing_key(upload_id: str) -> str:
    """The mark of a call that is joining the parts; only one can set it."""
    return f"{FOLDER}/{upload_id}/completing"


def read_record(ctx: Context, upload_id: str) -> UploadRecord:
    """Raises NotFound."""
    return msgspec.json.decode(ctx.objects.get(record_key(upload_id)), type=UploadRecord)


def save_record(ctx: Context, record: UploadRecord) -> None:
    """Write the record in the place of the one before."""
    ctx.objects.put(record_key(record.id), msgspec.json.encode(record))


def part_bytes(ctx: Context, upload_id: str) -> int:
    """The bytes of an upload's parts."""
    return sum(found.size for found in ctx.objects.list(parts_prefix(upload_id)))


def held_uploads(ctx: Context) -> Iterator[HeldUpload]:
    """Every upload that has a record."""
    sizes: dict[str, int] = {}
    completing: set[str] = set()
    for found in ctx.objects.list(FOLDER):
        _, upload_id, rest = found.key.split("/", 2)
        sizes[upload_id] = sizes.get(upload_id, 0) + (found.size if rest.startswith("parts/") else 0)
        if rest == "completing":
            completing.add(upload_id)
    for upload_id, size in sizes.items():
        try:
            record = read_record(ctx, upload_id)
        except NotFound:
            continue
        yield HeldUpload(record=record, part_bytes=size, completing=upload_id in completing)


def promised_bytes(ctx: Context, project_id: str) -> int:
    """Bytes that the project's unfinished uploads hold or may come to hold.

    One that is being completed does not count: its file does, from the moment it is recorded.
    """
    return sum(
        max(held.record.bytes, held.part_bytes)
        for held in held_uploads(ctx)
        if held.record.project_id == project_id
        and held.record.status is UploadStatus.PENDING
        and held.record.expires_at > ctx.now()
        and not held.completing
    )
