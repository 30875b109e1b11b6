"""Erasure: a file, or the files that hold one row, with everything made from them and trained on them.

A plan says what would go and what stands in the way; carrying it out takes the plan's digest, so that nothing goes that
was not seen. Rows go in one transaction together with a note of the bytes that are still to go, so that a server that
dies goes on when it comes back. A certificate tells by digests what was removed; its digest stands in the audit log.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from smedje.data.prepared import forget_rows
from smedje.domain.catalog import parse_model_name
from smedje.domain.files import File, FilePurpose, content_key, insights_key, lineage_key, report_key, traces_key
from smedje.domain.ids import ERASURE, new_id
from smedje.domain.jobs import TERMINAL, Checkpoint, FineTuningJob
from smedje.domain.projects import Permission, Principal, Project
from smedje.domain.upkeep import Erasure, ErasureState
from smedje.errors import Conflict, InvalidRequest, NotFound, SmedjeError
from smedje.services.access import demand_here
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.orphans import drop_content
from smedje.services.prediction import prediction_key
from smedje.services.removal import CACHE, purge
from smedje.services.upload_records import FOLDER as UPLOADS
from smedje.services.upload_records import held_uploads
from smedje.store import cascade
from smedje.store import files as file_rows
from smedje.store import runs as run_rows
from smedje.store import upkeep as store

MANY = 1_000_000
CONTENT = "sha256/"
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an erasure takes away. blocked_by: what must end first, in words. digest: of all of it."""

    file_id: str
    row: int | None
    row_sha256: str | None
    files: tuple[File, ...]
    jobs: tuple[FineTuningJob, ...]
    checkpoints: tuple[Checkpoint, ...]
    models: tuple[str, ...]
    blocked_by: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the names of everything that goes, in hex."""
        names = [one.id for one in self.files] + [one.id for one in self.jobs] + [one.key for one in self.checkpoints]
        return hashlib.sha256("\n".join(sorted([*names, *self.models])).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """What files and checkpoints take."""
        return sum(one.bytes for one in self.files) + sum(one.bytes for one in self.checkpoints)


def plan_erasure(ctx: Context, project: Project, file_id: str, *, row: int | None = None) -> Plan:
    """What erasing this file, or the files that hold this line of it, would take away.

    Raises NotFound for a file that the project neither has nor trained on, InvalidRequest for a line it does not have.
    """
    with ctx.database.transaction() as tx:
        all_files = file_rows.list_files(tx, project.id, limit=MANY, order="asc")
        jobs = cascade.jobs_of(tx, project.id)
    asked = next((one for one in all_files if one.id == file_id), None)
    if asked is None and not any(file_id in _given(job) for job in jobs):
        raise NotFound(f"No such File object: {file_id[:100]}", code="file_not_found", param="file")
    line = None if asked is None or row is None else _line(ctx, asked, row)
    if row is not None and line is None:
        raise InvalidRequest(f"{file_id} has no line {row}.", code="row_not_found", param="row")
    found = {file_id}
    if asked is not None:
        found |= {one.id for one in all_files if one.sha256 == asked.sha256}
    if line is not None:
        found |= {one.id for one in all_files if one.purpose is FilePurpose.FINE_TUNE and _holds(ctx, one, line)}
    parents = {one.id: _parent(ctx, one) for one in all_files}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    with ctx.database.transaction() as tx:
        return _plan(tx, project.id, (file_id, row, line), found)


def erase(ctx: Context, caller: Principal, file_id: str, *, row: int | None, plan: str) -> Erasure:
    """Carry out the plan with this digest. Needs erasures.write.

    Raises as `plan_erasure`; Conflict when the plan is not the same any more, and naming what stands in the way.
    """
    demand_here(caller, Permission.ERASURES_WRITE)
    now_planned = plan_erasure(ctx, caller.project, file_id, row=row)
    _check(now_planned, plan)
    certificate = _certificate(ctx, caller, now_planned)
    made = _take_rows(ctx, caller.project.id, now_planned, certificate)
    _finish(ctx, made)
    with ctx.database.transaction() as tx:
        found = store.get_erasure(tx, caller.project.id, made.id)
    assert found is not None, "an erasure stays"
    return found


def get_erasure(ctx: Context, project: Project, erasure_id: str) -> Erasure:
    """Raises NotFound when this project has no such erasure."""
    with ctx.database.transaction() as tx:
        found = store.get_erasure(tx, project.id, erasure_id)
    if found is None:
        raise NotFound(f"There is no erasure {erasure_id[:100]!r}.", code="erasure_not_found", param="id")
    return found


def list_erasures(ctx: Context, project: Project, *, after: str | None, limit: int) -> list[Erasure]:
    """At most `limit` erasures, newest first. Raises NotFound for an unknown `after`."""
    with ctx.database.transaction() as tx:
        return store.list_erasures(tx, project.id, after=after, limit=limit)


def resume(ctx: Context) -> int:
    """Finish erasures that a server left half done; how many."""
    with ctx.database.transaction() as tx:
        found = store.unfinished_erasures(tx)
    for one in found:
        _finish(ctx, one)
    return len(found)


def _plan(tx: Connection, project_id: str, asked: tuple[str, int | None, bytes | None], found: set[str]) -> Plan:
    jobs = cascade.jobs_of(tx, project_id)
    chosen: dict[str, FineTuningJob] = {}
    while more := [job for job in jobs if job.id not in chosen and _depends(job, found, chosen)]:
        chosen |= {job.id: job for job in more}
    results = {file_id for job in chosen.values() for file_id in job.result_files}
    files = [file_rows.get_file(tx, project_id, one) for one in sorted(found | results)]
    checkpoints = [one for one in cascade.checkpoints_of(tx, project_id) if one.job_id in chosen]
    models = {key: name for key, name in cascade.model_keys(tx, project_id).items() if _made_by(name, chosen)}
    keys = {*models, *(one.key for one in checkpoints)}
    file_id, row, line = asked
    return Plan(
        file_id=file_id,
        row=row,
        row_sha256=None if line is None else hashlib.sha256(line).hexdigest(),
        files=tuple(one for one in files if one is not None),
        jobs=tuple(chosen.values()),
        checkpoints=tuple(checkpoints),
        models=tuple(sorted(models.values())),
        blocked_by=tuple(_blocking(tx, project_id, chosen.values(), keys)),
    )


def _check(plan: Plan, digest: str) -> None:
    if plan.digest != digest:
        raise Conflict(
            "What would be erased is not what this plan said. Look at the preview again.", code="plan_changed"
        )
    if plan.blocked_by:
        raise Conflict(
            f"This cannot be erased yet: {'; '.join(plan.blocked_by)}.", code="erasure_blocked", param="file"
        )


def _blocking(tx: Connection, project_id: str, jobs: Iterable[FineTuningJob], keys: set[str]) -> list[str]:
    names = sorted(one.name for one in cascade.deployments_on(tx, project_id, keys))
    found = [f"the deployment {name} answers with what was trained on it; delete that first" for name in names]
    active = {run.job_id for run in run_rows.list_active_runs(tx)}
    for job in jobs:
        if job.status not in TERMINAL or job.id in active:
            found.append(f"the job {job.id} has not ended; cancel it, or wait")
    return found


def _depends(job: FineTuningJob, files: set[str], jobs: dict[str, FineTuningJob]) -> bool:
    return bool(_given(job) & files) or _made_by(job.request.model, jobs)


def _given(job: FineTuningJob) -> set[str]:
    return {job.request.training_file, job.request.validation_file or ""}


def _made_by(name: str, jobs: dict[str, FineTuningJob]) -> bool:
    """Whether a model's name says that one of these jobs made it."""
    if not name.startswith("ft:"):
        return False
    with suppress(SmedjeError):
        mark = parse_model_name(name).job
        return any(job_id.endswith(mark) for job_id in jobs)
    return False


