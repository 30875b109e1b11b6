"""OpenAI's organization routes for usage and costs: pages of time buckets, with its filters and groups.

What this server has none of (embeddings, images, audio, ...) is answered with empty buckets.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from smedje.api.auth import CanReadUsage
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.prices import UNIT
from smedje.errors import InvalidRequest, NotFound
from smedje.services import costs as service
from smedje.services.context import Context

ORGANIZATION = "/v1/organization"
GIBIBYTE_HOUR = 2**30 * 3600
# Seconds of a bucket: name -> (seconds, buckets of a page unless told otherwise, at most).
WIDTHS = {"1d": (86_400, 7, 31), "1h": (3600, 24, 168), "1m": (60, 60, 1440)}
COST_WIDTHS = {"1d": (86_400, 7, 180)}
USAGE_LISTS = ("group_by", "project_ids", "models", "api_key_ids")
COST_LISTS = ("group_by", "project_ids", "api_key_ids", "line_items")
ALWAYS = ("start_time", "end_time", "bucket_width", "limit", "page")
# OpenAI's names of what can be grouped by -> ours.
USAGE_GROUPS = {"project_id": "project_id", "model": "model", "api_key_id": "key_id"}
COST_GROUPS = {"project_id": "project_id", "line_item": "model", "api_key_id": "key_id"}
EMPTY_KINDS = (
    "audio_speeches",
    "audio_transcriptions",
    "code_interpreter_sessions",
    "decisions",
    "embeddings",
    "file_search_calls",
    "images",
    "moderations",
    "vector_stores",
    "web_search_calls",
)

router = APIRouter(tags=["usage"])

Start = Annotated[int, Query(ge=0, le=10**12)]
Cursor = Annotated[int, Query(ge=0, le=10**12)]


class BucketPage(BaseModel):
    """A page of time buckets. next_page goes into `page`."""

    object: Literal["page"] = "page"
    data: list[dict[str, Any]]
    has_more: bool
    next_page: str | None


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a request asks for. more: whether buckets follow after the period."""

    period: service.Period
    more: bool
    groups: tuple[str, ...]
    chosen: service.Chosen
    line_items: frozenset[str] | None


@router.get(f"{ORGANIZATION}/usage/completions")
def usage_buckets(
    caller: CanReadUsage, ctx: Using, request: Request, start_time: Start, page: Cursor = 0
) -> BucketPage:
    """Tokens and requests of answers; `group_by` project_id, model, api_key_id; `bucket_width` 1d, 1h, 1m."""
    asked = _asked(ctx, request, max(start_time, page), WIDTHS, USAGE_GROUPS)
    rows = service.report(ctx, caller, asked.period, ["day", "kind", *asked.groups], asked.chosen)
    return _page(asked, [(one.day, _usage_result(one)) for one in rows if one.kind == "inference"])


@router.get(f"{ORGANIZATION}/usage/{{kind}}")
def other_buckets(
    caller: CanReadUsage, ctx: Using, request: Request, kind: str, start_time: Start, page: Cursor = 0
) -> BucketPage:
    """Empty buckets of what this server has none of: embeddings, images, moderations and the like."""
    if kind not in EMPTY_KINDS:
        raise NotFound(f"There is no usage of the kind {kind[:60]!r}.", code="not_found", param="kind")
    return _page(_asked(ctx, request, max(start_time, page), WIDTHS, USAGE_GROUPS), [])


@router.get(f"{ORGANIZATION}/costs")
def cost_buckets(caller: CanReadUsage, ctx: Using, request: Request, start_time: Start, page: Cursor = 0) -> BucketPage:
    """Costs; `group_by` project_id, line_item (a base model and what was done with it), api_key_id."""
    asked = _asked(ctx, request, max(start_time, page), COST_WIDTHS, COST_GROUPS)
    currency = service.current_prices(ctx).currency.lower()
    lines = asked.line_items is not None or "model" in asked.groups
    groups = dict.fromkeys(["day", *asked.groups, *(["kind", "model"] if lines else [])])
    rows = service.report(ctx, caller, asked.period, list(groups), asked.chosen)
    if asked.line_items is not None:
        rows = [one for one in rows if _line_item(one) in asked.line_items]
    return _page(asked, [(one.day, _cost_result(one, currency, line=lines)) for one in rows])


