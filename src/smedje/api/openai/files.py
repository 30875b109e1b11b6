"""Files on the wire: a streamed multipart upload, lists, content and deletion, in OpenAI's shapes."""

from typing import Annotated, Literal

import anyio
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from smedje.api.auth import CanReadFiles, CanWriteFiles
from smedje.api.bodies import Absent
from smedje.api.multipart import FormReader, boundary_of
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using, context
from smedje.domain.files import File
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest
from smedje.services import files as service

# Room for the form around the file: boundaries, headers and the small fields.
FORM_BYTES = 64 * 1024
BODY_BYTES = service.LIMIT_BYTES + FORM_BYTES
PATH = "/v1/files"
WRITE_BYTES = 1024 * 1024
FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
LIST_QUERY = frozenset({"purpose", "limit", "after", "order"})
MULTIPART_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [one.value for one in service.UPLOAD_PURPOSES]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": service.SHORTEST_LIFE,
                            "maximum": service.LONGEST_LIFE,
                        },
                    },
                }
            }
        },
    }
}

router = APIRouter(prefix=PATH, tags=["files"])


class FileObject(BaseModel):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: Absent[int | None] = None
    filename: str
    purpose: str
    status: str
    status_details: Absent[str | None] = None


class FileDeleted(BaseModel):
    """OpenAI's answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def to_object(file: File) -> FileObject:
    """The wire form of a file."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose.value,
        status=file.status.value,
        status_details=file.status_details,
    )


@router.post("", openapi_extra=MULTIPART_SCHEMA)
async def create_file(caller: CanWriteFiles, request: Request) -> FileObject:
    """Upload a file. Its status is `processed` or `error` when this answers; the report says why."""
    form = FormReader(boundary_of(request.headers.get("content-type", "")))
    upload = await run_in_threadpool(service.Upload, context(request))
    try:
        await _receive(request, form, upload)
        return to_object(await run_in_threadpool(_finish, caller.project, form, upload))
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(upload.abort)
        raise


@router.get("")
def list_files(
    caller: CanReadFiles,
    ctx: Using,
    request: Request,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Page[FileObject]:
    """The project's files, newest first unless `order` is asc."""
    refuse_unknown_query(request, LIST_QUERY)
    found = service.list_files(ctx, caller.project, purpose=purpose, after=after, limit=limit + 1, order=order)
    return page(found, limit, to_object, lambda file: file.id)


@router.get("/{file_id}")
def get_file(caller: CanReadFiles, ctx: Using, file_id: str) -> FileObject:
    """One file."""
    return to_object(service.get_file(ctx, caller.project, file_id))


@router.delete("/{file_id}")
def delete_file(caller: CanWriteFiles, ctx: Using, file_id: str) -> FileDeleted:
    """Forget a file and, unless another file has the same, its bytes."""
    service.delete_file(ctx, caller.project, file_id)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=StreamingResponse)
def get_content(caller: CanReadFiles, ctx: Using, file_id: str) -> StreamingResponse:
    """The exact bytes that were uploaded."""
    file, pieces = service.read_file(ctx, caller.project, file_id)
    # Always a download: a browser must never take user data for a page of ours.
    headers = {"content-length": str(file.bytes), "content-disposition": "attachment"}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)


async def _receive(request: Request, form: FormReader, upload: service.Upload) -> None:
    """Pass the body through the form reader into the upload, about a mebibyte at a time, off the event loop."""
    waiting = bytearray()
    async for piece in request.stream():
        waiting += piece
        if len(waiting) >= WRITE_BYTES:
            await run_in_threadpool(_pass_on, form, upload, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(_pass_on, form, upload, bytes(waiting))
    form.end()


def _pass_on(form: FormReader, upload: service.Upload, data: bytes) -> None:
    form.write(data)
    if taken := form.take():
        upload.write(taken)


def _finish(project: Project, form: FormReader, upload: service.Upload) -> File:
    for name in form.fields.keys() - FIELDS:
        raise InvalidRequest(f"The field {name[:60]!r} is not known here.", code="unknown_field", param=name[:60])
    if "purpose" not in form.fields:
        raise InvalidRequest("The field 'purpose' is required; use fine-tune.", code="missing_field", param="purpose")
    assert form.filename is not None, "the form was checked at its end"
    lifetime = _lifetime(form.fields)
    return upload.finish(
        project, service.FileForm(filename=form.filename, purpose=form.fields["purpose"], lifetime=lifetime)
    )


def _lifetime(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at" or seconds is None or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 9:
        raise InvalidRequest(
            "expires_after needs the anchor created_at and a whole number of seconds.",
            code="invalid_value",
            param="expires_after",
        )
    return int(seconds)
