"""What an uploaded file is like, one of its lines as training sees it, its repair, and where it came from.

Reports and lineages are objects beside the file's report. Knows files of a project; the judgements are in smedje.data.
"""

from dataclasses import replace

import msgspec

from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.data.counting import count_tokens
from smedje.data.insights import Insights, by_weight, find_leaks, insights_to_dict, look_at, with_token_bars
from smedje.data.repair import Change, Repair, check_steps, repair_file
from smedje.data.view import LineView, view_line
from smedje.domain.files import File, FilePurpose, insights_key, lineage_key
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest, NotFound
from smedje.modeling.folder import installed_folder
from smedje.services import files as file_service
from smedje.services.context import Context
from smedje.store import jobs as job_rows

JOBS_LOOKED_AT = 1000


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """How a file was made. parent: the file it was made from, which may be gone since; sha256: of its bytes.

    dropped, changed: lines of each step. changes: the first thousand, with lines of the parent.
    """

    parent: str
    parent_filename: str
    parent_sha256: str
    steps: tuple[str, ...]
    seed: int
    created_at: int
    summary: str
    lines_read: int
    lines_written: int
    dropped: dict[str, int]
    changed: dict[str, int]
    changes: tuple[Change, ...]


def read_insights(
    ctx: Context, project: Project, file_id: str, *, model: str | None = None, validation: str | None = None
) -> bytes:
    """What the file is like, as JSON. model: an installed base model for token bars; validation: look for leaks there.

    What needs neither is made once and kept. Raises NotFound for files that are not this project's.
    """
    file = _training_file(ctx, project, file_id)
    key, path = insights_key(file.id), file_service.local_bytes(ctx, file)
    try:
        insights = msgspec.json.decode(ctx.objects.get(key), type=Insights)
    except NotFound:
        insights = look_at(path)
        ctx.objects.put(key, msgspec.json.encode(insights))
    if validation is not None:
        other = _training_file(ctx, project, validation)
        leaks = find_leaks(path, file_service.local_bytes(ctx, other))
        insights = replace(insights, findings=by_weight([*insights.findings, *leaks]))
    if model is not None:
        insights = with_token_bars(insights, count_tokens(path, _tokenizer(ctx, model), max_tokens=None).statistics)
    return msgspec.json.encode(insights_to_dict(insights))


def read_row(ctx: Context, project: Project, file_id: str, row: int, *, model: str) -> LineView:
    """Line `row` (from 1) token by token. Raises NotFound; InvalidData when the line is no example."""
    file = _training_file(ctx, project, file_id)
    return view_line(file_service.local_bytes(ctx, file), row, _tokenizer(ctx, model))


def repair(ctx: Context, project: Project, file_id: str, *, steps: list[str], seed: int) -> tuple[File, Lineage]:
    """A new file from an old one, with its lineage. The old one stays. Raises NotFound; InvalidRequest."""
    file = _training_file(ctx, project, file_id)
    ordered = check_steps(steps)
    taking = file_service.Upload(ctx)
    try:
        done = repair_file(file_service.local_bytes(ctx, file), taking.write, steps=ordered, seed=seed)
        if done.lines_written == 0:
            raise InvalidRequest("These steps would leave no line. Choose fewer.", code="nothing_left", param="steps")
        form = file_service.FileForm(filename=_next_name(file.filename), purpose=file.purpose.value)
        made = taking.finish(project, form)
    except BaseException:
        taking.abort()
        raise
    lineage = _lineage(ctx, file, ordered, seed, done)
    ctx.objects.put(lineage_key(made.id), msgspec.json.encode(lineage))
    return made, lineage


def read_lineage(ctx: Context, project: Project, file_id: str) -> tuple[Lineage | None, list[str]]:
    """How the file was made, None for an upload; and the newest thousand jobs' ids among which it was used."""
    file = file_service.get_file(ctx, project, file_id)
    try:
        lineage = msgspec.json.decode(ctx.objects.get(lineage_key(file.id)), type=Lineage)
    except NotFound:
        lineage = None
    with ctx.database.transaction() as tx:
        jobs = job_rows.list_jobs(tx, project.id, limit=JOBS_LOOKED_AT)
    used = [job.id for job in jobs if file.id in (job.request.training_file, job.request.validation_file)]
    return lineage, used


def _lineage(ctx: Context, file: File, steps: tuple[str, ...], seed: int, done: Repair) -> Lineage:
    return Lineage(
        parent=file.id,
        parent_filename=file.filename,
        parent_sha256=file.sha256,
        steps=steps,
        seed=seed,
        created_at=ctx.seconds(),
        summary=done.summary,
        lines_read=done.lines_read,
        lines_written=done.lines_written,
        dropped=dict(done.dropped),
        changed=dict(done.changed),
        changes=done.changes,
    )


def _training_file(ctx: Context, project: Project, file_id: str) -> File:
    file = file_service.get_file(ctx, project, file_id)
    if file.purpose is not FilePurpose.FINE_TUNE:
        raise NotFound(
            f"{file_id} has the purpose {file.purpose.value}; only training files are looked at.",
            code="report_not_found",
            param="id",
        )
    return file


def _tokenizer(ctx: Context, model: str) -> ChatTokenizer:
    return load_chat_tokenizer(installed_folder(ctx.home, model))


def _next_name(name: str) -> str:
    """train.jsonl, train.repaired-1.jsonl, train.repaired-2.jsonl."""
    stem, dot, ending = name.rpartition(".")
    body = stem if dot else ending
    first, mark, number = body.rpartition(".repaired-")
    times = int(number) + 1 if mark and number.isdecimal() else 1
    return f"{first if times > 1 else body}.repaired-{times}{'.' + ending if dot else ''}"
