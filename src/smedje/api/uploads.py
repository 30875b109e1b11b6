"""A file as a streamed multipart upload, whatever dialect the route speaks. Knows the form; knows no answer's shape."""

from typing import Protocol

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from smedje.api.multipart import FormReader, boundary_of
from smedje.api.state import context
from smedje.domain.files import File
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest
from smedje.services import files as service

# Room for the form around the file: boundaries, headers and the small fields.
FORM_BYTES = 64 * 1024
BODY_BYTES = service.LIMIT_BYTES + FORM_BYTES
WRITE_BYTES = 128 * 1024
FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
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


async def receive_file(request: Request, project: Project) -> File:
    """Store the file that the request's form carries. Nothing stays behind when the form is wrong or breaks off.

    Raises InvalidRequest for a form or a field that is wrong, and what storage raises.
    """
    form = FormReader(boundary_of(request.headers.get("content-type", "")))
    upload = await run_in_threadpool(service.Upload, context(request))
    try:
        await receive_form(request, form, upload)
        return await run_in_threadpool(_finish, project, form, upload)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(upload.abort)
        raise


class Sink(Protocol):
    """What takes a form's file."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""


async def receive_form(request: Request, form: FormReader, upload: Sink) -> None:
    """Pass the body through the form reader into the upload, 128 KiB at a time, off the event loop."""
    waiting = bytearray()
    async for piece in request.stream():
        waiting += piece
        if len(waiting) >= WRITE_BYTES:
            await run_in_threadpool(_pass_on, form, upload, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(_pass_on, form, upload, bytes(waiting))
    form.end()


def _pass_on(form: FormReader, upload: Sink, data: bytes) -> None:
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
