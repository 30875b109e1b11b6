"""Quotas: what a project may hold and use up, checked in the transaction that takes it, and refused in words.

What lies in rows is counted when it is asked about, so nothing can drift. Training tokens and money are reserved when
work is let in: a job's reservation counts while the job is unfinished and gives way to its usage in the transaction
that ends it; a request's is taken away with its usage, or by time if the server dies.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from smedje.domain.ids import RESERVATION, new_id
from smedje.domain.prices import millionths
from smedje.domain.projects import Permission, Principal, holders
from smedje.domain.quotas import MONTHLY, RATES, Limit, Quota, Reservation
from smedje.errors import InvalidRequest, LimitExceeded, NotFound
from smedje.services.access import demand_here
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.costs import spent
from smedje.services.upload_records import promised_bytes
from smedje.store import deployments as deployment_rows
from smedje.store import projects as project_rows
from smedje.store import quotas as store

LARGEST = 2**53
# From this share of a limit on its use is warned of, unless the limit says otherwise; at 100 never.
WARN_PERCENT, NEVER = 80, 100
# Longer than any answer takes; a request's reservation is gone by then even if its server died.
REQUEST_SECONDS = 3600

UNITS: dict[Limit, str] = {
    Limit.REQUESTS_PER_MINUTE: "requests a minute",
    Limit.TOKENS_PER_MINUTE: "tokens a minute",
    Limit.ACTIVE_JOBS: "unfinished jobs",
    Limit.STORED_BYTES: "bytes of files and checkpoints",
    Limit.FINE_TUNED_MODELS: "fine-tuned models",
    Limit.DEPLOYMENTS: "deployments",
    Limit.TRAINING_TOKENS_PER_MONTH: "training tokens a month",
    Limit.MONEY_PER_MONTH: "millionths of the currency a month",
}


@dataclass(frozen=True, kw_only=True)
class QuotaState:
    """A limit and how far it is used. used: None for rates, which live in the serving process."""

    quota: Quota
    used: int | None


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What a job is expected to use up: training tokens, and money in millionths."""

    tokens: int
    money: int


def list_quotas(ctx: Context, caller: Principal) -> list[QuotaState]:
    """The project's limits with what is used of them."""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        found = store.list_quotas(tx, caller.project.id)
        used = _used(ctx, tx, caller.project.id, now) if found else {}
        if any(one.name is Limit.STORED_BYTES for one in found):
            used[Limit.STORED_BYTES] += promised_bytes(ctx, caller.project.id)
    return [QuotaState(quota=one, used=None if one.name in RATES else used[one.name]) for one in found]


def put_quota(
    ctx: Context,
    caller: Principal,
    *,
    name: Limit,
    value: int | None,
    deployment: str = "",
    warn_percent: int | None = None,
) -> None:
    """Set a limit, or take it away (None). One below what is used already refuses only what would come on top.

    warn_percent: from which share on its use is warned of; None leaves that as it is.
    Raises InvalidRequest, and NotFound for an unknown deployment.
    """
    demand_here(caller, Permission.QUOTAS_WRITE)
    if deployment and name not in RATES:
        raise InvalidRequest(
            f"{name.value} holds for a whole project. A deployment has {' and '.join(sorted(RATES))}.",
            code="conflicting_fields",
            param="deployment",
        )
    if value is not None and not 0 <= value <= LARGEST:
        raise InvalidRequest(f"value must lie between 0 and {LARGEST}.", code="invalid_value", param="value")
    if warn_percent is not None and not 1 <= warn_percent <= NEVER:
        raise InvalidRequest("warn_percent must lie between 1 and 100.", code="invalid_value", param="warn_percent")
    with ctx.database.transaction() as tx:
        known = {(one.deployment, one.name): one.warn_percent for one in store.list_quotas(tx, caller.project.id)}
        quota = Quota(
            project_id=caller.project.id,
            deployment=deployment,
            name=name,
            value=value or 0,
            updated_at=ctx.seconds(),
            warn_percent=warn_percent or known.get((deployment, name), WARN_PERCENT),
        )
        if deployment and deployment_rows.get_deployment(tx, caller.project.id, deployment) is None:
            raise NotFound(
                f"There is no deployment {deployment[:100]!r} in this project.",
                code="deployment_not_found",
                param="deployment",
            )
        if value is None:
            store.drop_quota(tx, quota)
        else:
            store.put_quota(tx, quota)
        subject = Subject(id=caller.project.id, hub_id=caller.project.hub_id, project_id=caller.project.id)
        record(ctx, tx, "quota.set", subject, {"name": name.value, "value": value})


