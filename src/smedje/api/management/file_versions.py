"""New files from old ones on the wire: repair, split, import, download; what a repair changed, and lineage."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadFiles, CanWriteFiles
from smedje.api.bodies import Body
from smedje.api.openai.files import FileObject, to_object
from smedje.api.state import Using
from smedje.domain.files import File
from smedje.services import traces
from smedje.services import versions as service

router = APIRouter(prefix="/api/files", tags=["files"])


class RepairBody(Body):
    """Which steps to do; docs/data-report.md lists them. advised: every step that the report speaks for.

    seed: decides what rebalancing keeps. against: a file, for drop_leaks. model: a base model, for drop_too_long.
    """

    steps: Annotated[list[str], Field(default_factory=list, max_length=32)]
    advised: bool = False
    seed: int = 0
    against: str | None = None
    model: str | None = None


class SplitBody(Body):
    """shares: 80/20 or 80/10/10. seed: the same seed gives the same parts."""

    shares: Annotated[str, Field(max_length=40)] = "80/20"
    seed: int = 0


class ImportBody(Body):
    """format: auto or a name of docs/data-report.md. columns: role (user, assistant, system, messages) to column."""

    format: Annotated[str, Field(max_length=40)] = "auto"
    columns: Annotated[dict[str, str], Field(default_factory=dict)]
    filename: Annotated[str | None, Field(max_length=1000)] = None


class DownloadBody(Body):
    """url: https or http, to a place that SMEDJE_OUTBOUND_ALLOW allows. The rest as for an import."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    format: Annotated[str, Field(max_length=40)] = "auto"
    columns: Annotated[dict[str, str], Field(default_factory=dict)]
    filename: Annotated[str | None, Field(max_length=1000)] = None


class MadeObject(BaseModel):
    """A new file, and how it was made."""

    object: Literal["file.version"] = "file.version"
    file: FileObject
    made_from: dict[str, Any]


class SplitObject(BaseModel):
    """The parts by name. by_label: whether each part has its share of each label."""

    object: Literal["file.split"] = "file.split"
    by_label: bool
    parts: dict[str, MadeObject]


class LineageObject(BaseModel):
    """How a file was made: null for an upload. made_into: files made from it. used_in: jobs that were given it."""

    object: Literal["file.lineage"] = "file.lineage"
    id: str
    made_from: dict[str, Any] | None
    made_into: list[str]
    used_in: list[str]


class LineDiffObject(BaseModel):
    """A line (from 1) of the old file; after: null when it was dropped."""

    line: int
    steps: list[str]
    before: str
    after: str | None


class TraceBody(Body):
    """row: one whole line of a training file."""

    row: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class TraceObject(traces.Trace):
    """Files that have the row, jobs that were given one of them, and models and checkpoints that saw it."""

    object: Literal["file.trace"] = "file.trace"


class DiffObject(BaseModel):
    """Lines that a repair changed, in order."""

    object: Literal["list"] = "list"
    data: list[LineDiffObject]
    has_more: bool


@router.post("/{file_id}/repair")
def repair_file(caller: CanWriteFiles, ctx: Using, file_id: str, body: RepairBody) -> MadeObject:
    """Make a mended copy of a file. The file stays as it is."""
    ask = service.RepairAsk(
        steps=tuple(body.steps), advised=body.advised, seed=body.seed, against=body.against, model=body.model
    )
    return _made(*service.repair(ctx, caller.project, file_id, ask))


@router.post("/{file_id}/split")
def split_file(caller: CanWriteFiles, ctx: Using, file_id: str, body: SplitBody) -> SplitObject:
    """Make a file of each part. The file stays as it is."""
    parts, by_label = service.split(ctx, caller.project, file_id, shares=body.shares, seed=body.seed)
    return SplitObject(by_label=by_label, parts={name: _made(*part) for name, part in parts.items()})


@router.post("/{file_id}/import")
def import_file(caller: CanWriteFiles, ctx: Using, file_id: str, body: ImportBody) -> MadeObject:
    """Make a training file of a file in another format, with an account of every row."""
    ask = service.ImportAsk(form=body.format, columns=body.columns, filename=body.filename)
    return _made(*service.import_file(ctx, caller.project, file_id, ask))


@router.post("/import")
def import_url(caller: CanWriteFiles, ctx: Using, body: DownloadBody) -> MadeObject:
    """Download a file and make a training file of it; what was downloaded is kept beside it."""
    raw = service.download(ctx, caller.project, body.url)
    ask = service.ImportAsk(form=body.format, columns=body.columns, filename=body.filename)
    return _made(*service.import_file(ctx, caller.project, raw.id, ask))


@router.get("/{file_id}/diff")
def get_diff(
    caller: CanReadFiles,
    ctx: Using,
    file_id: str,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> DiffObject:
    """What the repair that made this file changed, line by line; after: the last line seen."""
    lines, more = service.read_diff(ctx, caller.project, file_id, after=after, limit=limit)
    return DiffObject(data=[LineDiffObject(**msgspec.to_builtins(one)) for one in lines], has_more=more)


@router.get("/{file_id}/rows/{row}/models")
def trace_line(caller: CanReadFiles, ctx: Using, file_id: str, row: Annotated[int, Path(ge=1)]) -> TraceObject:
    """Which models saw one line (from 1) of a file, whatever file they had it from."""
    return TraceObject(**vars(traces.trace_line(ctx, caller.project, file_id, row)))


@router.post("/trace")
def trace_row(caller: CanReadFiles, ctx: Using, body: TraceBody) -> TraceObject:
    """Which models saw a row that is given as its line of JSON."""
    return TraceObject(**vars(traces.trace_text(ctx, caller.project, body.row)))


@router.get("/{file_id}/lineage")
def get_lineage(caller: CanReadFiles, ctx: Using, file_id: str) -> LineageObject:
    """From which file this one was made and how, what was made of it, and which jobs were given it."""
    lineage, made_into, used = service.read_lineage(ctx, caller.project, file_id)
    made_from = None if lineage is None else msgspec.to_builtins(lineage)
    return LineageObject(id=file_id, made_from=made_from, made_into=made_into, used_in=used)


def _made(file: File, lineage: service.Lineage) -> MadeObject:
    return MadeObject(file=to_object(file), made_from=msgspec.to_builtins(lineage))
