"""Quotas on the wire: a project's limits, how far they are used, and setting them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadQuotas, CanWriteQuotas
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.quotas import Limit
from smedje.services import quotas as service

router = APIRouter(prefix="/api/quotas", tags=["quotas"])


class QuotaBody(Body):
    """One limit. value: null takes it away. deployment: for the two rates, to limit one deployment alone.

    warn_percent: from which share on its use is warned of (80 unless set; 100 for never).
    """

    name: Limit
    value: int | None
    deployment: Annotated[str, Field(max_length=256)] = ""
    warn_percent: int | None = None


class QuotaObject(BaseModel):
    """A limit. used and left are null for rates, which each serving process counts for itself. warning: in words, when
    little is left."""

    object: Literal["quota"] = "quota"
    name: str
    deployment: str | None
    value: int
    used: int | None
    left: int | None
    warn_percent: int
    warning: str | None


class QuotaList(BaseModel):
    """Every limit of the project; what is not listed is not limited. Never paged."""

    object: Literal["list"] = "list"
    data: list[QuotaObject]


def to_object(state: service.QuotaState) -> QuotaObject:
    """The wire form of a limit."""
    quota = state.quota
    return QuotaObject(
        name=quota.name.value,
        deployment=quota.deployment or None,
        value=quota.value,
        used=state.used,
        left=None if state.used is None else max(0, quota.value - state.used),
        warn_percent=quota.warn_percent,
        warning=None if state.used is None else service.warning(quota, state.used),
    )


@router.get("")
def list_quotas(caller: CanReadQuotas, ctx: Using, request: Request) -> QuotaList:
    """The project's limits and what is used of them."""
    refuse_unknown_query(request, frozenset())
    return QuotaList(data=[to_object(one) for one in service.list_quotas(ctx, caller)])


@router.put("")
def put_quota(caller: CanWriteQuotas, ctx: Using, body: QuotaBody) -> QuotaList:
    """Set a limit, or take it away; all limits as they then are."""
    service.put_quota(
        ctx,
        caller,
        name=body.name,
        value=body.value,
        deployment=body.deployment,
        warn_percent=body.warn_percent,
    )
    return QuotaList(data=[to_object(one) for one in service.list_quotas(ctx, caller)])