def _certificate(ctx: Context, caller: Principal, plan: Plan) -> dict[str, Any]:
    """Ids, digests, sizes and counts; nothing that anyone wrote."""
    checkpoints = [
        {
            "job": one.job_id,
            "step": one.step,
            "bytes": one.bytes,
            "adapter_sha256": _digest(ctx, f"{one.key}/{ADAPTER}"),
        }
        for one in plan.checkpoints
    ]
    files = [{"id": one.id, "sha256": one.sha256, "bytes": one.bytes, "rows": one.examples} for one in plan.files]
    return {
        "id": new_id(ERASURE),
        "object": "erasure.certificate",
        "at": ctx.seconds(),
        "project_id": caller.project.id,
        "by": {"key_id": caller.key_id, "member_id": caller.member_id},
        "asked": {"file": plan.file_id, "row": plan.row, "row_sha256": plan.row_sha256},
        "plan": plan.digest,
        "files": files,
        "jobs": [one.id for one in plan.jobs],
        "checkpoints": checkpoints,
        "counts": {
            "files": len(plan.files),
            "jobs": len(plan.jobs),
            "checkpoints": len(plan.checkpoints),
            "models": len(plan.models),
            "bytes": plan.bytes,
        },
    }


def _take_rows(ctx: Context, project_id: str, plan: Plan, certificate: dict[str, Any]) -> Erasure:
    """Everything that names what goes, gone in one transaction, with a note of the bytes."""
    text = json.dumps(certificate, sort_keys=True, separators=(",", ":"))
    # Of a file that was deleted before, digests of its rows are left.
    leftovers = [traces_key(project_id, plan.file_id), *(key for file in plan.files for key in _keys(file))]
    gone = {plan.file_id, *(one.id for one in plan.files)}
    leftovers += [f"{UPLOADS}/{held.record.id}" for held in held_uploads(ctx) if held.record.file_id in gone]
    with ctx.database.transaction() as tx:
        # Somebody may have begun a job on these files since the plan was made.
        again = _plan(tx, project_id, (plan.file_id, plan.row, None), gone)
        _check(again, plan.digest)
        for job in plan.jobs:
            leftovers += [prediction_key(job.id), *(f"runs/{run_id}" for run_id in cascade.runs_of(tx, job.id))]
            cascade.delete_job(tx, project_id, job.id)
        leftovers += [one.key for one in plan.checkpoints]
        for file in plan.files:
            file_rows.delete_file(tx, project_id, file.id)
        made = Erasure(
            id=certificate["id"],
            project_id=project_id,
            created_at=ctx.seconds(),
            state=ErasureState.REMOVING,
            leftovers=tuple(dict.fromkeys(leftovers)),
            certificate=text,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        store.insert_erasure(tx, made)
        record(ctx, tx, "erasure.begun", Subject(id=made.id, project_id=project_id), {"sha256": made.sha256})
    return made


def _finish(ctx: Context, erasure: Erasure) -> None:
    """Remove the bytes, then say so. Safe to repeat."""
    for prefix in erasure.leftovers:
        if prefix.startswith(CONTENT):
            # Bytes that another file has as well stay for that file.
            if drop_content(ctx, prefix.rpartition("/")[2]):
                forget_rows(ctx.home / CACHE, prefix.rpartition("/")[2])
            continue
        purge(ctx, [prefix])
        parts = prefix.split("/")
        if parts[0] == "runs" and len(parts) == 2:
            (ctx.home / "logs" / f"{parts[1]}.log").unlink(missing_ok=True)
    with ctx.database.transaction() as tx:
        store.finish_erasure(tx, erasure.id, now=ctx.seconds())
        subject = Subject(id=erasure.id, project_id=erasure.project_id)
        record(ctx, tx, "erasure.done", subject, {"sha256": erasure.sha256})
    ctx.database.scrub()


def _keys(file: File) -> Sequence[str]:
    beside = (
        report_key(file.id),
        insights_key(file.id),
        lineage_key(file.id),
        traces_key(file.project_id, file.id),
    )
    return (content_key(file.sha256), *beside)


def _digest(ctx: Context, key: str) -> str | None:
    try:
        pieces = ctx.objects.iter_bytes(key)
    except NotFound:
        return None
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _line(ctx: Context, file: File, row: int) -> bytes | None:
    with ctx.objects.local_path(content_key(file.sha256), ctx.home / CACHE).open("rb") as lines:
        return next((line.strip() for number, line in enumerate(lines, 1) if number == row), None)


def _holds(ctx: Context, file: File, line: bytes) -> bool:
    with ctx.objects.local_path(content_key(file.sha256), ctx.home / CACHE).open("rb") as lines:
        return any(one.strip() == line for one in lines)


def _parent(ctx: Context, file: File) -> str | None:
    try:
        made_from: dict[str, Any] = msgspec.json.decode(ctx.objects.get(lineage_key(file.id)))
    except NotFound:
        return None
    return str(made_from["parent"])