def limits_of(ctx: Context, project_id: str) -> dict[tuple[str, Limit], int]:
    """Every limit of a project: (deployment or "", name) -> value."""
    with ctx.database.transaction() as tx:
        return {(one.deployment, one.name): one.value for one in store.list_quotas(tx, project_id)}


def check_room(ctx: Context, tx: Connection, project_id: str, name: Limit, more: int = 1) -> None:
    """Raises LimitExceeded unless the project has room for `more`. To be called before it is taken, in the same
    transaction: nobody else takes anything of the project until that ends."""
    quota = next((one for one in store.list_quotas(tx, project_id) if one.name is name), None)
    if quota is None:
        return
    value = quota.value
    project_rows.lock_project(tx, project_id)
    used = _used(ctx, tx, project_id, ctx.seconds())[name]
    if name is Limit.STORED_BYTES:
        used += promised_bytes(ctx, project_id)
    if used + more > value:
        raise refusal(name, value=value, used=used, more=more)
    _warn(ctx, tx, quota, used + more)


def warning(quota: Quota, used: int) -> str | None:
    """In words, when a limit is used so far that it is to be warned of; None before that."""
    if quota.warn_percent >= NEVER or quota.value == 0 or used * NEVER < quota.value * quota.warn_percent:
        return None
    return (
        f"{used * NEVER // quota.value} % of the project's {UNITS[quota.name]} ({quota.name.value}) are used: {used} "
        f"of {quota.value}. {holders(Permission.QUOTAS_WRITE)} can raise the limit."
    )


def _warn(ctx: Context, tx: Connection, quota: Quota, used: int) -> None:
    """Warn the caller each time, and write it down once: when a limit comes near, in each month for monthly ones."""
    text = warning(quota, used)
    if text is None:
        if quota.warned_at is not None:
            store.mark_warned(tx, quota, None)
        return
    ctx.notices.append(text)
    now = ctx.seconds()
    told = quota.warned_at is not None and (quota.name not in MONTHLY or quota.warned_at >= month_start(now))
    if not told:
        store.mark_warned(tx, quota, now)
        subject = Subject(id=quota.project_id, project_id=quota.project_id)
        record(ctx, tx, "quota.warning", subject, {"name": quota.name.value, "value": quota.value, "used": used})


def used_up(ctx: Context, project_id: str, job_id: str) -> str | None:
    """Why a queued job must not start: what this month has left of money or training tokens is less than was set aside
    for it, or nothing. None when it may. What is set aside for others does not count: they may cost less."""
    since, now = month_start(ctx.seconds()), ctx.seconds()
    with ctx.database.transaction() as tx:
        limits = {one.name: one for one in store.list_quotas(tx, project_id) if one.name in MONTHLY}
        if not limits:
            return None
        tokens, money = store.reservation_of_job(tx, job_id) or (0, 0)
        gone = {
            Limit.MONEY_PER_MONTH: millionths(spent(tx, [project_id], since, now + 1)),
            Limit.TRAINING_TOKENS_PER_MONTH: store.trained(tx, project_id, since=since),
        }
    for name, needed in ((Limit.MONEY_PER_MONTH, money), (Limit.TRAINING_TOKENS_PER_MONTH, tokens)):
        if name in limits and gone[name] + max(1, needed) > limits[name].value:
            return (
                f"Waiting: the project may use {limits[name].value} {UNITS[name]} ({name.value}), {gone[name]} are "
                f"used and this job needs {needed}. It starts when {holders(Permission.QUOTAS_WRITE)} raise the limit "
                "with PUT /api/quotas, or next month."
            )
    return None


