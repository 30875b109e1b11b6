"""Uploads on the wire: a large file in parts of up to 64 MiB, in OpenAI's shapes."""

from typing import Annotated, Literal

import anyio
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from smedje.api.auth import CanWriteFiles
from smedje.api.bodies import Absent, Body
from smedje.api.multipart import FormReader, boundary_of
from smedje.api.openai.files import FileObject, to_object
from smedje.api.state import Using, context
from smedje.api.uploads import FORM_BYTES, receive_form
from smedje.domain.files import File
from smedje.errors import InvalidRequest
from smedje.services import uploads as service
from smedje.services.files import FileForm
from smedje.services.upload_records import UploadRecord

PATH = "/v1/uploads"
PART_PATH = "/v1/uploads/*/parts"
PART_BODY_BYTES = service.PART_BYTES + FORM_BYTES
PART_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}

router = APIRouter(prefix=PATH, tags=["files"])


class Expiry(Body):
    """When the file expires, counted from its making."""

    anchor: Literal["created_at"]
    seconds: int


class UploadBody(Body):
    """What is to be uploaded. bytes: the size of the whole file."""

    filename: Annotated[str, Field(min_length=1, max_length=1000)]
    purpose: str
    bytes: Annotated[int, Field(strict=True)]
    mime_type: Annotated[str, Field(max_length=255)]
    expires_after: Expiry | None = None


class CompleteBody(Body):
    """The parts in the order of the file. md5: of the whole file, in hexadecimal."""

    part_ids: list[str]
    md5: str | None = None


class UploadObject(BaseModel):
    """OpenAI's upload object; a completed one carries its file."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: Absent[FileObject | None] = None


class UploadPartObject(BaseModel):
    """OpenAI's upload part."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    upload_id: str
    created_at: int


@router.post("")
def create_upload(caller: CanWriteFiles, ctx: Using, body: UploadBody) -> UploadObject:
    """Begin an upload of up to 8 GiB. It lives for an hour."""
    lifetime = None if body.expires_after is None else body.expires_after.seconds
    form = FileForm(filename=body.filename, purpose=body.purpose, lifetime=lifetime)
    record = service.create_upload(ctx, caller.project, form, size=body.bytes, mime_type=body.mime_type)
    return _to_object(record)


@router.post("/{upload_id}/parts", openapi_extra=PART_SCHEMA)
async def create_part(caller: CanWriteFiles, upload_id: str, request: Request) -> UploadPartObject:
    """Add a part, up to 64 MiB; parts may come in any order and at the same time."""
    form = FormReader(boundary_of(request.headers.get("content-type", "")), file_part="data")
    writer = await run_in_threadpool(service.PartWriter, context(request), caller.project, upload_id)
    try:
        await receive_form(request, form, writer)
        part = await run_in_threadpool(_finish, form, writer)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(writer.abort)
        raise
    return UploadPartObject(id=part.id, upload_id=part.upload_id, created_at=part.created_at)


@router.post("/{upload_id}/complete")
def complete_upload(caller: CanWriteFiles, ctx: Using, upload_id: str, body: CompleteBody) -> UploadObject:
    """Join the parts into a file, which is checked like any other."""
    record, file = service.complete_upload(ctx, caller.project, upload_id, part_ids=body.part_ids, md5=body.md5)
    return _to_object(record, file)


@router.post("/{upload_id}/cancel")
def cancel_upload(caller: CanWriteFiles, ctx: Using, upload_id: str) -> UploadObject:
    """End an upload; its parts are removed."""
    return _to_object(service.cancel_upload(ctx, caller.project, upload_id))


def _finish(form: FormReader, writer: service.PartWriter) -> service.UploadPart:
    for name in form.fields:
        raise InvalidRequest(f"The field {name[:60]!r} is not known here.", code="unknown_field", param=name[:60])
    return writer.finish()


def _to_object(record: UploadRecord, file: File | None = None) -> UploadObject:
    return UploadObject(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose,
        status=record.status.value,
        file=None if file is None else to_object(file),
    )
