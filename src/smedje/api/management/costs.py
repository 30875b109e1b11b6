"""Usage, costs and prices on the wire, as rows and as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from smedje.api.auth import CanReadUsage, CanWritePrices
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.prices import GB_DAY, UNIT, PriceTable
from smedje.errors import InvalidRequest
from smedje.services import costs as service
from smedje.services.context import Context

REPORT_QUERY = frozenset({"start_time", "end_time", "group_by", "format"})
COLUMNS = (
    *service.GROUPS,
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "trained_tokens",
    "seconds",
    "storage_gb_days",
    "cost",
    "currency",
)

router = APIRouter(tags=["usage"])

Since = Annotated[int | None, Query(ge=0)]
Until = Annotated[int | None, Query(ge=0)]
Format = Literal["json", "csv"]


class SpendingObject(BaseModel):
    """Sums of one group; what is not grouped by is null. day: its first second, UTC. cost: in the currency."""

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
    storage_gb_days: float
    cost: float
    currency: str


class SpendingList(BaseModel):
    """Every group of the period; never paged."""

    object: Literal["list"] = "list"
    data: list[SpendingObject]


class PriceBody(Body):
    """New prices, in millionths of the currency: for a million tokens, an hour of training, 10^9 bytes kept a day."""

    currency: str
    training_tokens: int
    prompt_tokens: int
    completion_tokens: int
    device_hour: int
    storage_gb_day: int = 0


class PriceObject(BaseModel):
    """The prices that hold now. version 0 is built in. hosting_hour: an idle deployment or engine costs nothing."""

    object: Literal["prices"] = "prices"
    version: int
    valid_from: int
    currency: str
    training_tokens: int
    prompt_tokens: int
    completion_tokens: int
    device_hour: int
    storage_gb_day: int
    hosting_hour: Literal[0] = 0


class PriceList(BaseModel):
    """Every price table, oldest first; each holds until the next one's valid_from. Never paged."""

    object: Literal["list"] = "list"
    data: list[PriceObject]


def to_object(one: service.Spending, currency: str) -> SpendingObject:
    """The wire form of one group."""
    values = {**vars(one), "cost": one.cost / UNIT, "storage_gb_days": one.byte_seconds / GB_DAY}
    del values["byte_seconds"]
    return SpendingObject(**values, currency=currency)


@router.get("/api/usage", response_model=SpendingList)
def get_usage(
    caller: CanReadUsage,
    ctx: Using,
    request: Request,
    start_time: Since = None,
    end_time: Until = None,
    group_by: str = "model,kind",
) -> Any:
    """What was used, in every project in which the caller may read usage; the last 30 days unless told otherwise."""
    refuse_unknown_query(request, REPORT_QUERY)
    return _answer(ctx, request, service.report(ctx, caller, _period(ctx, start_time, end_time), _names([group_by])))


@router.get("/api/costs", response_model=SpendingList)
def get_costs(
    caller: CanReadUsage,
    ctx: Using,
    request: Request,
    start_time: Since = None,
    end_time: Until = None,
    group_by: str = "day,project_id",
) -> Any:
    """What it cost; the same rows as usage, grouped by day and project unless told otherwise."""
    refuse_unknown_query(request, REPORT_QUERY)
    return _answer(ctx, request, service.report(ctx, caller, _period(ctx, start_time, end_time), _names([group_by])))


@router.get("/api/prices")
def get_prices(caller: CanReadUsage, ctx: Using, request: Request) -> PriceObject:
    """The prices that hold now."""
    refuse_unknown_query(request, frozenset())
    return PriceObject(**vars(service.current_prices(ctx)))


@router.get("/api/prices/versions")
def list_prices(caller: CanReadUsage, ctx: Using, request: Request) -> PriceList:
    """All prices that ever held."""
    refuse_unknown_query(request, frozenset())
    return PriceList(data=[PriceObject(**vars(table)) for table in service.all_prices(ctx)])


@router.put("/api/prices")
def put_prices(caller: CanWritePrices, ctx: Using, body: PriceBody) -> PriceObject:
    """Prices from now on; what was used before keeps its price."""
    table = PriceTable(version=0, valid_from=0, **body.model_dump())
    return PriceObject(**vars(service.set_prices(ctx, caller, table)))


def _period(ctx: Context, since: int | None, until: int | None) -> service.Period:
    end = ctx.seconds() + 1 if until is None else until
    return service.Period(since=max(0, end - 30 * service.DAY) if since is None else since, until=end)


def _names(given: Sequence[str]) -> list[str]:
    return [name for text in given for name in text.split(",") if name]


def _answer(ctx: Context, request: Request, rows: Sequence[service.Spending]) -> Response | SpendingList:
    """The rows as JSON, or as CSV when the query says format=csv."""
    currency = service.current_prices(ctx).currency
    found = [to_object(one, currency) for one in rows]
    match request.query_params.get("format", "json"):
        case "json":
            return SpendingList(data=found)
        case "csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(one.model_dump() for one in found)
            return Response(text.getvalue(), media_type="text/csv; charset=utf-8")
        case other:
            raise InvalidRequest(
                f"The format {other[:60]!r} is not offered. Use json or csv.", code="invalid_value", param="format"
            )
