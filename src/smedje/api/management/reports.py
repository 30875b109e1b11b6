"""Data reports on the wire: the JSON that validation stored, unchanged."""

from fastapi import APIRouter, Response

from smedje.api.auth import CanReadFiles
from smedje.api.state import Using
from smedje.services import files as service

router = APIRouter(prefix="/api/files", tags=["files"])


@router.get("/{file_id}/report")
def get_report(caller: CanReadFiles, ctx: Using, file_id: str) -> Response:
    """Every problem of a training file (line, path, code, severity, message, remedy), statistics and a verdict."""
    return Response(service.read_report(ctx, caller.project, file_id), media_type="application/json")
