"""Erasures on the wire: what would be erased, erasing it, and the certificates."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadErasures, CanWriteErasures
from smedje.api.bodies import Body
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.upkeep import Erasure
from smedje.services import erasure as service

PREVIEW_QUERY = frozenset({"file", "row"})
LIST_QUERY = frozenset({"after", "limit"})

router = APIRouter(prefix="/api/erasures", tags=["erasures"])


class ErasureBody(Body):
    """What to erase. row: a line of the file, from 1; then every file of the project that holds the same line goes.

    plan: the digest that the preview gave.
    """

    file: Annotated[str, Field(max_length=256)]
    row: Annotated[int | None, Field(ge=1)] = None
    plan: Annotated[str, Field(max_length=64)]


class PlanObject(BaseModel):
    """What would go. blocked_by: what must end first. plan: to be given back when it is to be done."""

    object: Literal["erasure.plan"] = "erasure.plan"
    plan: str
    files: list[str]
    jobs: list[str]
    checkpoints: list[str]
    models: list[str]
    bytes: int
    blocked_by: list[str]


class ErasureObject(BaseModel):
    """An erasure. state: `removing` while bytes are going, then `done`. sha256: of the certificate's exact text, which
    stands in the audit log as well."""

    id: str
    object: Literal["erasure"] = "erasure"
    created_at: int
    state: str
    ended_at: int | None
    certificate: dict[str, Any]
    certificate_text: str
    sha256: str


def to_object(one: Erasure) -> ErasureObject:
    """The wire form of an erasure."""
    return ErasureObject(
        id=one.id,
        created_at=one.created_at,
        state=one.state.value,
        ended_at=one.ended_at,
        certificate=json.loads(one.certificate),
        certificate_text=one.certificate,
        sha256=one.sha256,
    )


@router.get("/preview")
def preview_erasure(
    caller: CanReadErasures,
    ctx: Using,
    request: Request,
    file: str,
    row: Annotated[int | None, Query(ge=1)] = None,
) -> PlanObject:
    """What erasing a file, or the files that hold one of its lines, would take away."""
    refuse_unknown_query(request, PREVIEW_QUERY)
    plan = service.plan_erasure(ctx, caller.project, file, row=row)
    return PlanObject(
        plan=plan.digest,
        files=[one.id for one in plan.files],
        jobs=[one.id for one in plan.jobs],
        checkpoints=[one.model_name for one in plan.checkpoints],
        models=list(plan.models),
        bytes=plan.bytes,
        blocked_by=list(plan.blocked_by),
    )


@router.post("")
def create_erasure(caller: CanWriteErasures, ctx: Using, body: ErasureBody) -> ErasureObject:
    """Erase what the preview showed. It cannot be undone."""
    return to_object(service.erase(ctx, caller, body.file, row=body.row, plan=body.plan))


@router.get("")
def list_erasures(
    caller: CanReadErasures,
    ctx: Using,
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[ErasureObject]:
    """The project's erasures, newest first."""
    refuse_unknown_query(request, LIST_QUERY)
    found = service.list_erasures(ctx, caller.project, after=after, limit=limit + 1)
    return page(found, limit, to_object, lambda one: one.id)


@router.get("/{erasure_id}")
def get_erasure(caller: CanReadErasures, ctx: Using, erasure_id: str) -> ErasureObject:
    """One erasure with its certificate."""
    return to_object(service.get_erasure(ctx, caller.project, erasure_id))
