"""Data reports on the wire: problems, insights, one line as training sees it, repair and lineage."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadFiles, CanWriteFiles
from smedje.api.bodies import Body
from smedje.api.openai.files import FileObject, to_object
from smedje.api.state import Using
from smedje.services import files as service
from smedje.services import insights as insight_service

router = APIRouter(prefix="/api/files", tags=["files"])


class RepairBody(Body):
    """Which steps to do; docs/data-report.md lists them. seed: decides what rebalancing keeps."""

    steps: Annotated[list[str], Field(max_length=32)]
    seed: int = 0


class LineageObject(BaseModel):
    """How a file was made: null for an upload. used_in: fine-tuning jobs that were given the file."""

    object: Literal["file.lineage"] = "file.lineage"
    id: str
    made_from: dict[str, Any] | None
    used_in: list[str]


class RepairObject(BaseModel):
    """A repair's new file and what happened to which line."""

    object: Literal["file.repair"] = "file.repair"
    file: FileObject
    made_from: dict[str, Any]


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


@router.get("/{file_id}/rows/{row}")
def get_row(caller: CanReadFiles, ctx: Using, file_id: str, row: Annotated[int, Path(ge=1)], model: str) -> Response:
    """One line (from 1) as training sees it: its tokens in the model's template, each with its weight."""
    view = insight_service.read_row(ctx, caller.project, file_id, row, model=model)
    return Response(msgspec.json.encode(view), media_type="application/json")


@router.post("/{file_id}/repair")
def repair_file(caller: CanWriteFiles, ctx: Using, file_id: str, body: RepairBody) -> RepairObject:
    """Make a mended copy of a file. The file stays as it is."""
    made, lineage = insight_service.repair(ctx, caller.project, file_id, steps=body.steps, seed=body.seed)
    return RepairObject(file=to_object(made), made_from=msgspec.to_builtins(lineage))


@router.get("/{file_id}/lineage")
def get_lineage(caller: CanReadFiles, ctx: Using, file_id: str) -> LineageObject:
    """From which file this one was made and how, and which jobs were given it."""
    lineage, used = insight_service.read_lineage(ctx, caller.project, file_id)
    made_from = None if lineage is None else msgspec.to_builtins(lineage)
    return LineageObject(id=file_id, made_from=made_from, used_in=used)
