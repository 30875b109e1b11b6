"""New files from old ones - mended, split, imported - and where each came from. Nothing is ever changed in place.

A lineage is an object beside the file. Knows files of a project; the work itself is in smedje.data.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from smedje.data.diff import LineDiff, diff_lines
from smedje.data.import_rows import check_mapping
from smedje.data.importers import import_rows, plan_import, take_rows
from smedje.data.parts import check_shares, split_file, write_parts
from smedje.data.remedies import advised
from smedje.data.repair import Beside, Change, check_steps, repair_file
from smedje.domain.files import File, FilePurpose, lineage_key, report_key
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest, NotFound
from smedje.services import files as file_service
from smedje.services import outbound
from smedje.services.context import Context
from smedje.services.insights import read_insights, token_limit, tokenizer, training_file
from smedje.store import cascade
from smedje.store import files as file_rows

DOWNLOAD_SECONDS = 600.0


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """How a file was made. parent: the file it was made from, which may be gone since; sha256: of its bytes.

    kind: repair, split, import or download (then the parent is empty and parent_filename the URL). steps, seed: of a
    repair; a split's seed too. dropped, changed: lines of each step, or rows dropped by reason. changes: a repair's
    first thousand, with lines of the parent. account: what else the kind has to tell.
    """

    parent: str
    parent_filename: str
    parent_sha256: str
    created_at: int
    summary: str = ""
    steps: tuple[str, ...] = ()
    seed: int = 0
    lines_read: int = 0
    lines_written: int = 0
    dropped: dict[str, int] = {}
    changed: dict[str, int] = {}
    changes: tuple[Change, ...] = ()
    kind: str = "repair"
    account: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class RepairAsk:
    """Which steps to do; advised: every step that the report speaks for. against, model: see `repair.Beside`."""

    steps: tuple[str, ...] = ()
    advised: bool = False
    seed: int = 0
    against: str | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImportAsk:
    """What the rows are: a format of `importers.FORMATS`, and columns by role. filename: of the new file."""

    form: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    filename: str | None = None


def repair(ctx: Context, project: Project, file_id: str, ask: RepairAsk) -> tuple[File, Lineage]:
    """A mended copy with its lineage. The old file stays. Raises NotFound; InvalidRequest."""
    file = training_file(ctx, project, file_id)
    beside = Beside(
        against=None if ask.against is None else _path(ctx, training_file(ctx, project, ask.against)),
        tokenizer=None if ask.model is None else tokenizer(ctx, ask.model),
        max_tokens=None if ask.model is None else token_limit(ask.model),
    )
    more = _advised(ctx, project, file) if ask.advised else []
    steps = check_steps([*ask.steps, *more], beside)

    with _taking(ctx) as taking:
        done = repair_file(_path(ctx, file), taking.write, steps=steps, seed=ask.seed, beside=beside)
        made = _finished(taking, project, _next_name(file.filename, "repaired"), done.summary)
    lineage = replace(
        _lineage(ctx, file),
        summary=done.summary,
        steps=steps,
        seed=ask.seed,
        lines_read=done.lines_read,
        lines_written=done.lines_written,
        dropped=dict(done.dropped),
        changed=dict(done.changed),
        changes=done.changes,
        account={"against": ask.against} if ask.against else {},
    )
    return made, _keep(ctx, made, lineage)


def split(
    ctx: Context, project: Project, file_id: str, *, shares: str, seed: int
) -> tuple[dict[str, tuple[File, Lineage]], bool]:
    """The file's parts by name, and whether labels decided; all of them or none. Raises NotFound; InvalidRequest."""
    file, wanted = training_file(ctx, project, file_id), check_shares(shares)
    parts = split_file(_path(ctx, file), wanted, seed=seed)
    if empty := [name for name, lines in parts.lines.items() if not lines]:
        raise InvalidRequest(f"The part {empty[0]} would be empty. Choose other shares.", code="nothing_left")
    total = sum(map(len, parts.lines.values()))
    with ExitStack() as stack:
        takers = {name: stack.enter_context(_taking(ctx)) for name in parts.lines}
        write_parts(_path(ctx, file), parts, {name: taker.write for name, taker in takers.items()})
        made: dict[str, tuple[File, Lineage]] = {}
        for name, taker in takers.items():
            new = _finished(taker, project, _next_name(file.filename, name), "")
            lineage = replace(
                _lineage(ctx, file),
                kind="split",
                seed=seed,
                lines_read=total,
                lines_written=len(parts.lines[name]),
                summary=f"The part {name} of {shares} of {file.filename}.",
                account={"part": name, "shares": shares, "by_label": parts.by_label},
            )
            made[name] = (new, _keep(ctx, new, lineage))
    return made, parts.by_label


def import_file(ctx: Context, project: Project, file_id: str, ask: ImportAsk) -> tuple[File, Lineage]:
    """A training file from a file of another format. Raises NotFound; InvalidRequest when no row can be kept."""
    file = file_service.get_file(ctx, project, file_id)
    if file.purpose is FilePurpose.FINE_TUNE_RESULTS:
        raise NotFound(f"{file_id} holds results; there is nothing to import.", code="file_not_found", param="id")
    plan = plan_import(_path(ctx, file), form=ask.form, columns=check_mapping(ask.columns), name=file.filename)
    name = ask.filename or _next_name(file.filename, "imported", ending=".jsonl")
    with _taking(ctx) as taking:
        done = import_rows(take_rows(plan), taking.write)
        made = _finished(taking, project, name, done.summary)
    lineage = replace(
        _lineage(ctx, file),
        kind="import",
        summary=done.summary,
        lines_read=done.rows,
        lines_written=done.kept,
        dropped=dict(done.reasons),
        account={**asdict(done), "format": ask.form, "columns": dict(ask.columns)},
    )
    return made, _keep(ctx, made, lineage)


