"""Retention: how many days a project keeps files, checkpoints and the stories of its jobs; what would go, and letting
it go. What is in use stays, whatever its age. Usage and audit entries are never removed.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from smedje.domain.jobs import TERMINAL
from smedje.domain.projects import Permission, Principal, Project
from smedje.domain.upkeep import Kept, RetentionRule
from smedje.errors import InvalidRequest
from smedje.services import files as file_service
from smedje.services.access import demand_here
from smedje.services.audit import Subject, record, record_in
from smedje.services.context import Context
from smedje.services.removal import Part, in_use, purge
from smedje.store import cascade
from smedje.store import files as file_rows
from smedje.store import projects as project_rows
from smedje.store import upkeep as store
from smedje.store import webhooks as webhook_rows

DAY = 24 * 3600
MOST_DAYS = 3650
MANY = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What would go now, oldest first. in_use: how many that are old enough stay because something needs them."""

    parts: tuple[Part, ...]
    in_use: int


def list_rules(ctx: Context, project: Project) -> dict[Kept, int]:
    """Days for each kind; 0 for ever."""
    with ctx.database.transaction() as tx:
        given = {rule.kind: rule.days for rule in store.list_rules(tx, project.id)}
    return {kind: given.get(kind, 0) for kind in Kept}


def set_rules(ctx: Context, caller: Principal, days: Mapping[Kept, int]) -> dict[Kept, int]:
    """Set the rules that are given; 0 takes one away. Raises InvalidRequest for a number out of bounds."""
    demand_here(caller, Permission.PROJECT_WRITE)
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        for kind, count in check_days(days).items():
            store.put_rule(tx, RetentionRule(project_id=caller.project.id, kind=kind, days=count, updated_at=now))
        record(
            ctx,
            tx,
            "retention.set",
            Subject(id=caller.project.id, hub_id=caller.project.hub_id, project_id=caller.project.id),
            {kind.value: count for kind, count in days.items()},
        )
    return list_rules(ctx, caller.project)


def check_days(days: Mapping[Kept, int]) -> Mapping[Kept, int]:
    """Raises InvalidRequest outside 0 to ten years."""
    for kind, count in days.items():
        if not 0 <= count <= MOST_DAYS:
            raise InvalidRequest(
                f"{kind.value} must be kept for 0 (for ever) to {MOST_DAYS} days, found {count}.",
                code="invalid_value",
                param=kind.value,
            )
    return days


def preview(ctx: Context, project: Project, days: Mapping[Kept, int] | None = None) -> Preview:
    """What the project's rules, or these days in their stead, would remove now."""
    rules = list_rules(ctx, project) if days is None else {**list_rules(ctx, project), **check_days(days)}
    with ctx.database.transaction() as tx:
        return _old(ctx, tx, project.id, rules)


def apply(ctx: Context, project: Project) -> Preview:
    """Remove what the project's rules say, each part with its audit entry; what was removed."""
    found = preview(ctx, project)
    done = [part for part in found.parts if _remove(ctx, project, part)]
    return Preview(parts=tuple(done), in_use=found.in_use)


def apply_now(ctx: Context, project: Project) -> Preview:
    """As `apply`, because somebody asked for it."""
    found = apply(ctx, project)
    with ctx.database.transaction() as tx:
        subject = Subject(id=project.id, hub_id=project.hub_id, project_id=project.id)
        record(ctx, tx, "retention.applied", subject, {"removed": len(found.parts)})
    return found


def apply_all(ctx: Context) -> int:
    """Follow every project's rules, and remove files whose own time is over; how many parts went."""
    with ctx.database.transaction() as tx:
        ruled = {rule.project_id for rule in store.list_rules(tx)}
        living = project_rows.list_projects(tx)
        expired = cascade.expired_files(tx, now=ctx.seconds())
    count = sum(len(apply(ctx, project).parts) for project in living if project.id in ruled)
    for project_id, file_id in expired:
        count += file_service.remove_file(ctx, project_id, file_id)
    return count


def _old(ctx: Context, tx: Connection, project_id: str, rules: Mapping[Kept, int]) -> Preview:
    now, jobs = ctx.seconds(), cascade.jobs_of(tx, project_id)
    before = {kind: now - count * DAY for kind, count in rules.items() if count}
    files, names = in_use(tx, project_id, jobs)
    parts: list[Part] = []
    kept = 0
    if Kept.FILES in before:
        for file in file_rows.list_files(tx, project_id, limit=MANY, order="asc"):
            if file.created_at < before[Kept.FILES]:
                kept += file.id in files
                if file.id not in files:
                    parts.append(Part(kind="file", id=file.id, bytes=file.bytes, created_at=file.created_at))
    ended = {job.id: job.finished_at or 0 for job in jobs if job.status in TERMINAL}
    if Kept.CHECKPOINTS in before:
        models = cascade.model_keys(tx, project_id)
        for one in cascade.checkpoints_of(tx, project_id):
            if one.job_id not in ended or ended[one.job_id] >= before[Kept.CHECKPOINTS]:
                continue
            needed = one.key in models or one.model_name in names or cascade.deployments_on(tx, project_id, {one.key})
            kept += bool(needed)
            if not needed:
                parts.append(
                    Part(
                        kind="checkpoint",
                        id=one.model_name,
                        bytes=one.bytes,
                        created_at=one.created_at,
                        prefixes=(one.key,),
                    )
                )
    if Kept.EVENTS in before:
        told = cascade.jobs_with_events(tx, project_id)
        for job_id, at in ended.items():
            if job_id in told and at < before[Kept.EVENTS]:
                parts.append(_story(ctx, tx, job_id, at))
    return Preview(parts=tuple(sorted(parts, key=lambda part: part.created_at)), in_use=kept)


def _story(ctx: Context, tx: Connection, job_id: str, ended_at: int) -> Part:
    prefixes = tuple(f"runs/{run_id}/events" for run_id in cascade.runs_of(tx, job_id))
    size = sum(found.size for prefix in prefixes for found in ctx.objects.list(prefix))
    return Part(kind="events", id=job_id, bytes=size, created_at=ended_at, prefixes=prefixes)


def _remove(ctx: Context, project: Project, part: Part) -> bool:
    """Remove one part unless it has come into use or gone meanwhile; whether it was removed."""
    if part.kind == "file":
        return file_service.remove_file(ctx, project.id, part.id)
    with ctx.database.transaction() as tx:
        logs = [ctx.home / "logs" / f"{prefix.split('/')[1]}.log" for prefix in part.prefixes]
        if part.kind == "checkpoint":
            [key] = part.prefixes
            needed = key in cascade.model_keys(tx, project.id) or cascade.deployments_on(tx, project.id, {key})
            if needed or part.id in in_use(tx, project.id, cascade.jobs_of(tx, project.id))[1]:
                return False
            cascade.delete_checkpoint(tx, project.id, key)
            record_in(ctx, tx, "checkpoint.deleted", project.id, key.split("/")[1])
            logs = []
        else:
            cascade.delete_events(tx, project.id, part.id)
            webhook_rows.delete_deliveries_about(tx, project.id, part.id)
            record_in(ctx, tx, "job.events_deleted", project.id, part.id)
    purge(ctx, part.prefixes)
    for log in logs:
        with suppress(OSError):
            log.unlink(missing_ok=True)
    return True
