"""What was used and what it cost, by day, project, model and key; and the price tables that say so.

Costs are computed from usage rows when they are asked for, each row with the prices that held when it was written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from smedje.domain.prices import PriceTable
from smedje.domain.projects import Permission, Principal
from smedje.errors import InvalidRequest
from smedje.services.access import demand
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.store import prices as price_rows
from smedje.store import projects as project_rows
from smedje.store import usage as store

DAY = store.DAY
GROUPS = ("day", "project_id", "model", "key_id", "kind")
LONGEST_DAYS = 400
HIGHEST_PRICE = 10**12


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Sums of one group. Fields that are not grouped by are None. cost: in units of 1e-12 of the currency.

    day: first second of a day in UTC, or of a bucket of the period's width. byte_seconds: of storage.
    """

    day: int | None
    project_id: str | None
    model: str | None
    key_id: str | None
    kind: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    trained_tokens: int
    seconds: float
    byte_seconds: int
    cost: int


@dataclass(frozen=True, kw_only=True)
class Period:
    """From `since` up to but not including `until`, in Unix seconds. width: of a bucket, in seconds."""

    since: int
    until: int
    width: int = DAY


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which usage is told: of these projects, models, keys; None for all that the caller may see."""

    projects: frozenset[str] | None = None
    models: frozenset[str] | None = None
    keys: frozenset[str] | None = None


def current_prices(ctx: Context) -> PriceTable:
    """The table that holds now."""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        return [table for table in price_rows.list_prices(tx) if table.valid_from <= now][-1]


def all_prices(ctx: Context) -> list[PriceTable]:
    """Every table, oldest first."""
    with ctx.database.transaction() as tx:
        return price_rows.list_prices(tx)


def set_prices(ctx: Context, caller: Principal, table: PriceTable) -> PriceTable:
    """New prices from now on; what was used before keeps its price. Needs prices.write for the whole server."""
    demand(caller, Permission.PRICES_WRITE)
    tokens = (table.training_tokens, table.prompt_tokens, table.completion_tokens)
    numbers = (*tokens, table.device_hour, table.storage_gb_day)
    if not all(0 <= number <= HIGHEST_PRICE for number in numbers) or not (
        len(table.currency) == 3 and table.currency.isascii() and table.currency.isalpha() and table.currency.isupper()
    ):
        raise InvalidRequest(
            f"Prices are whole millionths between 0 and {HIGHEST_PRICE}, the currency three capital letters.",
            code="invalid_prices",
        )
    with ctx.database.transaction() as tx:
        count = len(price_rows.list_prices(tx))
        made = replace(table, version=count, valid_from=ctx.seconds())
        price_rows.insert_prices(tx, made)
        record(ctx, tx, "prices.set", Subject(id=f"prices-{count}"))
    return made


def report(
    ctx: Context, caller: Principal, period: Period, group_by: Sequence[str], chosen: Chosen | None = None
) -> list[Spending]:
    """Usage and cost in every project in which the caller may read usage, in the groups asked for, oldest first.

    Raises InvalidRequest for an unknown group or a period that is empty or longer than 400 days.
    """
    unknown = [name for name in group_by if name not in GROUPS]
    if unknown:
        raise InvalidRequest(
            f"Usage cannot be grouped by {unknown[0][:60]!r}. Groups: {', '.join(GROUPS)}.",
            code="invalid_value",
            param="group_by",
        )
    if not 0 <= period.since < period.until or period.until - period.since > LONGEST_DAYS * DAY:
        raise InvalidRequest(
            f"start_time must lie before end_time, by at most {LONGEST_DAYS} days.",
            code="invalid_value",
            param="start_time",
        )
    with ctx.database.transaction() as tx:
        seen = [
            one.id for one in project_rows.list_projects(tx) if caller.may_in(Permission.USAGE_READ, one.hub_id, one.id)
        ]
        found = _priced(tx, seen, period)
    return _grouped([one for one in found if chosen is None or _is_chosen(chosen, one[0])], group_by)


def spent(tx: Connection, project_ids: Sequence[str], since: int, until: int) -> int:
    """What projects have cost, in units of 1e-12 of the currency."""
    return sum(cost for _, cost in _priced(tx, project_ids, Period(since=since, until=until)))


def _priced(tx: Connection, project_ids: Sequence[str], period: Period) -> list[tuple[store.UsageSlice, int]]:
    """Every slice of the period with its cost; a day in which prices changed is in several slices."""
    tables = price_rows.list_prices(tx)
    found = []
    for table, following in zip(tables, [*tables[1:], None], strict=True):
        since = max(period.since, table.valid_from)
        until = period.until if following is None else min(period.until, following.valid_from)
        if since < until:
            slices = store.slice_usage(tx, project_ids, since, until, width=period.width)
            found += [(one, table.cost(one.total)) for one in slices]
    return found


def _is_chosen(chosen: Chosen, one: store.UsageSlice) -> bool:
    pairs = ((chosen.projects, one.project_id), (chosen.models, one.total.model), (chosen.keys, one.key_id))
    return all(wanted is None or value in wanted for wanted, value in pairs)


def _grouped(slices: Sequence[tuple[store.UsageSlice, int]], group_by: Sequence[str]) -> list[Spending]:
    sums: dict[tuple[object, ...], Spending] = {}
    for one, cost in slices:
        parts: Mapping[str, object] = {
            "day": one.day,
            "project_id": one.project_id,
            "model": one.total.model,
            "key_id": one.key_id,
            "kind": one.total.kind,
        }
        key = tuple(parts[name] for name in GROUPS if name in group_by)
        known = sums.get(key)
        sums[key] = Spending(
            day=one.day if "day" in group_by else None,
            project_id=one.project_id if "project_id" in group_by else None,
            model=one.total.model if "model" in group_by else None,
            key_id=one.key_id if "key_id" in group_by else None,
            kind=one.total.kind if "kind" in group_by else None,
            requests=one.records + (known.requests if known else 0),
            prompt_tokens=one.total.prompt_tokens + (known.prompt_tokens if known else 0),
            completion_tokens=one.total.completion_tokens + (known.completion_tokens if known else 0),
            trained_tokens=one.total.trained_tokens + (known.trained_tokens if known else 0),
            seconds=one.total.seconds + (known.seconds if known else 0.0),
            byte_seconds=one.total.byte_seconds + (known.byte_seconds if known else 0),
            cost=cost + (known.cost if known else 0),
        )
    return sorted(sums.values(), key=lambda found: (found.day or 0, -found.cost))