@dataclass(frozen=True, kw_only=True)
class Room:
    """A limit that a new job meets. left: what is not used yet; enough: whether `needed` fits into it; warning: in
    words, when little would be left."""

    name: str
    value: int
    used: int
    left: int
    needed: int
    enough: bool
    warning: str | None


def room_for_job(ctx: Context, project_id: str, holding: Holding) -> tuple[Room, ...]:
    """The project's limits that a job would be let in by, each with what is left of it. Takes nothing."""
    needed = {
        Limit.ACTIVE_JOBS: 1,
        Limit.FINE_TUNED_MODELS: 1,
        Limit.TRAINING_TOKENS_PER_MONTH: holding.tokens,
        Limit.MONEY_PER_MONTH: holding.money,
    }
    with ctx.database.transaction() as tx:
        limits = [one for one in store.list_quotas(tx, project_id) if one.name in needed]
        used = _used(ctx, tx, project_id, ctx.seconds()) if limits else {}
    return tuple(
        Room(
            name=one.name.value,
            value=one.value,
            used=used[one.name],
            left=max(0, one.value - used[one.name]),
            needed=needed[one.name],
            enough=used[one.name] + needed[one.name] <= one.value,
            warning=warning(one, used[one.name] + needed[one.name]),
        )
        for one in limits
    )


def reserve_for_job(ctx: Context, tx: Connection, project_id: str, job_id: str, holding: Holding) -> None:
    """Set aside what a job is expected to use, with its row. Raises LimitExceeded when the month has not that much."""
    check_room(ctx, tx, project_id, Limit.TRAINING_TOKENS_PER_MONTH, holding.tokens)
    check_room(ctx, tx, project_id, Limit.MONEY_PER_MONTH, holding.money)
    store.insert_reservation(
        tx,
        Reservation(
            id=new_id(RESERVATION),
            project_id=project_id,
            job_id=job_id,
            tokens=holding.tokens,
            money=holding.money,
            expires_at=None,
        ),
    )


def reserve_for_request(ctx: Context, project_id: str, money: int) -> str:
    """Set money aside for one request; the reservation's id. Raises LimitExceeded when the month has not that much."""
    now = ctx.seconds()
    reservation = Reservation(
        id=new_id(RESERVATION),
        project_id=project_id,
        job_id=None,
        tokens=0,
        money=money,
        expires_at=now + REQUEST_SECONDS,
    )
    with ctx.database.transaction() as tx:
        store.delete_expired(tx, project_id, now=now)
        check_room(ctx, tx, project_id, Limit.MONEY_PER_MONTH, money)
        store.insert_reservation(tx, reservation)
    return reservation.id


def release(tx: Connection, reservation_id: str) -> None:
    """Give a reservation back, in the transaction that writes the usage down."""
    store.delete_reservation(tx, reservation_id)


def refusal(
    name: Limit, *, value: int, used: int, more: int = 1, deployment: str = "", wait: float | None = None
) -> LimitExceeded:
    """The error for a limit: which, how much is left, who can raise it. wait: seconds until there is room again."""
    whose = f"deployment {deployment}" if deployment else "project"
    when = "" if wait is None else f" Try again in {_whole(wait)} s."
    text = (
        f"The {whose} may use {value} {UNITS[name]} ({name.value}); {used} of them are used, {max(0, value - used)} "
        f"are left, and this needs {more}.{when} The limit can be raised by {holders(Permission.QUOTAS_WRITE)} with "
        "PUT /api/quotas."
    )
    if wait is None:
        return LimitExceeded(text, code="quota_exceeded", param=name.value)
    return LimitExceeded(text, code="rate_limit_exceeded", param=name.value, retry_after=_whole(wait))


def month_start(now: int) -> int:
    """The first second of the calendar month in UTC."""
    moment = datetime.fromtimestamp(now, UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp())


def _used(ctx: Context, tx: Connection, project_id: str, now: int) -> dict[Limit, int]:
    since = month_start(now)
    used = dict(store.used(tx, project_id, since=since, now=now))
    money = millionths(spent(tx, [project_id], since, now + 1))
    used[Limit.MONEY_PER_MONTH] = money + store.reserved(tx, project_id, now=now)[1]
    return used


def _whole(seconds: float) -> int:
    return max(1, -int(-seconds // 1))