def download(ctx: Context, project: Project, url: str, *, filename: str | None = None) -> File:
    """What lies at a URL, as a file of the purpose user_data. Raises what `outbound.fetch` raises; TooLarge."""
    bounds = outbound.Bounds(bytes=file_service.LIMIT_BYTES, seconds=DOWNLOAD_SECONDS)
    with _taking(ctx) as taking:
        fetched = outbound.fetch(ctx.outbound, url, taking, bounds)
        name = filename or fetched.url.partition("?")[0].rstrip("/").rpartition("/")[2] or "download"
        made = taking.finish(project, file_service.FileForm(filename=name, purpose=FilePurpose.USER_DATA.value))
    lineage = Lineage(
        parent="",
        parent_filename=url,
        parent_sha256=made.sha256,
        created_at=ctx.seconds(),
        summary=f"Downloaded, {fetched.bytes} bytes.",
        kind="download",
        account={"content_type": fetched.content_type},
    )
    _keep(ctx, made, lineage)
    return made


def read_lineage(ctx: Context, project: Project, file_id: str) -> tuple[Lineage | None, list[str], list[str]]:
    """How the file was made, None for an upload; the files made from it; and the jobs that it was given to."""
    file = file_service.get_file(ctx, project, file_id)
    with ctx.database.transaction() as tx:
        jobs = cascade.jobs_of(tx, project.id)
        files = file_rows.list_files(tx, project.id, limit=len(jobs) + 10_000, order="asc")
    used = [job.id for job in reversed(jobs) if file.id in (job.request.training_file, job.request.validation_file)]
    children = [one.id for one in files if (made := lineage_of(ctx, one.id)) is not None and made.parent == file.id]
    return lineage_of(ctx, file.id), children, used


def lineage_of(ctx: Context, file_id: str) -> Lineage | None:
    """How a file was made, None when that was not kept."""
    try:
        return msgspec.json.decode(ctx.objects.get(lineage_key(file_id)), type=Lineage)
    except NotFound:
        return None


def read_diff(ctx: Context, project: Project, file_id: str, *, after: int, limit: int) -> tuple[list[LineDiff], bool]:
    """What the repair that made a file changed: at most `limit` lines behind `after`, and whether more follow.

    Raises NotFound for a file that no repair made, or whose parent was deleted.
    """
    file, made_from = file_service.get_file(ctx, project, file_id), lineage_of(ctx, file_id)
    if made_from is None or made_from.kind != "repair":
        raise NotFound(f"{file_id} was not made by a repair.", code="lineage_not_found", param="id")
    parent = training_file(ctx, project, made_from.parent)
    found = diff_lines(_path(ctx, parent), _path(ctx, file), made_from.changes)
    lines = list(islice((one for one in found if one.line > after), limit + 1))
    return lines[:limit], len(lines) > limit


@contextmanager
def _taking(ctx: Context) -> Iterator[file_service.Upload]:
    """Bytes on their way into a file, of which nothing stays unless it is finished."""
    taking = file_service.Upload(ctx)
    try:
        yield taking
    finally:
        taking.abort()


def _finished(taking: file_service.Upload, project: Project, name: str, told: str) -> File:
    """The training file. told: what happened, for the InvalidRequest when nothing is left."""
    if taking.bytes == 0:
        raise InvalidRequest(f"Not one line would be left. {told}".strip(), code="nothing_left")
    return taking.finish(project, file_service.FileForm(filename=name, purpose=FilePurpose.FINE_TUNE.value))


def _lineage(ctx: Context, parent: File) -> Lineage:
    return Lineage(
        parent=parent.id, parent_filename=parent.filename, parent_sha256=parent.sha256, created_at=ctx.seconds()
    )


def _keep(ctx: Context, made: File, lineage: Lineage) -> Lineage:
    ctx.objects.put(lineage_key(made.id), msgspec.json.encode(lineage))
    return lineage


def _advised(ctx: Context, project: Project, file: File) -> list[str]:
    problems = msgspec.json.decode(ctx.objects.get(report_key(file.id)))["problems"]
    insights = msgspec.json.decode(read_insights(ctx, project, file.id))
    return advised({"problems": problems, "insights": insights})


def _path(ctx: Context, file: File) -> Path:
    return file_service.local_bytes(ctx, file)


def _next_name(name: str, word: str, *, ending: str = "") -> str:
    """train.jsonl, train.repaired-1.jsonl, train.repaired-2.jsonl; train.validation-1.jsonl."""
    stem, dot, last = name.rpartition(".")
    body, tail = (stem, dot + last) if dot else (last, "")
    first, mark, number = body.rpartition(f".{word}-")
    times = int(number) + 1 if mark and number.isdecimal() else 1
    return f"{first if times > 1 else body}.{word}-{times}{ending or tail}"
