"""Which models saw a row, and what a file fed: rows by digest, files by job, jobs by model, models by the next job.

Digests of a file's rows are an object beside it, made when first asked for. They stay when a file that fed a job is
deleted, so that the question can still be answered; an erasure removes them. Knows no text: 8 bytes tell rows apart.
"""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from smedje.data.forms import Form, form_of, parse_item, read_items
from smedje.data.halves import scan_file
from smedje.data.labelled import looks_labelled
from smedje.data.lines import Line
from smedje.domain.files import File, FilePurpose, content_key, traces_key
from smedje.domain.jobs import FineTuningJob
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest, NotFound
from smedje.services.context import Context
from smedje.store import cascade
from smedje.store import files as file_rows

CACHE = "cache"
MANY = 1_000_000
SHOWN_LINES = 100


class Traces(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one file. digests: 8 bytes each, little-endian; lines: 4 bytes each, from 1."""

    filename: str
    sha256: str
    digests: bytes
    lines: bytes


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What a file was used for. jobs: newest first, as training or validation file. models: made of them, and of
    those."""

    jobs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A file with the row. lines: the first hundred. deleted: whether only its digests are left."""

    file_id: str
    filename: str
    lines: tuple[int, ...]
    deleted: bool


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A model or checkpoint that saw the row. job: that made it. used_as: training_file or validation_file, None when
    it only continues a model that saw it, which is `through`."""

    model: str
    job: str
    used_as: str | None
    through: str | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Where a row stands and what saw it. jobs: that were given a file with it, whether they made a model or not."""

    files: tuple[Holder, ...]
    jobs: tuple[str, ...]
    models: tuple[Sighting, ...]


def trace_line(ctx: Context, project: Project, file_id: str, line: int) -> Trace:
    """Which models saw line `line` (from 1) of a file. Raises NotFound; InvalidRequest for a line with errors."""
    with ctx.database.transaction() as tx:
        file = file_rows.get_file(tx, project.id, file_id)
    if file is None or file.purpose is not FilePurpose.FINE_TUNE:
        raise NotFound(f"No such File object: {file_id}", code="file_not_found", param="id")
    path = ctx.objects.local_path(content_key(file.sha256), ctx.home / CACHE)
    item = next((one for one in read_items(path) if one.line == line), None)
    if item is None:
        raise NotFound(f"The file has no line {line}.", code="row_not_found", param="row")
    if item.example is None:
        raise InvalidRequest(f"Line {line} is no example, so nothing was trained on it.", code="invalid_row")
    return _trace(ctx, project, item.digest)


def trace_text(ctx: Context, project: Project, text: str) -> Trace:
    """Which models saw a row that is given as its line of JSON. Raises InvalidRequest when it is no example."""
    raw = text.strip().encode("utf-8", "replace")
    for form in _forms(raw):
        item = parse_item(Line(1, raw), form)
        if item.example is not None:
            return _trace(ctx, project, item.digest)
    raise InvalidRequest(
        "The row is not one line of a training file. Give its whole JSON object.", code="invalid_row", param="row"
    )


def fed_by(ctx: Context, project_id: str, file_id: str) -> Fed:
    """The jobs and models of a file, also of one that was deleted."""
    with ctx.database.transaction() as tx:
        jobs, models = _made_of(tx, project_id, {file_id})
    return Fed(jobs=tuple(job.id for job in reversed(jobs)), models=tuple(dict.fromkeys(one.model for one in models)))


def keep_traces(ctx: Context, file: File) -> Fed:
    """Before a file is deleted: what it fed, with the digests of its rows kept when that is anything."""
    fed = fed_by(ctx, file.project_id, file.id)
    if fed.jobs and file.purpose is FilePurpose.FINE_TUNE:
        _traces(ctx, file)
    return fed


def _forms(raw: bytes) -> Iterator[Form]:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if looks_labelled(value):
        yield "classification"
    yield "preference" if isinstance(value, dict) and "input" in value else "chat"


def _trace(ctx: Context, project: Project, digest: int) -> Trace:
    with ctx.database.transaction() as tx:
        files = file_rows.list_files(tx, project.id, limit=MANY, order="asc")
    known = {file.id: _traces(ctx, file) for file in files if file.purpose is FilePurpose.FINE_TUNE}
    prefix = traces_key(project.id, "")
    for info in ctx.objects.list(prefix.rstrip("/")):
        file_id = info.key.removeprefix(prefix)
        if file_id not in known:
            known[file_id] = msgspec.msgpack.decode(ctx.objects.get(info.key), type=Traces)
    there = {file.id for file in files}
    holders = [
        Holder(file_id=file_id, filename=one.filename, lines=lines, deleted=file_id not in there)
        for file_id, one in known.items()
        if (lines := tuple(_lines(one, digest)))
    ]
    with ctx.database.transaction() as tx:
        jobs, models = _made_of(tx, project.id, {one.file_id for one in holders})
    given = [job.id for job in reversed(jobs)]
    return Trace(files=tuple(holders), jobs=tuple(given), models=tuple(models))


def _made_of(tx: Connection, project_id: str, file_ids: set[str]) -> tuple[list[FineTuningJob], list[Sighting]]:
    """The jobs that were given one of these files, oldest first; and what they made, with what was made of that."""
    jobs = cascade.jobs_of(tx, project_id)
    checkpoints: dict[str, list[str]] = {}
    for one in cascade.checkpoints_of(tx, project_id):
        checkpoints.setdefault(one.job_id, []).append(one.model_name)
    given = [job for job in jobs if _used_as(job, file_ids) is not None]
    direct = {job.id for job in given}
    models: list[Sighting] = []
    seen: set[str] = set()
    for job in jobs:  # oldest first, so that what a job continues was looked at before it
        through = job.request.model if job.request.model in seen else None
        if job.id not in direct and through is None:
            continue
        for name in filter(None, (job.fine_tuned_model, *checkpoints.get(job.id, ()))):
            seen.add(name)
            models.append(Sighting(model=name, job=job.id, used_as=_used_as(job, file_ids), through=through))
    return given, models


def _used_as(job: FineTuningJob, file_ids: set[str]) -> str | None:
    for field in ("training_file", "validation_file"):
        if getattr(job.request, field) in file_ids:
            return field
    return None


def _lines(traces: Traces, digest: int) -> Iterator[int]:
    wanted = digest.to_bytes(8, "little")
    numbers = array("I")
    numbers.frombytes(traces.lines)
    place, found = -1, 0
    while found < SHOWN_LINES and (place := traces.digests.find(wanted, place + 1)) >= 0:
        if place % 8 == 0:
            found += 1
            yield numbers[place // 8]


def _traces(ctx: Context, file: File) -> Traces:
    """The digests of a file's rows, made now if nobody has asked before."""
    key = traces_key(file.project_id, file.id)
    try:
        return msgspec.msgpack.decode(ctx.objects.get(key), type=Traces)
    except NotFound:
        pass
    path = ctx.objects.local_path(content_key(file.sha256), ctx.home / CACHE)
    form = form_of(path)
    numbers = array("I")
    if form == "chat":
        (segment,) = scan_file(path, path.stat().st_size, processes=1)
        digests, lines = segment.digests, segment.digest_lines
    else:
        items = [item for item in read_items(path, form) if item.example is not None]
        digests = b"".join(item.digest.to_bytes(8, "little") for item in items)
        numbers.extend(item.line for item in items)
        lines = numbers.tobytes()
    made = Traces(filename=file.filename, sha256=file.sha256, digests=digests, lines=lines)
    ctx.objects.put(key, msgspec.msgpack.encode(made))
    return made
