"""Retention on the wire: how long a project keeps what, what would go now, and letting it go; a model's removal."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from smedje.api.auth import CanReadModels, CanReadProject, CanWriteProject
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.upkeep import Kept
from smedje.services import removal
from smedje.services import retention as service

DAYS = frozenset(kind.value for kind in Kept)

router = APIRouter(prefix="/api", tags=["retention"])

Days = Annotated[int | None, Query(ge=0)]


class RetentionBody(Body):
    """Days; 0 for ever. What is left out stays."""

    files: int | None = None
    checkpoints: int | None = None
    events: int | None = None


class RetentionObject(BaseModel):
    """For how many days the project keeps what; 0 for ever."""

    object: Literal["retention"] = "retention"
    files: int
    checkpoints: int
    events: int


class PartObject(BaseModel):
    """One thing that goes. id: a file's or job's, or a checkpoint's name."""

    kind: str
    id: str
    bytes: int
    created_at: int


class RemovalList(BaseModel):
    """What goes, oldest first; never paged. in_use: how many stay although they are old enough."""

    object: Literal["list"] = "list"
    data: list[PartObject]
    bytes: int
    in_use: int


class ModelRemovalObject(BaseModel):
    """What deleting a model or checkpoint frees, and what stands in the way."""

    object: Literal["model.removal"] = "model.removal"
    model: str
    bytes: int
    objects: int
    deployments: list[str]
    jobs: list[str]


def to_object(days: dict[Kept, int]) -> RetentionObject:
    """The wire form of a project's rules."""
    return RetentionObject(files=days[Kept.FILES], checkpoints=days[Kept.CHECKPOINTS], events=days[Kept.EVENTS])


def to_list(found: service.Preview) -> RemovalList:
    """The wire form of a preview."""
    parts = [PartObject(kind=one.kind, id=one.id, bytes=one.bytes, created_at=one.created_at) for one in found.parts]
    return RemovalList(data=parts, bytes=sum(one.bytes for one in parts), in_use=found.in_use)


@router.get("/retention")
def get_retention(caller: CanReadProject, ctx: Using, request: Request) -> RetentionObject:
    """The project's rules."""
    refuse_unknown_query(request, frozenset())
    return to_object(service.list_rules(ctx, caller.project))


@router.put("/retention")
def put_retention(caller: CanWriteProject, ctx: Using, body: RetentionBody) -> RetentionObject:
    """Change rules. The server follows them once an hour."""
    given = {kind: days for kind in Kept if (days := getattr(body, kind.value)) is not None}
    return to_object(service.set_rules(ctx, caller, given))


@router.get("/retention/preview")
def preview_retention(
    caller: CanReadProject,
    ctx: Using,
    request: Request,
    files: Days = None,
    checkpoints: Days = None,
    events: Days = None,
) -> RemovalList:
    """What the project's rules, with these days in their stead, would remove now."""
    refuse_unknown_query(request, DAYS)
    asked = {Kept.FILES: files, Kept.CHECKPOINTS: checkpoints, Kept.EVENTS: events}
    given = {kind: days for kind, days in asked.items() if days is not None}
    return to_list(service.preview(ctx, caller.project, given))


@router.post("/retention/apply")
def apply_retention(caller: CanWriteProject, ctx: Using) -> RemovalList:
    """Follow the rules now; what was removed."""
    return to_list(service.apply_now(ctx, caller.project))


@router.get("/models/{model}/removal")
def preview_removal(caller: CanReadModels, ctx: Using, model: str) -> ModelRemovalObject:
    """What deleting this model or checkpoint would free."""
    found = removal.plan_model(ctx, caller.project, model)
    return ModelRemovalObject(
        model=found.name,
        bytes=found.bytes,
        objects=found.objects,
        deployments=list(found.deployments),
        jobs=list(found.jobs),
    )