def _asked(
    ctx: Context, request: Request, since: int, widths: dict[str, tuple[int, int, int]], groups: dict[str, str]
) -> _Asked:
    lists = COST_LISTS if "line_item" in groups else USAGE_LISTS
    refuse_unknown_query(request, frozenset({*ALWAYS, *lists, *(f"{name}[]" for name in lists)}))
    width_name = request.query_params.get("bucket_width", "1d")
    if width_name not in widths:
        raise _refused("bucket_width", width_name, f"Use {' or '.join(widths)}.")
    width, usual, most = widths[width_name]
    limit = _number(request, "limit", usual)
    if not 1 <= limit <= most:
        raise _refused("limit", str(limit), f"At {width_name} it lies between 1 and {most}.")
    names = _list(request, "group_by")
    unknown = next((name for name in names if name not in groups), None)
    if unknown is not None:
        raise _refused("group_by", unknown, f"Groups: {', '.join(groups)}.")
    until = _number(request, "end_time", ctx.seconds() + 1)
    end = min(until, (since // width + limit) * width)
    found = {name: frozenset(_list(request, name)) or None for name in (*USAGE_LISTS, *COST_LISTS)}
    return _Asked(
        period=service.Period(since=since, until=end, width=width),
        more=end < until,
        groups=tuple(groups[name] for name in names),
        chosen=service.Chosen(projects=found["project_ids"], models=found["models"], keys=found["api_key_ids"]),
        line_items=found["line_items"],
    )


def _page(asked: _Asked, results: list[tuple[int | None, dict[str, Any]]]) -> BucketPage:
    """One bucket for each stretch of time, empty ones too."""
    period = asked.period
    starts = range(period.since - period.since % period.width, period.until, period.width)
    data = [
        {
            "object": "bucket",
            "start_time": start,
            "end_time": start + period.width,
            "results": [result for day, result in results if day == start],
        }
        for start in starts
    ]
    return BucketPage(data=data, has_more=asked.more, next_page=str(period.until) if asked.more else None)


def _list(request: Request, name: str) -> list[str]:
    given = [*request.query_params.getlist(name), *request.query_params.getlist(f"{name}[]")]
    return [part for text in given for part in ([text] if name == "line_items" else text.split(",")) if part]


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise _refused(name, text, "It is a whole number.")
    return int(text)


def _refused(name: str, value: str, remedy: str) -> InvalidRequest:
    return InvalidRequest(f"{name} cannot be {value[:60]!r}. {remedy}", code="invalid_value", param=name)


def _usage_result(one: service.Spending) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": one.prompt_tokens,
        "input_text_tokens": one.prompt_tokens,
        "output_tokens": one.completion_tokens,
        "output_text_tokens": one.completion_tokens,
        "input_cached_tokens": 0,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": one.requests,
        "project_id": one.project_id,
        "user_id": None,
        "api_key_id": one.key_id,
        "model": one.model,
        "batch": None,
        "service_tier": None,
    }


def _line_item(one: service.Spending) -> str:
    return "storage" if one.kind == "storage" else f"{one.model}, {one.kind}"


def _cost_result(one: service.Spending, currency: str, *, line: bool) -> dict[str, Any]:
    """line: whether the result is of one line item, which alone has a quantity."""
    stored = one.kind == "storage"
    tokens = one.prompt_tokens + one.completion_tokens + one.trained_tokens
    return {
        "object": "organization.costs.result",
        "amount": {"value": one.cost / UNIT, "currency": currency},
        "line_item": _line_item(one) if line else None,
        "project_id": one.project_id,
        "api_key_id": one.key_id,
        "user_id": None,
        "quantity": None if not line else one.byte_seconds / GIBIBYTE_HOUR if stored else tokens,
        "quantity_unit": None if not line else "gibibyte_hours" if stored else "tokens",
    }
