"""Data reports on the wire: problems, insights, both as a page, and one line as training sees it."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Response

from smedje.api.auth import CanReadFiles
from smedje.api.state import Using
from smedje.services import files as service
from smedje.services import insights as insight_service

router = APIRouter(prefix="/api/files", tags=["files"])


@router.get("/{file_id}/report")
def get_report(caller: CanReadFiles, ctx: Using, file_id: str) -> Response:
    """Every problem of a training file (line, path, code, severity, message, remedy), statistics and a verdict."""
    return Response(service.read_report(ctx, caller.project, file_id), media_type="application/json")


@router.get("/{file_id}/insights")
def get_insights(
    caller: CanReadFiles, ctx: Using, file_id: str, model: str | None = None, validation_file: str | None = None
) -> Response:
    """What a training file is like: advice, findings, languages, labels, private data, bars (docs/data-report.md)."""
    found = insight_service.read_insights(ctx, caller.project, file_id, model=model, validation=validation_file)
    return Response(found, media_type="application/json")


@router.get("/{file_id}/page")
def get_page(
    caller: CanReadFiles, ctx: Using, file_id: str, model: str | None = None, validation_file: str | None = None
) -> Response:
    """Report and insights as one HTML page without scripts or links."""
    found = insight_service.read_page(ctx, caller.project, file_id, model=model, validation=validation_file)
    # A download: no browser may run user data, however escaped, as a page of this origin.
    headers = {"content-disposition": 'attachment; filename="report.html"'}
    return Response(found, media_type="text/html", headers=headers)


@router.get("/{file_id}/rows/{row}")
def get_row(caller: CanReadFiles, ctx: Using, file_id: str, row: Annotated[int, Path(ge=1)], model: str) -> Response:
    """One line (from 1) as training sees it: its tokens in the model's template, each with its weight."""
    view = insight_service.read_row(ctx, caller.project, file_id, row, model=model)
    return Response(msgspec.json.encode(view), media_type="application/json")
