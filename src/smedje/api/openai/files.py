"""Files on the wire: a streamed multipart upload, lists, content and deletion, in OpenAI's shapes."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from smedje.api.auth import CanReadFiles, CanWriteFiles
from smedje.api.bodies import Absent
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using
from smedje.api.uploads import MULTIPART_SCHEMA, receive_file
from smedje.domain.files import File
from smedje.services import files as service

PATH = "/v1/files"
LIST_QUERY = frozenset({"purpose", "limit", "after", "order"})

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


class FedObject(BaseModel):
    """What a deleted file was used for: fine-tuning jobs, and the models and checkpoints that were made of it."""

    jobs: list[str]
    models: list[str]


class FileDeleted(BaseModel):
    """OpenAI's answer to a deletion. smedje: what the file fed, left out when that is nothing."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True
    smedje: Absent[FedObject | None] = None


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
    return to_object(await receive_file(request, caller.project))


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
    fed = service.delete_file(ctx, caller.project, file_id)
    told = FedObject(jobs=list(fed.jobs), models=list(fed.models)) if fed.jobs else None
    return FileDeleted(id=file_id, smedje=told)


@router.get("/{file_id}/content", response_class=StreamingResponse)
def get_content(caller: CanReadFiles, ctx: Using, file_id: str) -> StreamingResponse:
    """The exact bytes that were uploaded."""
    file, pieces = service.read_file(ctx, caller.project, file_id)
    # Always a download: a browser must never take user data for a page of ours.
    headers = {"content-length": str(file.bytes), "content-disposition": "attachment"}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
