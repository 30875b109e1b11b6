"""Usage, costs and prices on the wire: as rows and CSV, and in the shapes of OpenAI's organization routes."""

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
from smedje.domain.prices import UNIT, PriceTable
from smedje.errors import InvalidRequest
from smedje.services import costs as service
from smedje.services.context import Context

REPORT_QUERY = frozenset({"start_time", "end_time", "group_by", "format"})
BUCKET_QUERY = frozenset({"start_time", "end_time", "group_by", "group_by[]", "bucket_width", "limit"})
COLUMNS = (
    *service.GROUPS,
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "trained_tokens",
    "seconds",
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
    cost: float
    currency: str


class SpendingList(BaseModel):
    """Every group of the period; never paged."""

    object: Literal["list"] = "list"
    data: list[SpendingObject]


class PriceBody(Body):
    """New prices, in millionths of the currency: for a million tokens, and for an hour of training."""

    currency: str
    training_tokens: int
    prompt_tokens: int
    completion_tokens: int
    device_hour: int


class PriceObject(BaseModel):
    """The prices that hold now. version 0 is built in."""

    object: Literal["prices"] = "prices"
    version: int
    valid_from: int
    currency: str
    training_tokens: int
    prompt_tokens: int
    completion_tokens: int
    device_hour: int


class BucketPage(BaseModel):
    """OpenAI's page of time buckets; never continued, because a period has at most 400 days."""

    object: Literal["page"] = "page"
    data: list[dict[str, Any]]
    has_more: Literal[False] = False
    next_page: None = None


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


@router.put("/api/prices")
def put_prices(caller: CanWritePrices, ctx: Using, body: PriceBody) -> PriceObject:
    """Prices from now on; what was used before keeps its price."""
    table = PriceTable(version=0, valid_from=0, **body.model_dump())
    return PriceObject(**vars(service.set_prices(ctx, caller, table)))


@router.get("/v1/organization/usage/completions")
def usage_buckets(
    caller: CanReadUsage,
    ctx: Using,
    request: Request,
    start_time: Annotated[int, Query(ge=0)],
    end_time: Until = None,
    limit: Annotated[int, Query(ge=1, le=400)] = 31,
) -> BucketPage:
    """OpenAI's completions usage: one bucket a day; group_by project_id, model, api_key_id."""
    _check_width(request)
    found = _buckets(ctx, caller, request, _first_days(ctx, start_time, end_time, limit))
    return BucketPage(data=[_bucket(day, [_usage_result(one) for one in rows]) for day, rows in found])


@router.get("/v1/organization/costs")
def cost_buckets(
    caller: CanReadUsage,
    ctx: Using,
    request: Request,
    start_time: Annotated[int, Query(ge=0)],
    end_time: Until = None,
    limit: Annotated[int, Query(ge=1, le=400)] = 31,
) -> BucketPage:
    """OpenAI's costs: one bucket a day; group_by project_id, line_item (the model)."""
    _check_width(request)
    currency = service.current_prices(ctx).currency.lower()
    found = _buckets(ctx, caller, request, _first_days(ctx, start_time, end_time, limit), training=True)
    return BucketPage(data=[_bucket(day, [_cost_result(one, currency) for one in rows]) for day, rows in found])


def _period(ctx: Context, since: int | None, until: int | None) -> service.Period:
    end = ctx.seconds() + 1 if until is None else until
    return service.Period(since=max(0, end - 30 * service.DAY) if since is None else since, until=end)


def _check_width(request: Request) -> None:
    refuse_unknown_query(request, BUCKET_QUERY)
    width = request.query_params.get("bucket_width", "1d")
    if width != "1d":
        raise InvalidRequest(
            f"bucket_width {width[:60]!r} is not offered. Use 1d.", code="invalid_value", param="bucket_width"
        )


def _first_days(ctx: Context, since: int, until: int | None, days: int) -> service.Period:
    period = _period(ctx, since, until)
    last = (since // service.DAY + days) * service.DAY
    return service.Period(since=since, until=min(period.until, last))


def _names(given: Sequence[str]) -> list[str]:
    return [name for text in given for name in text.split(",") if name]


def _answer(ctx: Context, request: Request, rows: Sequence[service.Spending]) -> Response | SpendingList:
    """The rows as JSON, or as CSV when the query says format=csv."""
    currency = service.current_prices(ctx).currency
    found = [SpendingObject(**{**vars(one), "cost": one.cost / UNIT}, currency=currency) for one in rows]
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


def _buckets(
    ctx: Context, caller: CanReadUsage, request: Request, period: service.Period, *, training: bool = False
) -> list[tuple[int, list[service.Spending]]]:
    """One bucket a day, empty days too, with the rows of that day."""
    asked = _names([*request.query_params.getlist("group_by"), *request.query_params.getlist("group_by[]")])
    ours = {"api_key_id": "key_id", "line_item": "model"}
    rows = service.report(ctx, caller, period, ["day", "kind", *(ours.get(name, name) for name in asked)])
    days = range(period.since - period.since % service.DAY, period.until, service.DAY)
    kept = [one for one in rows if training or one.kind == "inference"]
    return [(day, [one for one in kept if one.day == day]) for day in days]


def _bucket(day: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "bucket", "start_time": day, "end_time": day + service.DAY, "results": results}


def _usage_result(one: service.Spending) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": one.prompt_tokens,
        "output_tokens": one.completion_tokens,
        "input_cached_tokens": 0,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": one.requests,
        "project_id": one.project_id,
        "user_id": None,
        "api_key_id": one.key_id,
        "model": one.model,
        "batch": None,
    }


def _cost_result(one: service.Spending, currency: str) -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        "amount": {"value": one.cost / UNIT, "currency": currency},
        "line_item": one.model,
        "project_id": one.project_id,
    }
